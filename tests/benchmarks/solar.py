"""How far does the recipe of eight steps get on photographs of solar cells, and in how many minutes? The curve of accuracy against minutes, over seeds.

    OMP_NUM_THREADS=1 python tests/benchmarks/solar.py --seeds 0,1,2        # about 11 minutes of one core for each seed
    python tests/benchmarks/solar.py --table out/benchmarks/solar.jsonl     # the table again
    python tests/benchmarks/solar.py --try                                  # does it run? a minute, worthless numbers

2,624 photographs; defective where the experts' probability is above 1/2 (821), else functional, as in the lessons. A seed sets the split (75/25, stratified
by that label), the head and every draw. The network is the EfficientNet-Lite0 that comes with the kit; its batch normalization keeps its averages. Published
figures are near, not the same question: Deitsch et al. (2019) count the 295 cells at 1/3 as defective, with little weight in training; the ResNet-152 of 2025
(90.1%) was trained on generated and over-sampled pictures, too, with a threshold of its own.

What is done: the head is trained on features of the plain pictures (step 3 of the recipe); then, with gentle augmentation, the head and the late body together,
at 160 px and from there at 224 px (steps 5, 6 and 8). The early body stays frozen, so that a core trains 1.8 times as many pictures a second. Quarter-turns
(`--turns`) are left out: a cell has no upper side, but its wires run one way. (Two epochs with turns ended lower than two without, one run each and at other
rates: a suspicion, not a finding.) Rates are fixed, or seeds could not be compared; `--find` prints what the finder (steps 2 and 7) suggests before each stage.

Minutes are processor time of the whole process, all its threads together, so minutes of one core; other programs do not count. Making the data, opening
pictures, augmentation and training are in them; validation is counted apart. JSON lines, one an epoch; then the table: mean, standard deviation
and 95% interval of the mean (Student's t) over the seeds. Neither epoch nor seed is picked: the result is the last row.
"""
import argparse, json, statistics, tempfile, time, warnings
from dataclasses import fields, replace
from pathlib import Path

import torch
from accuracy import interval
from lessonkit.data import datasets
from lessonkit.data.augment import Augment, to_inputs
from lessonkit.data.image_data import ImageData
from lessonkit.data.loader import Loader
from lessonkit.results.metrics import accuracy
from lessonkit.learner import Learner

PUBLISHED = {"Deitsch et al. 2019, CNN": .884, "one-cycle ResNet-152, 2025": .901}
now = time.process_time


class Diary:
    "Keeps the clocks of a run and writes a line an epoch. A metric calls it, so it knows when validation ends; its loader says when that begins."
    def __init__(self, out, doubt, **key):
        self.out, self.doubt, self.key = out, doubt, key
        self.train, self.valid, self.mark, self.asked, self.stage, self.epoch, self.wall = 0., 0., now(), None, "", 0, time.time()

    def watch(self, loader):
        "The loader, noting when it is first asked for pictures."
        diary = self
        class Watched(Loader):
            def batches(self, *key, **kw):
                diary.asked = now()
                yield from super().batches(*key, **kw)
        return Watched(**{f.name: getattr(loader, f.name) for f in fields(Loader)})

    def spend(self):
        "Book the seconds since the last call: up to the first validation picture they were training."
        end = now()
        begin, self.asked = self.asked or end, None
        self.train, self.valid, self.mark = self.train + begin - self.mark, self.valid + end - begin, end

    def write(self, preds, **more):
        right, doubt = (preds.pred == preds.targets), torch.tensor([self.doubt[p.name] for p in preds.paths])
        row = dict(**self.key, stage=self.stage, epoch=self.epoch, minutes=round(self.train / 60, 2), valid_minutes=round(self.valid / 60, 2),
                   wall_minutes=round((time.time() - self.wall) / 60, 2), n=len(right), accuracy=round(float(right.float().mean()), 4),
                   sure=round(float(right[~doubt].float().mean()), 4), doubtful=round(float(right[doubt].float().mean()), 4), **more)
        self.out.write(json.dumps(row) + "\n")
        self.out.flush()
        print(json.dumps(row), flush=True)

    def metric(self, preds):
        self.spend()
        self.epoch += 1
        self.write(preds, loss=round(float(preds.losses.mean()), 4))
        self.mark = now()                           # writing is nobody's time
        return accuracy(preds)


def mean_of_views(learn, turns):
    "Mean probabilities for the validation pictures and their mirror images; with `turns`, for all eight ways to lay a square."
    probs = []
    learn.model.eval()
    with torch.inference_mode():
        for batch in learn.data.valid.batches():
            x = to_inputs(batch, learn.data.valid, learn.engine.device)
            views = [torch.rot90(side, k, (2, 3)) for side in (x, x.flip(3)) for k in range(4 if turns else 1)]
            probs.append(torch.stack([learn.engine.forward(learn.model, v).float().softmax(1) for v in views]).mean(0).cpu())
    return replace(learn.get_preds(), probs=torch.cat(probs))


def presize(size): return max(size, min(300, round(size * 1.25)))  # the photographs have 300 px


