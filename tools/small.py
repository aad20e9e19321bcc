"""The small form of the lessons, for tests: every cell runs, but on little data.

`python tools/run_lesson.py 2 --small` runs one, and so does any run with LESSONKIT_SMALL=1. The
small settings stand here, so that the code a learner reads has none of them.
"""
import os

# For each page, pairs of a piece of code and what stands there in the small form. Each piece
# occurs exactly once in the page's code (tests/test_lessons.py).
TABLE = {
    "01_pets": [   # as with a folder of one's own: nobody knows which labels are wrong
        ('datasets.get("sample")', "datasets.get(sample.pets(n=144))"),
        ("fit_one_cycle(5)\nlearn.show", "fit_one_cycle(2)\nlearn.show"),
        ("fine_tune(2, keep_best=None)", "fine_tune(1, keep_best=None)"),
        ("solar.table, size=128", "solar.table[::20], size=64"),
    ],
    "01b_network": [
        ('datasets.get("sample")', "datasets.get(sample.pets(n=144))"),
        ("data.valid.paths[62]", "data.valid.paths[2]"),
        ("plot_network(learn, 62)", "plot_network(learn, 2)"),
        ("as_input(data, 62)", "as_input(data, 2)"),
        ("[0, 21, 119, 147, 166, 206]", "[0, 21]"),
        ("learn.model, stages[i], maps)", "learn.model, stages[i], maps, steps=2)"),
        ("classifier, numbers)", "classifier, numbers, size=32, steps=2)"),
    ],
    "02_better_model": [
        ("files  = image_files(pets.path)", "files  = image_files(pets.path)[::8]"),
        ("seeds=range(6)", "seeds=range(2)"),
        ("seeds=range(3)", "seeds=range(2)"),
        ("seeds=range(4)", "seeds=range(1)"),
        ("seeds=range(5)", "seeds=range(2)"),
        ("for seed in range(4):", "for seed in range(1):"),
        ("(1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 1e-1, 1)", "(1e-5, 1)"),
        ("num_it=30", "num_it=8"),
        ("world.fit(2, rate, cycle_len=1)", "world.fit(1, rate, cycle_len=1)"),
        ("world.fit(3, list", "world.fit(2, list"),
        ("n=1200, seed=2", "n=48, seed=2"),
    ],
    "02b_squares": [
        ("files = image_files(pets.path)", "files = image_files(pets.path)[::5]"),
        ("some = files[::2]", "some = files"),
        ("size=96, valid_pct=.75", "size=64, valid_pct=.5"),
        ("copies=4 if augment", "copies=1 if augment"),
        ("splits = range(4)", "splits = range(2)"),
        ('"rotate 180": only(max_rotate=180), "min_scale 0.5": only(min_scale=.5),', ""),
        ('"min_scale 0.05": only(min_scale=.05), ', ""),
    ],
    "03_mistakes": [
        ("animals.table.copy()", "animals.table[::8].copy()"),
        ("size=256, valid_pct=.5)\nbetter", "size=64, valid_pct=.5)\nbetter"),
        ("size=256, valid_pct=.5, open_with", "size=64, valid_pct=.5, open_with"),
    ],
    "04_own_data": [
        ("phone.photos(n=60)", "phone.photos(n=20)"),
        ("seeds=range(6)", "seeds=range(2)"),
        ("tuned.fine_tune(4, keep_best=None)", "tuned.fine_tune(1, keep_best=None)"),
        ("cells  = solar.table", "cells  = solar.table[::16]"),
    ],
    "05_trust": [
        ("sample.pets()", "sample.pets(n=288)"),
        ("shelter.photos()", "shelter.photos(animals=24, shots=2)"),
        ("over.fit(30, 3e-3)", "over.fit(2, 3e-3)"),
        ("range(25)", "range(2)"),
        ("range(30)", "range(2)"),
        ("range(100)", "range(3)"),
        ("error=.05, cautious=cautious", "error=.4, cautious=cautious"),
        ("threshold_for(said, error=.05, cautious=True)", "threshold_for(said, error=.4)"),
    ],
    "05b_other_answers": [
        ("pets_together(n=480)", "pets_together(n=96, size=64)"),
        ("for seed in range(3)]", "for seed in [0] * 3]"),
    ],
    "06_from_scratch": [
        ("sample.pets()", "sample.pets(n=120)"),
        ("for seed in range(5)", "for seed in range(2)"),
    ],
}


def is_wanted():
    "Whether $LESSONKIT_SMALL is set, and not 0."
    return os.environ.get("LESSONKIT_SMALL", "0") not in ("", "0")


def shrink(nb, rows):
    "Replace the code of notebook `nb` in place. Raises `ValueError` unless all of it occurs once."
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    for text, smaller in rows:
        count = sum(cell.source.count(text) for cell in code)
        if count != 1:
            raise ValueError(f"tools/small.py: {text!r} occurs {count} times in the notebook; "
                             "it has to occur exactly once")
        for cell in code: cell.source = cell.source.replace(text, smaller)
