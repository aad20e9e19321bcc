"""Damaged image files never crash, hang or exhaust memory: each is read, or refused with a reason.

They are made by tests/mutants.py and opened, trained on and predicted by child processes, which
tests/fuzzing.py watches. `make nightly` takes 10,000 of them.
"""
import sys

import pytest

pytest.importorskip("resource", reason="processes are limited as in POSIX")
import fuzz_child, fuzzing, mutants
from tiers import few

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measures memory as in Linux")

PARTS = [(0, 300), *((start, 970) for start in range(300, 10_000, 970))]   # 10,000 files


@pytest.mark.slow
@pytest.mark.parametrize("start, n", few(1, PARTS))
def test_damaged_images_are_read_or_refused(tmp_path, start, n):
    table, problems = fuzzing.count(range(start, start + n), tmp_path / "files")
    print(fuzzing.summary(table).round(2).to_string())
    assert problems == []
    assert len(table) == n
    refused = table.reason != ""
    assert .2 < refused.mean() < .9   # else the damage is too small or too large to find much


def test_originals_are_read(tmp_path):
    "So what is refused is refused for its damage. Only ICO isn't among the formats of the kit."
    for name, content in mutants.originals().items():
        file = tmp_path / f"a.{name}"
        file.write_bytes(content)
        reason = fuzz_child.open_both_ways(file)
        assert ("format ICO" in reason) if name == "ico" else reason == "", name


def test_mutants_are_the_same_each_time_and_differ():
    files = [mutants.mutant(number) for number in range(300)]
    assert files == [mutants.mutant(number) for number in range(300)]
    unchanged = [name for name, _, content in files if content == mutants.originals()[name]]
    assert len(unchanged) < 30
    assert {name for name, _, _ in files} == set(mutants.originals())


# ---- each kind of failure is found: code that makes the kit fail with one of the files

FAIL = """
from lessonkit.data import images, loader
def fail(path):
    if path.name.startswith("000003"): {code}
def failing(original):
    def opened(path, *args, **options):
        fail(path)
        return original(path, *args, **options)
    return opened
{module}.open_pixels = failing({module}.open_pixels)
"""


@pytest.fixture
def files(tmp_path):
    "A folder with six files that can be read."
    folder = tmp_path / "files"
    folder.mkdir()
    content = mutants.originals()["png"]
    for number in range(6): (folder / f"{number:06}.png").write_bytes(content)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("code, problem", few(2, [
    ("__import__('ctypes').string_at(0)", "it crashes (SIGSEGV)"),
    ("__import__('signal').alarm(1); __import__('time').sleep(60)", "it hangs"),
    ("__import__('os').abort()", "it crashes (SIGABRT)"),
    ("raise OSError('full')", "another error than ImageReadError"),
    ("raise images.ImageReadError(f'{path}: MemoryError')", "there was no memory left"),
    ("raise images.ImageReadError('no name')", "its name isn't in the reason"),
    ("(b'a' * 2**29).decode()", "it takes 1024 MB"),
]), ids=["segfault", "hang", "abort", "error", "no memory", "no name", "memory"])
def test_failures_of_a_file_are_found(files, code, problem):
    rows = fuzzing.open_files(files, FAIL.format(code=code, module="images"))
    found = {row["file"]: row["problem"] for row in rows}
    assert len(found) == 6
    assert {name for name, words in found.items() if words} == {"000003.png"}
    assert problem in found["000003.png"]


@pytest.mark.nightly
@pytest.mark.parametrize("code, problem", [
    ("raise images.ImageReadError('full')", "prediction doesn't refuse what can't be opened, or"),
    ("__import__('ctypes').string_at(0)", "it crashes (SIGSEGV)"),
], ids=["refused", "segfault"])
def test_failures_of_training_and_prediction_are_found(tmp_path, monkeypatch, code, problem):
    monkeypatch.setattr(mutants, "mutant", lambda n: ("png", "png", mutants.originals()["png"]))
    folder = tmp_path / "files"
    table, problems = fuzzing.count(range(6), folder, FAIL.format(code=code, module="loader"))
    assert (table.problem == "").all()
    assert any(problem in words for words in problems), problems
