"""Cleaning labels: which images are shown first, and decisions that nothing can lose."""
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lessonkit.core.task import Task
from lessonkit.data import sample
from lessonkit.data.corrections import Corrections, Drop, Relabel
from lessonkit.data.image_data import ImageData
from lessonkit.data.images import image_files
from lessonkit.learner import Learner
from lessonkit.results.cleaning import (
    Candidate, cleaning_candidates, CleaningSession, CLEANING_ORDERS,
)
from lessonkit.results.preds import Preds
from lessonkit.results.selections import most_uncertain, top_losses

PAT = r"^(.+)_\d+"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    "Tiny shapes: two are relabeled by their names, and two are saved twice."
    folder = sample.tiny(tmp_path_factory.mktemp("tiny") / "flat", n=90)
    files = {name: sorted(folder.glob(f"{name}_*")) for name in ("circle", "square", "stripes")}
    wrong = {files["circle"][0]: "square_900", files["square"][3]: "stripes_901"}
    wrong = [f.rename(f.with_stem(name)) for f, name in wrong.items()]
    for i, f in enumerate(files["stripes"][:2]): shutil.copy(f, f.with_stem(f"stripes_95{i}"))
    return folder, wrong


@pytest.fixture(scope="module")
def learn(planted, tmp_path_factory):
    data = ImageData.from_name_re(planted[0], PAT, size=64, bs=16, valid_pct=.4)
    learn = Learner(data, device="cpu", model_dir=tmp_path_factory.mktemp("models"), show=False)
    learn.fit_one_cycle(1)
    return learn


def random_preds(kind, n=40, seed=0):
    "Predictions of no model, for files that don't exist."
    rng = torch.Generator().manual_seed(seed)
    task = dict(single=Task("single", ("a", "b", "c")), multi=Task("multi", ("a", "b", "c")),
                number=Task("number"))[kind]
    logits = 2 * torch.randn(n, task.n_out, generator=rng)
    targets = dict(single=torch.randint(0, 3, (n,), generator=rng),
                   multi=torch.randint(0, 2, (n, 3), generator=rng).float(),
                   number=torch.randn(n, 1, generator=rng))[kind]
    paths = tuple(Path(f"/data/{i}.jpg") for i in range(n))
    return Preds(task.probabilities(logits), targets, task.losses(logits, targets), paths, task)


# ---- candidates

@pytest.mark.parametrize("kind", ["single", "multi", "number"])
def test_candidates_are_the_selections(kind):
    preds = random_preds(kind)
    orders = {"top losses": lambda p: top_losses(p)[1], "most uncertain": most_uncertain}
    assert {*orders, "near duplicates"} == set(CLEANING_ORDERS)
    for by, order in orders.items():
        if by == "most uncertain" and kind != "single":
            with pytest.raises(ValueError, match="for predictions of kind 'single'"):
                cleaning_candidates(preds, by)
            continue
        at, found = order(preds).tolist(), cleaning_candidates(preds, by)
        assert [c.path for c in found] == [preds.paths[i] for i in at]
        assert [c.label for c in found] == [preds.task.decode(preds.targets[i]) for i in at]
        assert [c.predicted for c in found] == [preds.task.decode(preds.probs[i]) for i in at]
        assert [c.loss for c in found] == preds.losses[at].tolist()
        if kind == "single":
            assert [c.probability for c in found] == preds.probs[at].max(1).values.tolist()
        else: assert {c.probability for c in found} == {None}
        assert cleaning_candidates(preds, by, k=3) == found[:3]


def test_without_labels_there_is_no_loss_to_sort_by():
    preds = replace(random_preds("single"), targets=None, losses=None)
    with pytest.raises(ValueError, match="these predictions have none"): cleaning_candidates(preds)
    found = cleaning_candidates(preds, "most uncertain")
    assert {(c.label, c.loss) for c in found} == {(None, None)}


def test_wrong_labels_come_first(planted, learn):
    worst = [cleaning_candidates(learn, which=which, k=3) for which in ("valid", "train")]
    assert {c.path for found in worst for c in found} >= set(planted[1])


@pytest.mark.parametrize("which", ["valid", "train"])
def test_copies_are_found_wherever_they_are(learn, which):
    found = cleaning_candidates(learn, "near duplicates", which, near=0)
    sides = dict(train=learn.data.train.paths, valid=learn.data.valid.paths)
    other = set(sides["train" if which == "valid" else "valid"])
    twins = {(c.path.name, c.twin.name) for c in found}
    for i, original in enumerate(sorted(learn.data.path.glob("stripes_*"))[:2]):
        copy = original.with_stem(f"stripes_95{i}")
        for path, twin in ((copy, original), (original, copy)):
            across = path in sides[which] and twin in other
            together = path in sides[which] and twin in sides[which] and path == copy
            assert ((path.name, twin.name) in twins) == (across or together)
    for c in found:
        assert c.path in sides[which]
        assert ("one of the" in c.reason) == (c.twin in other)
        labels = c.path.name.split("_")[0], c.twin.name.split("_")[0]
        assert (c.label, c.twin_label) == labels


