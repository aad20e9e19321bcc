"""Answers to lesson 4's exercises, right and wrong; test_exercises.py tries them."""
import pytest

from lessonkit.course.exercises import load_exercises
from lessonkit.data.corrections import Corrections
from lessonkit.results.intervals import mcnemar_p, wilson_interval

RIGHT = {
    "which-factory": [
        ["from_folder", "from_name_re", "from_csv", "from_name_func"],
        "ImageData.from_folder, ImageData.from_name_re, ImageData.from_csv, "
        "ImageData.from_name_func",
    ],
    "burst": [
        lambda name: name[:17],
        lambda name: name.rsplit("_", 1)[0] + name.rsplit("_", 1)[1][:4],
        lambda name: int(name[4:12]) * 10_000 + int(name[13:17]),
    ],
    "no-mirror": [[1, 3, 5], {1, 3, 5}, "135".replace("", " ").split()],
    "how-many-valid": [400, 384, 384.16],
    "coin": [mcnemar_p(9, 2), .065, 6.54],
    "clean-error": [.12, 12, 24 / 200],
    "journal": [
        ["right", "dropped", "bridge"],
        {"A": "right", "B": "dropped", "C": "bridge"},
        "right drop bridge",
    ],
    "strangers": [(.5, 3 / 7), [.5, .43], (50, 42.9)],
    "in-the-file": [["photos", "journal"], "photos, journal of corrections"],
}
WRONG = { # answer, and a word of the reason
    "which-factory": [
        (["from_df", "from_name_re", "from_csv", "from_name_func"], "folder of its own"),
        (["from_folder", "from_name_func", "from_csv", "from_name_func"], "pattern is shorter"),
        (["from_folder", "from_name_re", "from_df", "from_name_func"], "read the table first"),
        (["from_folder", "from_name_re", "from_csv", "from_name_re"], "every hour"),
        ("from_folder", "four names"),
    ],
    "burst": [
        (lambda name: name, "seconds may not count"),
        (lambda name: name[:16], "minute has to count"),
        (lambda name: name[:12], "minute has to count"),
        (lambda name: name[4:12] + name[15:17], "hour has to count"),
        (lambda name: name[13:17], "date has to count"),
        (lambda name: 1, "one group"),
        (lambda name: name.name[:17], "AttributeError"),
    ],
    "no-mirror": [
        ([2, 4], "asks for the others"),
        ([1, 3], "looks like the other"),
        ([1, 2, 3, 5], "mushroom"),
        ([1, 3, 4, 5], "rotten apple"),
        ([6], "1 to 5"),
    ],
    "how-many-valid": [
        (100, "8 points"),
        (200, "four times as many"),
        (600, "error rate of 50%"),
        (50, "11.1 points each way: too wide"),
        (1000, "2.5 points each way: too narrow"),
    ],
    "coin": [
        (67 / 2048, "one direction only"),
        (9 / 11, "share of gains"),
        (7 / 60, "accuracy rose"),
        (.05, "49 images"),
    ],
    "clean-error": [
        (.11, "only seemed right"),
        (.15, "labels as they were"),
        (22 / 192, "Nothing was dropped"),
        (24, "share of 200"),
    ],
    "journal": [
        (["hut", "dropped", "bridge"], "taken back"),
        (["left", "dropped", "bridge"], "still counts"),
        (["right", "dropped", "dropped"], "last line"),
        (["right", "dropped"], "three words"),
    ],
    "strangers": [
        ((.5, .2), "leaves out the strangers"),
        ((.5, 1 / 7), "two strangers"),
        ((3 / 7, .5), "way around"),
        ((.3, 3 / 7), "no stranger"),
    ],
    "in-the-file": [
        (["photos"], "One more"),
        (["photos", "threshold"], "don't know"),
        (["photos", "names"], "class 3"),
        (["weights"], "no answer at all"),
    ],
}


def test_the_numbers_are_true():
    "What questions and solutions say about the kit is so."
    assert mcnemar_p(9, 2) == pytest.approx(2 * (1 + 11 + 55) / 2048)
    assert str(wilson_interval(80, 400)).startswith("20.0% (16.4% to 24.2%")
    assert "20.0% (16.4% to 24.2%)" in load_exercises()["how-many-valid"].solution
    for n, points in ((100, .08), (40, .12)):
        interval = wilson_interval(n / 5, n)
        assert (interval.high - interval.low) / 2 == pytest.approx(points, abs=.005)


def test_the_journal_of_the_question(tmp_path):
    journal = Corrections(tmp_path / "journal.csv", tmp_path)
    journal.relabel("left/A.jpg", "right")
    journal.drop("hut/B.jpg")
    journal.relabel("left/A.jpg", "hut")
    assert journal.undo().label == "hut"
    journal.drop("bridge/C.jpg")
    assert journal.undo().file == "bridge/C.jpg"
    assert {name: type(edit).__name__ for name, edit in journal.current.items()} == {
        "left/A.jpg": "Relabel", "hut/B.jpg": "Drop"}
    assert journal.current["left/A.jpg"].label == "right"
