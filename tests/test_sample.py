"""Drawn data sets: no file of the reader's is lost, all cores draw the same, Ctrl-C leaves none."""
import hashlib, json, os, re, signal, subprocess, sys, time
from pathlib import Path

import pytest

from lessonkit.core import processes
from lessonkit.data import sample

KIT = str(Path(sample.__file__).parents[2])
SMALL = dict(n=12, size=32)
OTHER = dict(n=13, size=32)


def contents(folder):
    "{name: bytes} of all files in a folder and below it; the stamp may differ."
    files = [p for p in Path(folder).rglob("*") if p.is_file() and p.name != "drawn.json"]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.fixture
def folder(tmp_path):
    return sample.pets(tmp_path / "my pets", **SMALL)


# ---- the reader's files

def add_note(folder): (folder / "my notes.txt").write_text("a day's work")
def add_hidden(folder): (folder / ".DS_Store").touch()
def add_photograph(folder): (folder / "Birman_99.jpg").write_bytes(b"my own photograph")
def add_folder(folder): (folder / "models").mkdir()
def retouch(folder): (folder / "pug_1.jpg").write_bytes((folder / "beagle_1.jpg").read_bytes())
def append(folder): (folder / "pug_1.jpg").open("ab").write(b"x")
def edit_table(folder): (folder / "wrong_labels.csv").write_text("file,label,truth\n")
def break_stamp(folder): (folder / "drawn.json").write_text("{")
def change_stamp(folder): (folder / "drawn.json").write_text('{"n": 12, "files": [1]}')
def remove_stamp(folder): (folder / "drawn.json").unlink()


def same_size(folder):
    file = folder / "pug_1.jpg"
    file.write_bytes(file.read_bytes()[:-1] + b"!")


def link(folder):
    "In the place of a drawn picture, with the same content."
    file = folder / "pug_1.jpg"
    elsewhere = folder.parent / "elsewhere.jpg"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)


CHANGES = [add_note, add_hidden, add_photograph, add_folder, retouch, append, same_size, edit_table,
           break_stamp, change_stamp, remove_stamp, link]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_folder_with_something_of_the_readers_stays_as_it_is(folder, change):
    change(folder)
    before, entries = contents(folder), sorted(os.listdir(folder))
    with pytest.raises(FileExistsError, match="not drawn here.*Nothing was touched"):
        sample.pets(folder, **OTHER)
    assert contents(folder) == before
    assert sorted(os.listdir(folder)) == entries
    assert [p for p in os.listdir(folder.parent) if p.startswith(".")] == []


def test_a_set_of_our_own_is_drawn_again(folder, tmp_path):
    sample.pets(folder, n=24, size=32)
    assert len(contents(folder)) == 25
    sample.pets(folder, **SMALL, seed=3)
    assert contents(folder) == contents(sample.pets(tmp_path / "other", **SMALL, seed=3))
    assert sorted(os.listdir(tmp_path)) == ["my pets", "other"]


def test_a_file_that_arrives_while_we_draw_is_kept(folder, monkeypatch):
    "The set is looked at once more, right before it is replaced."
    write_wrong = sample._write_wrong
    def save_meanwhile(*args):
        add_note(folder)
        return write_wrong(*args)
    monkeypatch.setattr(sample, "_write_wrong", save_meanwhile)
    before = contents(folder)
    with pytest.raises(FileExistsError, match="my pets.* has files .*: my notes.txt. Nothing"):
        sample.pets(folder, **OTHER)
    assert contents(folder) == before | {"my notes.txt": b"a day's work"}
    assert os.listdir(folder.parent) == ["my pets"]