def run(seed, a, out):
    "One seed: train by the recipe, writing as it goes."
    cells = datasets.get("solar")
    table = cells.table.iloc[::a.every]
    diary = Diary(out, {Path(f).name: bool(d) for f, d in zip(table.file, table.doubt)}, seed=seed, size=a.size, large=a.large)
    plain = ImageData.from_df(cells.path, table, valid_pct=.25, split="stratified", seed=seed, size=a.size, presize=presize(a.size), cache="memory")
    plain = replace(plain, valid=diary.watch(plain.valid))
    gentle = Augment(flip_vert=a.turns, max_rotate=3., max_zoom=1.05, max_warp=0., max_lighting=.1, p_affine=.5, p_lighting=.5)
    augmented = replace(plain, train=replace(plain.train, augment=gentle, bs=a.bs))
    learn = Learner(plain, metrics=diary.metric, smoothing=a.smoothing, seed=seed, cache=False, show=False)

    def stage(name, epochs, rates):
        if not epochs: return
        diary.stage = name
        if a.find: print(name, learn.lr_find().suggestions)
        learn.fit_one_cycle(epochs, rates)

    stage("head", a.head_epochs, slice(3e-3))
    learn.freeze_to(1)
    learn.set_data(augmented)
    stage(f"late body, {a.size} px", a.epochs, [1e-5, 1e-4, 1e-3])
    learn.set_data(augmented.resized(a.large, presize=presize(a.large)))
    stage(f"late body, {a.large} px", a.large_epochs, [1e-5, 8e-5, 5e-4])
    if a.views:
        diary.stage, start = "mean of views", now()
        preds = mean_of_views(learn, a.turns)
        diary.write(preds, view_minutes=round((now() - start) / 60, 2))


def show(rows):
    "The table over seeds, and how the end compares with what has been published."
    line = "| {:<20} | {:>5} | {:>7} | {:>7} | {:>8} | {:>5} | {:>14} | {:>5} |".format
    print(line("stage", "epoch", "minutes", "+ valid", "accuracy", "sd", "95% interval", "seeds"))
    print(line(*["---"] * 8))
    for stage, epoch in dict.fromkeys((r["stage"], r["epoch"]) for r in rows):
        of = [r for r in rows if (r["stage"], r["epoch"]) == (stage, epoch)]
        mean = lambda k: statistics.mean(r[k] for r in of)
        share, half = interval([100 * r["accuracy"] for r in of])
        spread = ("", "")
        if len(of) > 1: spread = f"{statistics.stdev([100 * r['accuracy'] for r in of]):.2f}", f"{share - half:.1f} to {share + half:.1f}"
        print(line(stage, epoch, f"{mean('minutes'):.1f}", f"{mean('valid_minutes'):.1f}", f"{share:.2f}", *spread, len(of)))
    end = rows[-1]["stage"], rows[-1]["epoch"]
    last = [r for r in rows if (r["stage"], r["epoch"]) == end]
    share, half = interval([r["accuracy"] for r in last])
    sure, doubtful = (statistics.mean(r[k] for r in last) for k in ("sure", "doubtful"))
    print(f"\nat the end {share:.1%}: {sure:.1%} where the experts were sure, {doubtful:.1%} where they were in doubt")
    for name, value in PUBLISHED.items():
        side = "above" if share - half > value else "below" if share + half < value else "not distinguishable from"
        print(f"{side} {value:.1%} ({name})" if len(last) > 1 else f"{share - value:+.1%} against {value:.1%} ({name}); one seed, no interval")


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--seeds", default="0,1,2", help="with commas")
    ap.add_argument("--size", type=int, default=160, help="side of head and first stage")
    ap.add_argument("--large", type=int, default=224, help="side of the last stage")
    ap.add_argument("--head-epochs", type=int, default=4)
    ap.add_argument("--epochs", type=int, default=4, help="at --size")
    ap.add_argument("--large-epochs", type=int, default=4, help="at --large; 0 leaves it out")
    ap.add_argument("--bs", type=int, default=32, help="of the body; the head trains with 64")
    ap.add_argument("--smoothing", type=float, default=.1)
    ap.add_argument("--turns", action="store_true", help="augment by quarter-turns, too")
    ap.add_argument("--views", action="store_true", help="at the end, ask about mirror images, too, and average")
    ap.add_argument("--find", action="store_true", help="print what the learning-rate finder suggests before each stage")
    ap.add_argument("--every", type=int, default=1, help="every so many cells only")
    ap.add_argument("--out", type=Path, default=Path("out/benchmarks/solar.jsonl"))
    ap.add_argument("--table", type=Path, help="only print the table of this file")
    ap.add_argument("--try", dest="just_try", action="store_true", help="does it run? worthless numbers")
    a = ap.parse_args()
    warnings.filterwarnings("ignore")
    if a.just_try:
        a.every, a.size, a.large, a.epochs, a.large_epochs, a.views, a.seeds = 12, 96, 128, 1, 1, True, "0,1"
        a.out = Path(tempfile.mkdtemp()) / "solar.jsonl"
    if not a.table:
        a.out.parent.mkdir(parents=True, exist_ok=True)
        with open(a.out, "w") as out:
            for seed in map(int, a.seeds.split(",")): run(seed, a, out)
    show([json.loads(line) for line in open(a.table or a.out)])


if __name__ == "__main__": main()
