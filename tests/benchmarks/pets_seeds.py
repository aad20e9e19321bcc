"""What lessons 1 and 2 say of fine-tuning, over several seeds: drawn pets, nothing is timed.

    .venv/bin/python tests/benchmarks/pets_seeds.py --seeds 5 --out out/benchmarks/pets_seeds.jsonl

Each recipe trains on the 960 training images of the lessons at 128 pixels, and is asked about the
240 validation images and about 3,600 new pictures, drawn with another seed. The table has the
errors on both, with the standard deviation over seeds. A run that is in the file is not repeated.
"""
import argparse
import json
import statistics
from pathlib import Path

from lessonkit.all import augmentations, datasets, image_files, ImageData, Learner, sample

LABEL = r"^(.+)_\d+\.\w+$"
VARIED = dict(augment=augmentations())
RECIPES = {   # settings of the data and of the learner, and what to call
    "head alone": ({}, {}, lambda learn: learn.fit_one_cycle(5)),
    "head alone, 192 px": (dict(size=192), {}, lambda learn: learn.fit_one_cycle(5)),
    "fine_tune(2, keep_best=None)": ({}, {}, lambda learn: learn.fine_tune(2, keep_best=None)),
    "fine_tune(3)": ({}, {}, lambda learn: learn.fine_tune(3)),
    "varied, fine_tune(5)": (VARIED, {}, lambda learn: learn.fine_tune(5)),
    "varied, smoothed, fine_tune(8)":
        (VARIED | dict(bs=32), dict(smoothing=.1), lambda learn: learn.fine_tune(8)),
    "two layers": ({}, dict(head="mlp"), lambda learn: learn.fit_one_cycle(5)),
    "two layers, fine_tune(2, freeze_epochs=3)":
        ({}, dict(head="mlp"), lambda learn: learn.fine_tune(2, freeze_epochs=3)),
}


def run(recipe, seed, exam):
    "Mistakes on the validation images and on new pictures."
    on_data, on_learner, train = RECIPES[recipe]
    files = image_files(datasets.get("sample").path)
    data = ImageData.from_name_re(files[0].parent, LABEL, files, **(dict(size=128) | on_data))
    learn = Learner(data, seed=seed, show=False, **on_learner)
    train(learn)
    known, new = learn.get_preds(), learn.get_preds(exam)
    breeds = [file.name.rsplit("_", 1)[0] for file in exam]
    wrong = sum(new.classes[i] != breed for i, breed in zip(new.pred.tolist(), breeds))
    return dict(recipe=recipe, seed=seed, valid=int((known.pred != known.targets).sum()),
                n_valid=len(known), new=wrong, n_new=len(new))


def table(rows):
    "Means over seeds, in Markdown."
    yield "| recipe | seeds | errors of 240 | of 3,600 new pictures | standard deviation |"
    yield "| --- | --- | --- | --- | --- |"
    for recipe in RECIPES:
        own = [row for row in rows if row["recipe"] == recipe]
        if not own: continue
        share = [100 * row["new"] / row["n_new"] for row in own]
        spread = f"{statistics.stdev(share):.2f}" if len(share) > 1 else ""
        valid = " ".join(str(row["valid"]) for row in own)
        yield f"| {recipe} | {len(own)} | {valid} | {statistics.mean(share):.1f}% | {spread} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/pets_seeds.jsonl"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(row["recipe"], row["seed"]) for row in rows}
    exam = image_files(sample.pets(n=3600, seed=7))
    for seed in range(args.seeds):
        for recipe in RECIPES:
            if (recipe, seed) in done: continue
            rows.append(run(recipe, seed, exam))
            with args.out.open("a") as file: print(json.dumps(rows[-1]), file=file)
    print(*table(rows), sep="\n")


if __name__ == "__main__": main()
