"""Does bf16 cost accuracy? The same lines in fp32 and in bf16, on photographs of solar cells.

    python tests/benchmarks/accuracy.py --seeds 5  # any time: nothing is timed, cores may be busy

A seed sets the split (75/25, stratified), the head and everything random, so that a pair of runs
differs in nothing but the precision. The network is the pretrained one that comes with the kit.
`frozen`: a head of two layers trained on the features of the frozen body. `tuned`: fine_tune, the
head first, then everything, augmented. Prints JSON lines: one for each seed and precision; then,
for each way to train, the mean difference over the seeds (bf16 minus fp32, in points of accuracy)
with its 95% interval (t), and how many images only one of the two got right. Needs elpv-dataset. On
a CPU without bf16 it is emulated: slow, with the same rounding.
"""
import argparse
import json
import warnings

import numpy as np

from common import interval, solar_cells
from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData
from lessonkit.learner import Learner


def evaluate(learn):
    "(n,) bool: which validation images it got right; and the loss."
    preds = learn.get_preds()
    return (preds.pred == preds.targets).numpy(), float(preds.losses.mean())


def train(data, seed, precision, args):
    "Correct images and loss, for each way to train."
    options = dict(head="mlp", precision=precision, seed=seed, show=False)
    frozen = Learner(data(seed), **options)
    frozen.fit_one_cycle(args.frozen_epochs)
    result = dict(frozen=evaluate(frozen))
    if args.epochs:
        tuned = Learner(data(seed, augment=augmentations(flip_vert=True)), **options)
        tuned.fine_tune(args.epochs)
        result["tuned"] = evaluate(tuned)
    return result


def print_run(seed, precision, result):
    scores = {}
    for way, (correct, loss) in result.items():
        scores[f"{way}_accuracy"] = round(float(correct.mean()), 4)
        scores[f"{way}_loss"] = round(loss, 4)
    n_valid = len(result["frozen"][0])
    print(json.dumps(dict(seed=seed, precision=precision, n_valid=n_valid, **scores)), flush=True)


def print_difference(way, pairs, size):
    "`pairs`: which images fp32 and bf16 got right, for each seed."
    mean, half = interval([100 * float(bf16.mean() - fp32.mean()) for fp32, bf16 in pairs])
    def percent(k): return round(100 * float(np.mean([pair[k].mean() for pair in pairs])), 2)
    print(json.dumps(dict(
        way=way, seeds=len(pairs), size=size, fp32=percent(0), bf16=percent(1),
        difference=round(mean, 2), interval=[round(mean - half, 2), round(mean + half, 2)],
        only_fp32_right=int(sum((fp32 & ~bf16).sum() for fp32, bf16 in pairs)),
        only_bf16_right=int(sum((bf16 & ~fp32).sum() for fp32, bf16 in pairs)))))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--n", type=int, help="cells; default: all 2,624")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--frozen-epochs", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=2,
                        help="of fine_tune after its frozen one; 0 leaves it out")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    path, files, labels = solar_cells(args.n)

    def data(seed, augment=None):
        return ImageData.from_lists(path, files, labels, valid_pct=.25, split="stratified",
                                    seed=seed, size=args.size, augment=augment)

    pairs = {}
    for seed in range(args.seeds):
        order = ("fp32", "bf16") if seed % 2 == 0 else ("bf16", "fp32")
        results = {precision: train(data, seed, precision, args) for precision in order}
        for precision, result in results.items(): print_run(seed, precision, result)
        for way in results["fp32"]:
            pair = results["fp32"][way][0], results["bf16"][way][0]
            pairs.setdefault(way, []).append(pair)
    for way, of_seeds in pairs.items(): print_difference(way, of_seeds, args.size)


if __name__ == "__main__": main()
