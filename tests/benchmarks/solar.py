"""How far does the recipe of eight steps get on photographs of solar cells, and how quickly?

    OMP_NUM_THREADS=1 python tests/benchmarks/solar.py --seeds 0,1,2  # a core, 11 minutes a seed
    python tests/benchmarks/solar.py --table out/benchmarks/solar.jsonl  # the table
    python tests/benchmarks/solar.py --try              # does it run? a minute, worthless numbers

It prints the curve of accuracy against minutes, over seeds.

2,624 photographs; defective where the experts' probability is above 1/2 (821), else functional, as
in the lessons. A seed sets the split (75/25, stratified by that label), the head and everything
random. The network is the EfficientNet-Lite0 that comes with the kit; its batch normalization keeps
its averages. Published figures answer similar questions, not the same one: Deitsch et al. (2019)
count the 295 cells at 1/3 as defective, with little weight in training; the ResNet-152 of 2025
(90.1%) was also trained on generated and over-sampled images, with a threshold of its own.

First the head is trained on features of the plain images (step 3 of the recipe); then, with gentle
augmentation, the head and the late body together, at 160 px and afterwards at 224 px (steps 5, 6
and 8). The early body stays frozen, so that a core trains 1.8 times as many images a second.
Quarter-turns (`--turns`) are left out: a cell has no upper side, but its wires run one way. (Two
epochs with turns ended lower than two without, but that was one run each, at other rates: a
suspicion, not a finding.) Rates are fixed, because seeds could not be compared otherwise; `--find`
prints what the finder (steps 2 and 7) suggests before each stage.

Minutes are processor time of the whole process, all its threads together, so minutes of one core;
other programs do not count. They include making the data, opening images, augmentation and
training; validation is counted separately. Prints JSON lines, one for each epoch; then the table:
mean, standard deviation and 95% interval of the mean (Student's t) over the seeds. Neither epoch
nor seed is picked: the result is the last row.
"""
import argparse
import json
import statistics
import tempfile
import time
import warnings
from dataclasses import fields, replace
from pathlib import Path

import torch

from accuracy import interval
from lessonkit.data import datasets
from lessonkit.data.augment import Augment, to_inputs
from lessonkit.data.image_data import ImageData
from lessonkit.data.loader import Loader
from lessonkit.learner import Learner
from lessonkit.results.metrics import accuracy

PUBLISHED = {"Deitsch et al. 2019, CNN": .884, "one-cycle ResNet-152, 2025": .901}
now = time.process_time


class Diary:
    """Keeps the clocks of a run and writes a line for each epoch.

    A metric calls it, so it knows when validation ends; its loader says when validation begins.
    """
    def __init__(self, out, doubt, **key):
        self.out, self.doubt, self.key = out, doubt, key
        self.stage, self.epoch, self.wall = "", 0, time.time()
        self.train, self.valid, self.mark, self.asked = 0., 0., now(), None

    def watch(self, loader):
        "The same loader; it notes when it is first asked for images."
        diary = self
        class Watched(Loader):
            def batches(self, *key, **options):
                diary.asked = now()
                yield from super().batches(*key, **options)
        return Watched(**{f.name: getattr(loader, f.name) for f in fields(Loader)})

    def spend(self):
        "Book the seconds since the last call: up to the first validation image, it was training."
        end = now()
        begin = self.asked or end
        self.train += begin - self.mark
        self.valid += end - begin
        self.mark, self.asked = end, None

    def write(self, preds, **more):
        correct = (preds.pred == preds.targets).float()
        doubt = torch.tensor([self.doubt[p.name] for p in preds.paths])
        def share(values): return round(float(values.mean()), 4)
        def minutes(seconds): return round(seconds / 60, 2)
        row = dict(**self.key, stage=self.stage, epoch=self.epoch, minutes=minutes(self.train),
                   valid_minutes=minutes(self.valid), wall_minutes=minutes(time.time() - self.wall),
                   n=len(correct), accuracy=share(correct), sure=share(correct[~doubt]),
                   doubtful=share(correct[doubt]), **more)
        self.out.write(json.dumps(row) + "\n")
        self.out.flush()
        print(json.dumps(row), flush=True)

    def metric(self, preds):
        self.spend()
        self.epoch += 1
        self.write(preds, loss=round(float(preds.losses.mean()), 4))
        self.mark = now()  # writing does not count
        return accuracy(preds)


def mean_of_views(learn, turns):
    """Mean probabilities for the validation images and their mirror images.

    With `turns`, for all eight ways to turn and mirror a square.
    """
    probs, valid = [], learn.data.valid
    def outputs(view): return learn.engine.forward(learn.model, view).float().softmax(1)
    learn.model.eval()
    with torch.inference_mode():
        for batch in valid.batches():
            x = to_inputs(batch, valid, learn.engine.device)
            quarters = range(4 if turns else 1)
            views = [torch.rot90(side, k, (2, 3)) for side in (x, x.flip(3)) for k in quarters]
            probs.append(torch.stack([outputs(view) for view in views]).mean(0).cpu())
    return replace(learn.get_preds(), probs=torch.cat(probs))


def presize(size): return max(size, min(300, round(size * 1.25)))  # the photographs have 300 px