def test_two_labels_for_one_image_come_first(tmp_path):
    folder = sample.tiny(tmp_path / "flat", n=48)
    circles, squares = sorted(folder.glob("circle_*")), sorted(folder.glob("square_*"))
    shutil.copy(circles[0], folder / f"circle_90{circles[0].suffix}")
    conflict = folder / f"circle_91{squares[0].suffix}"
    shutil.copy(squares[0], conflict)
    data = ImageData.from_name_re(folder, PAT, size=32, bs=16, valid_idx=[5, 20, 40])
    learn = Learner(data, "resnet18", weights=None, device="cpu", model_dir=tmp_path, show=False)
    first, second, *others = cleaning_candidates(learn, "near duplicates", "train", near=0)
    assert {(first.path, first.twin), (second.path, second.twin)} == {
        (conflict, squares[0]), (squares[0], conflict)}
    assert all("another label" in c.reason for c in (first, second))
    assert {first.label, first.twin_label} == {"circle", "square"}
    assert [(c.path.stem, c.twin) for c in others] == [("circle_90", circles[0])]


# ---- sessions

def test_from_the_first_look_to_a_better_model(planted, learn, tmp_path):
    folder, wrong = planted
    truth = dict(zip(wrong, ("circle", "square")))
    journal = tmp_path / "corrections.csv"
    contents = {f: f.read_bytes() for f in image_files(folder)}
    for which in ("valid", "train"):
        session = CleaningSession.of(learn, which=which, journal=journal, k=5)
        for candidate in session.candidates:
            session.go_to(session.candidates.index(candidate))
            right = truth.get(candidate.path)
            if right is None: session.keep()
            else: session.relabel(right)
        assert session.progress.done == 5
    data = learn.data.corrected(journal)
    found = {path: data.label(y) for loader in (data.train, data.valid)
             for path, y in zip(loader.paths, loader.targets)}
    assert found == {f: truth.get(f, f.name.split("_")[0]) for f in contents}
    assert (data.originals.relabeled, data.originals.dropped) == (2, 0)
    before = learn.get_preds()
    fresh = Learner(learn.data, device="cpu", model_dir=tmp_path, show=False)
    fresh.fit_one_cycle(1)
    fresh.set_data(data)
    targets = [data.label(y) for y in fresh.get_preds().targets]
    assert targets == [truth.get(p, p.name.split("_")[0]) for p in before.paths]
    assert {f: f.read_bytes() for f in image_files(folder)} == contents


def test_keeping_a_label_that_was_corrected_does_not_take_it_back(planted, learn, tmp_path):
    "The label that you see is the one that you keep, whatever the file says."
    journal = Corrections(tmp_path / "corrections.csv", planted[0])
    file = learn.data.valid.paths[0]
    actual = learn.data.label(learn.data.valid.targets[0])
    new = next(c for c in learn.data.classes if c != actual)
    journal.relabel(file, new, before=actual)
    data = learn.data.corrected(journal)
    shown = Candidate(file, data.label(data.valid.targets[0]))
    session = CleaningSession([shown], data.classes, journal)
    assert (session.label, session.edit.before) == (new, actual)
    session.keep()
    assert session.progress.kept == 1
    assert data.corrected(journal).valid.targets.equal(data.valid.targets)
    session.undo(), session.undo()
    assert data.corrected(journal).valid.targets.equal(learn.data.valid.targets)


@pytest.mark.parametrize("seed", range(5))
def test_any_clicks_in_any_session_are_remembered(tmp_path, seed):
    "Random decisions in three lists of one data set, with new sessions in between."
    rng = random.Random(seed)
    preds = random_preds("single", 12)
    lists = [cleaning_candidates(preds), cleaning_candidates(preds, "most uncertain"),
             cleaning_candidates(preds, k=4)]
    journal = Corrections(tmp_path / "corrections.csv", "/data")
    session, decided, history = None, {}, []
    for _ in range(120):
        if session is None or rng.random() < .05:
            session = CleaningSession(rng.choice(lists), "abc", journal)
        if rng.random() < .1: session.show(rng.choice(lists))
        click = rng.choice(["next", "back", "keep", "relabel", "drop", "undo"])
        if click in ("next", "back"):
            before = session.position
            assert getattr(session, click)() == session.current
            assert abs(session.position - before) <= 1
            continue
        if click == "undo":
            edit = session.undo()
            assert edit == (history.pop() if history else None)
            if edit and edit.file in [c.path.name for c in session.candidates]:
                assert session.current.path.name == edit.file
        elif click == "relabel": history.append(session.relabel(rng.choice("abc")))
        elif click == "drop": history.append(session.drop())
        else:
            history.append(session.keep())
            assert history[-1].label == history[-1].before == session.current.label
        decided = {edit.file: edit for edit in history}
        assert journal.current == decided
        for i, candidate in enumerate(session.candidates[:3]):
            session.go_to(i)
            assert session.edit == decided.get(candidate.path.name)
            relabeled = isinstance(session.edit, Relabel)
            assert session.label == (session.edit.label if relabeled else candidate.label)
        edits = [decided.get(c.path.name) for c in session.candidates]
        progress = session.progress
        assert progress.done == sum(edit is not None for edit in edits)
        assert progress.dropped == sum(isinstance(edit, Drop) for edit in edits)
        session.go_to(rng.randrange(len(session.candidates)))
    new = CleaningSession(lists[0], "abc", Corrections(journal.file, "/data"))
    first = [c.path.name for c in new.candidates if c.path.name not in decided]
    assert new.current.path.name == (first or [new.candidates[0].path.name])[0]
