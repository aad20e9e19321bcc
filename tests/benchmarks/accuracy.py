"""Does bf16 cost accuracy? The same lines in fp32 and in bf16, on photographs of solar cells, seed by seed.

    python tests/benchmarks/accuracy.py --seeds 5            # any time: nothing here is timed, the cores need not be idle

A seed sets the split (75/25, stratified), the head and every draw, so that a pair of runs differs in nothing but the precision. The network is the
pretrained one that comes with the kit. `frozen`: a head trained on the features of the frozen body. `tuned`: fine_tune, head first, then
everything, augmented. JSON lines: one a seed and precision, then for each way the mean difference (bf16 minus fp32, in points of accuracy)
over the seeds with its 95% interval (t), and how many pictures only one of the two got right. Needs elpv-dataset, and a CPU with bf16 to mean anything for speed
(without it bf16 is emulated: slow, with the same rounding).
"""
import argparse, json, statistics, warnings

import numpy as np
from lessonkit.data.augment import augmentations
from lessonkit.data.image_data import ImageData
from lessonkit.learner import Learner

from common import solar_cells


def right(data, seed, precision, a):
    "(n,) bool for each way: which validation pictures it got right; and the loss."
    def correct(learn):
        preds = learn.get_preds()
        return (preds.pred == preds.targets).numpy(), float(preds.losses.mean())
    made = lambda **kw: Learner(data(seed, **kw), precision=precision, seed=seed, show=False)
    frozen = made()
    frozen.fit_one_cycle(a.frozen_epochs)
    result = dict(frozen=correct(frozen))
    if a.epochs:
        tuned = made(augment=augmentations(flip_vert=True))
        tuned.fine_tune(a.epochs)
        result["tuned"] = correct(tuned)
    return result


def interval(differences):
    "Mean of the differences and half the width of its 95% interval (Student's t)."
    from scipy.stats import t
    n = len(differences)
    half = float(t.ppf(.975, n - 1)) * statistics.stdev(differences) / n ** .5 if n > 1 else float("nan")
    return statistics.mean(differences), half


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--seeds", type=int, default=5)
    ap.add_argument("--n", type=int, help="cells; default: all 2,624")
    ap.add_argument("--size", type=int, default=128)
    ap.add_argument("--frozen-epochs", type=int, default=6)
    ap.add_argument("--epochs", type=int, default=2, help="of fine_tune after its frozen one; 0 leaves it out")
    a = ap.parse_args()
    warnings.filterwarnings("ignore")
    path, files, labels = solar_cells(a.n)
    def data(seed, augment=None):
        return ImageData.from_lists(path, files, labels, valid_pct=.25, split="stratified", seed=seed, size=a.size, augment=augment)
    pairs = {}
    for seed in range(a.seeds):
        results = {p: correct_indices(data, seed, p, a) for p in (("fp32", "bf16") if seed % 2 == 0 else ("bf16", "fp32"))}
        for p, result in results.items():
            print(json.dumps(dict(seed=seed, precision=p, n_valid=len(result["frozen"][0]), **{
                f"{way}_{name}": round(float(v), 4) for way, (ok, loss) in result.items() for name, v in (("accuracy", ok.mean()), ("loss", loss))})), flush=True)
        for way in results["fp32"]: pairs.setdefault(way, []).append((results["fp32"][way][0], results["bf16"][way][0]))
    for way, of_seed in pairs.items():
        mean, half = interval([100 * float(b.mean() - f.mean()) for f, b in of_seed])
        print(json.dumps(dict(way=way, seeds=len(of_seed), size=a.size, fp32=round(100 * float(np.mean([f.mean() for f, _ in of_seed])), 2),
                              bf16=round(100 * float(np.mean([b.mean() for _, b in of_seed])), 2), difference=round(mean, 2),
                              interval=[round(mean - half, 2), round(mean + half, 2)], only_fp32_right=int(sum((f & ~b).sum() for f, b in of_seed)),
                              only_bf16_right=int(sum((b & ~f).sum() for f, b in of_seed)))))


if __name__ == "__main__": main()