def run(seed, args, out):
    "One seed: train by the recipe, and write as it goes."
    cells = datasets.get("solar")
    table = cells.table.iloc[::args.every]
    doubt = {Path(f).name: bool(d) for f, d in zip(table.file, table.doubt)}
    diary = Diary(out, doubt, seed=seed, size=args.size, large=args.large)
    plain = ImageData.from_df(cells.path, table, valid_pct=.25, split="stratified", seed=seed,
                              size=args.size, presize=presize(args.size), cache="memory")
    plain = replace(plain, valid=diary.watch(plain.valid))
    gentle = Augment(flip_vert=args.turns, max_rotate=3., max_zoom=1.05, max_warp=0.,
                     max_lighting=.1, p_affine=.5, p_lighting=.5)
    augmented = replace(plain, train=replace(plain.train, augment=gentle, bs=args.bs))
    learn = Learner(plain, head="mlp", metrics=diary.metric, smoothing=args.smoothing, seed=seed,
                    cache=False, show=False)

    def stage(name, epochs, rates):
        if not epochs: return
        diary.stage = name
        if args.find: print(name, learn.lr_find().suggestions)
        learn.fit_one_cycle(epochs, rates)

    stage("head", args.head_epochs, slice(3e-3))
    learn.freeze_to(1)
    learn.set_data(augmented)
    stage(f"late body, {args.size} px", args.epochs, [1e-5, 1e-4, 1e-3])
    learn.set_data(augmented.resized(args.large, presize=presize(args.large)))
    stage(f"late body, {args.large} px", args.large_epochs, [1e-5, 8e-5, 5e-4])
    if args.views:
        diary.stage, start = "mean of views", now()
        preds = mean_of_views(learn, args.turns)
        diary.write(preds, view_minutes=round((now() - start) / 60, 2))


def rows_of(rows, stage, epoch):
    return [r for r in rows if (r["stage"], r["epoch"]) == (stage, epoch)]


def show_table(rows):
    "A row for each epoch, over seeds."
    line = "| {:<20} | {:>5} | {:>7} | {:>7} | {:>8} | {:>5} | {:>14} | {:>5} |".format
    print(line("stage", "epoch", "minutes", "+ valid", "accuracy", "sd", "95% interval", "seeds"))
    print(line(*["---"] * 8))
    for stage, epoch in dict.fromkeys((r["stage"], r["epoch"]) for r in rows):
        of = rows_of(rows, stage, epoch)
        percents = [100 * r["accuracy"] for r in of]
        mean, half = interval(percents)
        several = len(of) > 1
        sd = f"{statistics.stdev(percents):.2f}" if several else ""
        ends = f"{mean - half:.1f} to {mean + half:.1f}" if several else ""
        minutes = statistics.mean(r["minutes"] for r in of)
        valid_minutes = statistics.mean(r["valid_minutes"] for r in of)
        print(line(stage, epoch, f"{minutes:.1f}", f"{valid_minutes:.1f}", f"{mean:.2f}", sd, ends,
                   len(of)))


def show_comparison(rows):
    "How the last row compares with what has been published."
    last = rows_of(rows, rows[-1]["stage"], rows[-1]["epoch"])
    share, half = interval([r["accuracy"] for r in last])
    sure, doubtful = (statistics.mean(r[k] for r in last) for k in ("sure", "doubtful"))
    print(f"\nat the end {share:.1%}: {sure:.1%} where the experts were sure, "
          f"{doubtful:.1%} where they were in doubt")
    for name, value in PUBLISHED.items():
        if len(last) < 2:
            print(f"{share - value:+.1%} against {value:.1%} ({name}); one seed, no interval")
            continue
        side = "not distinguishable from"
        if share - half > value: side = "above"
        if share + half < value: side = "below"
        print(f"{side} {value:.1%} ({name})")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2", help="with commas")
    parser.add_argument("--size", type=int, default=160, help="side of head and first stage")
    parser.add_argument("--large", type=int, default=224, help="side of the last stage")
    parser.add_argument("--head-epochs", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4, help="at --size")
    parser.add_argument("--large-epochs", type=int, default=4, help="at --large; 0 leaves it out")
    parser.add_argument("--bs", type=int, default=32, help="of the body; the head trains with 64")
    parser.add_argument("--smoothing", type=float, default=.1)
    parser.add_argument("--turns", action="store_true", help="augment by quarter-turns, too")
    parser.add_argument("--views", action="store_true",
                        help="at the end, predict mirror images, too, and average")
    parser.add_argument("--find", action="store_true",
                        help="print what the learning-rate finder suggests before each stage")
    parser.add_argument("--every", type=int, default=1, help="take only one in so many cells")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/solar.jsonl"))
    parser.add_argument("--table", type=Path, help="only print the table of this file")
    parser.add_argument("--try", dest="try_out", action="store_true",
                        help="does it run? worthless numbers")
    args = parser.parse_args()
    if args.try_out:
        args.every, args.size, args.large, args.epochs, args.large_epochs = 12, 96, 128, 1, 1
        args.views, args.seeds = True, "0,1"
        args.out = Path(tempfile.mkdtemp()) / "solar.jsonl"
    return args


def main():
    args = parse_arguments()
    warnings.filterwarnings("ignore")
    if not args.table:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with open(args.out, "w") as out:
            for seed in map(int, args.seeds.split(",")): run(seed, args, out)
    with open(args.table or args.out) as f: rows = [json.loads(line) for line in f]
    show_table(rows)
    show_comparison(rows)


if __name__ == "__main__": main()