def test_a_stamp_that_names_files_elsewhere_deletes_none(folder, tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    digest = hashlib.sha256(b"mine").hexdigest()
    stamp = json.loads((folder / "drawn.json").read_text())
    stamp["files"] |= {"../precious.txt": [4, digest], str(tmp_path / "precious.txt"): [4, digest]}
    (folder / "drawn.json").write_text(json.dumps(stamp))
    sample.pets(folder, **OTHER)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_set_whose_stamp_names_no_files_is_found(folder):
    "As the first versions wrote it. But it doesn't say which files are ours."
    stamp = json.loads((folder / "drawn.json").read_text())
    del stamp["files"]
    (folder / "drawn.json").write_text(json.dumps(stamp))
    before = contents(folder)
    assert sample.pets(folder, **SMALL) == folder
    with pytest.raises(FileExistsError, match="Nothing was touched"): sample.pets(folder, **OTHER)
    assert contents(folder) == before


def test_a_linked_folder_stays_a_link(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    sample.pets(tmp_path / "link", **OTHER)
    assert (tmp_path / "link").is_symlink()
    assert len(contents(folder)) == 14


def test_the_working_folder_is_not_replaced(folder, monkeypatch):
    for here in (folder, folder / "deep"):
        here.mkdir(exist_ok=True)
        monkeypatch.chdir(here)
        before = contents(folder)
        with pytest.raises(FileExistsError, match="working folder"): sample.pets(folder, **OTHER)
        assert contents(folder) == before
    assert sample.pets("beside", **SMALL) == Path("beside")


def test_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for draw in (sample.tiny, sample.odd_files, lambda path: sample.pets(path, **SMALL)):
        draw(f"~/{draw.__name__.strip('<>')}")
    assert sorted(os.listdir(tmp_path)) == ["lambda", "odd_files", "tiny"]
    assert len(sample.wrong_labels("~/lambda").columns) == 3


@pytest.mark.parametrize("options, name", [
    (dict(), "circle_0.jpg"), (dict(layout="folders", n=15), "train/square/1.jpg")])
@pytest.mark.parametrize("mine", [b"my drawing", b""])
def test_tiny_writes_over_nothing(tmp_path, options, name, mine):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(mine)
    with pytest.raises(FileExistsError, match=f"{name}. Nothing was written"):
        sample.tiny(tmp_path, **options)
    assert contents(tmp_path) == {name: mine}


@pytest.mark.parametrize("draw, name", [
    (sample.tiny, "stripes_0.jpg"), (sample.odd_files, "text.jpg")])
def test_links_are_not_followed_to_write(tmp_path, draw, name):
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / name).symlink_to(tmp_path / "not there")
    with pytest.raises(FileExistsError, match=name): draw(tmp_path / "drawn")
    assert os.listdir(tmp_path) == ["drawn"]


def test_drawing_twice_changes_nothing(tmp_path):
    for draw in (sample.tiny, sample.odd_files):
        draw(tmp_path)
        (tmp_path / "notes.txt").write_text("mine")
        before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
        draw(tmp_path)
        assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


# ---- a set that lacks files

def test_missing_and_empty_pictures_are_drawn_again(folder):
    before = contents(folder)
    (folder / "pug_1.jpg").unlink()
    (folder / "beagle_1.jpg").write_bytes(b"")
    (folder / "wrong_labels.csv").unlink()
    with pytest.warns(UserWarning, match="2 of 12 pictures"): sample.pets(folder, **SMALL)
    assert contents(folder) == before


# ---- several processes

@pytest.fixture
def helpers(monkeypatch):
    "Helpers are started at once; returns the list of their processes."
    started, start = [], processes._start_helper
    def start_and_tell(func):
        started.append(start(func))
        return started[-1]
    monkeypatch.setattr(processes, "_start_helper", start_and_tell)
    original = processes.call_for_each
    monkeypatch.setattr(sample, "call_for_each", lambda *args, **options: original(
        *args, **options, processes=3, after=0, worth=0))
    return started


@pytest.mark.slow
def test_helpers_draw_the_same_to_the_last_byte(helpers, tmp_path, monkeypatch):
    several = sample.pets(tmp_path / "several", n=360, size=160)
    assert len(helpers) == 2
    assert [p.returncode is None for p in helpers] == [False, False]
    monkeypatch.setattr(processes, "_python", lambda: None)
    one = sample.pets(tmp_path / "one", n=360, size=160)
    assert len(helpers) == 2
    assert contents(several) == contents(one)
    assert (several / "drawn.json").read_bytes() == (one / "drawn.json").read_bytes()


SCRIPT = """\
import os, sys, threading
from lessonkit.core import processes
from lessonkit.data import sample
print("begun", flush=True)          # once: a helper doesn't run this script
original, start = processes.call_for_each, processes._start_helper
def start_and_tell(func):
    helper = start(func)
    print("helper", helper.pid, flush=True)
    return helper
processes._start_helper = start_and_tell
sample.call_for_each = lambda *args, **options: original(
    *args, **options, processes=2, after=0, worth=0)
try: sample.pets(sys.argv[1], n=int(sys.argv[2]))
except KeyboardInterrupt: print("interrupted", flush=True)
"""


def start_script(tmp_path, n):
    "A script without `if __name__ == '__main__'` that draws pets; its process, a helper's number."
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = subprocess.Popen(
        [sys.executable, script, tmp_path / "set", str(n)], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.STDOUT, start_new_session=True,
        env=os.environ | {"PYTHONPATH": KIT, "PYTHONSAFEPATH": "1"})
    assert run.stdout.readline() == "begun\n"
    word, helper = run.stdout.readline().split()
    assert word == "helper"
    return run, int(helper)


def is_running(pid):
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"


def ends_soon(pid):
    "Within a minute: the machine may be busy."
    for _ in range(600):
        if not is_running(pid): return True
        time.sleep(.1)
    return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@needs_proc
@pytest.mark.parametrize("wait", [0, 3])
@pytest.mark.slow
def test_ctrl_c_leaves_no_folder_and_no_process(tmp_path, wait):
    "As in a terminal, where all processes of the program get the signal."
    run, helper = start_script(tmp_path, 100_000)
    time.sleep(wait)
    os.killpg(run.pid, signal.SIGINT)
    output, _ = run.communicate(timeout=60)
    assert output == "interrupted\n"
    assert not is_running(helper)
    assert sorted(os.listdir(tmp_path)) == ["script.py"]


@needs_proc
@pytest.mark.slow
def test_no_helper_outlives_a_program_that_is_killed(tmp_path):
    run, helper = start_script(tmp_path, 100_000)
    time.sleep(2)
    run.kill()
    run.communicate(timeout=60)
    assert ends_soon(helper)
    assert not (tmp_path / "set").exists()


@needs_proc
@pytest.mark.slow
def test_a_helper_that_is_killed_is_not_missed(tmp_path):
    run, helper = start_script(tmp_path, 240)
    time.sleep(2)
    os.kill(helper, signal.SIGKILL)
    output, _ = run.communicate(timeout=300)
    assert (output, run.returncode) == ("", 0)
    assert len(contents(tmp_path / "set")) == 241


# ---- progress

PROGRESS = """\
import sys
from lessonkit.core import progress
from lessonkit.data import sample
line = progress.ProgressLine
sample.ProgressLine = lambda *args: line(*args, after=0, every=0)
sample.pets(sys.argv[1], n=12, size=32, show=sys.argv[2] == "show")
print("done")
"""


def drawn_in_terminal(tmp_path, show):
    "What a terminal gets."
    import pty   # not on Windows
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", PROGRESS, tmp_path / "set", show]
    env = os.environ | {"PYTHONPATH": KIT}
    run = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    output = b""
    while run.poll() is None or b"done" not in output:
        try: output += os.read(ours, 1000)
        except OSError: break   # its end, on Linux
    os.close(ours)
    return output.decode()


@pytest.mark.skipif(os.name == "nt", reason="needs a terminal")
def test_progress_in_a_terminal(tmp_path):
    output = drawn_in_terminal(tmp_path, "show")
    assert re.search(r"\r\x1b\[Kdrawing pets, this once: 3 of 12, \d+ s left\r\x1b\[K", output)
    assert output.endswith("\r\x1b[Kdone\r\n")


@pytest.mark.skipif(os.name == "nt", reason="needs a terminal")
@pytest.mark.slow
def test_no_progress_unless_it_is_wanted(tmp_path):
    assert drawn_in_terminal(tmp_path, "hide") == "done\r\n"


def test_no_progress_in_a_file(tmp_path):
    command = [sys.executable, "-c", PROGRESS, tmp_path / "set", "show"]
    run = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONPATH": KIT})
    assert (run.stdout.split(), run.stderr) == ([b"done"], b"")


@pytest.mark.slow
def test_progress_in_a_notebook(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    from nbformat.v4 import new_code_cell, new_notebook
    code = PROGRESS.replace("sys.argv[1]", repr(str(tmp_path / "set")))
    code = code.replace('sys.argv[2] == "show"', "True")
    notebook = new_notebook(cells=[new_code_cell(code)])
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=300).execute()
    shown, printed = notebook.cells[0].outputs
    assert (shown.output_type, printed.text) == ("display_data", "done\n")
    assert shown.data == {"text/plain": "", "text/html": ""}   # it is gone when all are drawn
