"""`python -m lessonkit`: what it prints and where, exit codes, and what is left when it fails."""
import io, json, os, pty, re, select, shutil, signal, subprocess, sys, time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd
import pytest
import torch

from lessonkit.__main__ import DONE, FAILED, main, PARTLY, STOPPED
from lessonkit.core.task import Task
from lessonkit.data import sample
from lessonkit.data.image_data import ImageData
from lessonkit.data.images import image_files
from lessonkit.export.exported import export_model, load_classifier
from lessonkit.model.create import create_model

SINGLE = ["file", "predicted", "probability", "failed"]
KIT = [sys.executable, "-m", "lessonkit"]


def model_for(data):
    model = create_model("test_resnet", data.c, None, size=64, head="linear")
    torch.manual_seed(1)
    torch.nn.init.normal_(model.head[1].weight, std=.3)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return sample.tiny(tmp_path_factory.mktemp("shapes")/"shapes", n=12)


@pytest.fixture(scope="module")
def file(folder, tmp_path_factory):
    "An exported classifier of one label."
    data = ImageData.from_name_re(folder, r"^(.+)_\d+", size=64, bs=8)
    file = tmp_path_factory.mktemp("exported")/"shapes"
    return str(export_model(file, model_for(data), data, show=False))


def exported(folder, labels, name, **options):
    data = ImageData.from_lists(folder, image_files(folder), labels, size=64, bs=8, **options)
    return str(export_model(folder.parent/name, model_for(data), data, show=False))


def run(*argv):
    "Exit code, standard output and standard error of a command in this process."
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", newline=""), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err): code = main([str(a) for a in argv])
    out.flush()
    return code, out.buffer.getvalue().decode(), err.getvalue()


def table_of(text): return pd.read_csv(io.StringIO(text), keep_default_na=False)


# --- as a program

@pytest.mark.slow
def test_as_a_program(file, folder, tmp_path):
    target = tmp_path/"out.csv"
    done = subprocess.run([*KIT, "predict", file, folder, "--csv", target], cwd=tmp_path,
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (DONE, "")
    assert done.stderr == f"predicted 12 of 12 images ({target})\n"
    table = pd.read_csv(target)
    expected = load_classifier(file, "cpu").predict_folder(folder)
    assert [*table] == SINGLE
    assert table.file.tolist() == [str(p) for p in expected.paths]
    assert table.predicted.tolist() == expected.to_frame().predicted.tolist()
    assert table.probability.sub(expected.probs.amax(1).numpy()).abs().max() < 1e-3


def test_help_does_not_wait_for_torch():
    begin = time.monotonic()
    code = "import sys; from lessonkit.__main__ import main\ntry: main(['--help'])\n" \
           "except SystemExit: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "predict" in done.stdout
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize("argv", [[], ["predict"], ["predict", "a"], ["fly", "a"], ["info"],
                                  ["predict", "a", "b", "--batch", "many"],
                                  ["predict", "a", "b", "--precision", "fp8"]])
def test_a_wrong_command_ends_with_2(argv, capsys):
    with pytest.raises(SystemExit) as e: main(argv)
    assert e.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: python -m lessonkit" in captured.err


@pytest.mark.parametrize("argv", [["--help"], ["predict", "--help"], ["info", "--help"]])
def test_help_fits_a_terminal(argv, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as e: main(argv)
    assert e.value.code == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_the_version(capsys):
    import lessonkit
    with pytest.raises(SystemExit) as e: main(["--version"])
    assert e.value.code == 0
    assert capsys.readouterr().out == f"lessonkit {lessonkit.__version__}\n"


def wait_for(master, pattern, seconds=60):
    "What a program has written to its terminal, up to a pattern."
    text, end = "", time.monotonic() + seconds
    while not re.search(pattern, text):
        assert time.monotonic() < end, text
        if select.select([master], [], [], 1)[0]:
            try: text += os.read(master, 4096).decode()
            except OSError: break  # it has ended
    return text


SLOW = """
import sys, time
from lessonkit.data.loader import Loader
item = Loader.item
def slowly(self, i):
    time.sleep(.1)
    return item(self, i)
Loader.item = slowly
from lessonkit.__main__ import main
sys.exit(main())
"""


def start_slowly(*argv, **options):
    "A run that takes .1 s for each image; its standard error is a terminal."
    master, slave = pty.openpty()
    command = [sys.executable, "-c", SLOW, *map(str, argv)]
    process = subprocess.Popen(command, stderr=slave, start_new_session=True, **options)
    os.close(slave)
    return process, master


@pytest.mark.slow
def test_progress_in_a_terminal_and_the_table_elsewhere(file, folder, tmp_path):
    many = tmp_path/"many"
    many.mkdir()
    for i in range(8):
        for path in image_files(folder): shutil.copy(path, many/f"{i}_{path.name}")
    process, master = start_slowly("predict", file, many, "--batch", 4, stdout=subprocess.PIPE)
    wait_for(master, r"predicting: \d+ of 96.* left")
    out, _ = process.communicate(timeout=120)
    assert "predicted 96 of 96" in wait_for(master, "of 96 images")
    os.close(master)
    assert process.returncode == DONE
    assert len(table_of(out.decode())) == 96


@pytest.mark.slow
def test_ctrl_c_leaves_no_table(file, folder, tmp_path):
    target = tmp_path/"out.csv"
    process, master = start_slowly("predict", file, folder, folder, "--batch", 1, "--csv", target)
    time.sleep(.1)
    wait_for(master, "predicting: ")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == STOPPED
    assert "stopped" in wait_for(master, "stopped")
    os.close(master)
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_a_reader_that_has_seen_enough(file, folder):
    command = [*map(str, (*KIT, "predict", file, folder, "--quiet"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == DONE


# --- the table

def test_broken_images_are_in_the_table(file, folder, tmp_path):
    mixed = tmp_path/"mixed"
    shutil.copytree(folder, mixed/"inner")
    (mixed/"empty.png").write_bytes(b"")
    (mixed/"cut.jpg").write_bytes(image_files(folder)[0].read_bytes()[:100])
    code, out, err = run("predict", file, mixed)
    table = table_of(out)
    assert code == PARTLY
    assert "2 images could not be read" in err
    assert [*table] == SINGLE
    assert len(table) == 14
    broken = table[table.failed != ""]
    assert sorted(Path(f).name for f in broken.file) == ["cut.jpg", "empty.png"]
    assert set(broken.predicted) | set(broken.probability) == {""}
    assert len(table_of(run("predict", file, mixed, "--no-recurse")[1])) == 2
    code, out, _ = run("predict", file, mixed/"cut.jpg", mixed/"empty.png", "--probs")
    assert code == PARTLY
    assert table_of(out).predicted.tolist() == ["", ""]


def test_the_threshold(file, folder):
    plain = table_of(run("predict", file, folder)[1])
    middle = plain.probability.median()
    table = table_of(run("predict", file, folder, "--threshold", middle)[1])
    assert [*table] == ["file", "answer", *SINGLE[1:]]
    for row in table.itertuples():
        if abs(row.probability - middle) < 1e-5: continue   # on the border
        assert row.answer == (row.predicted if row.probability > middle else "")
    assert table.predicted.tolist() == plain.predicted.tolist()
    assert set(table_of(run("predict", file, folder, "--threshold", 1)[1]).answer) == {""}


def test_the_threshold_of_the_file(folder, tmp_path):
    data = ImageData.from_name_re(folder, r"^(.+)_\d+", size=64, bs=8)
    file = export_model(tmp_path/"a", model_for(data), data, .999, show=False)
    assert set(table_of(run("predict", file, folder)[1]).answer) == {""}
    table = table_of(run("predict", file, folder, "--threshold", 0)[1])
    assert table.answer.tolist() == table.predicted.tolist()


def test_a_column_for_each_class(file, folder):
    table = table_of(run("predict", file, folder, "--probs")[1])
    assert [*table] == [*SINGLE, "circle", "square", "stripes"]
    assert table[["circle", "square", "stripes"]].sum(axis=1).sub(1).abs().max() < 1e-3


def test_several_labels_and_numbers(folder):
    labels = [["a", "b"], ["b"], []] * 4
    several = exported(folder, labels, "several", kind="multi")
    table = table_of(run("predict", several, folder, "--threshold", 0)[1])
    assert [*table] == ["file", "answer", "predicted", "failed"]
    assert set(table.answer) == {"a;b"}
    numbers = exported(folder, [float(i) for i in range(12)], "numbers")
    code, out, _ = run("predict", numbers, folder, "--probs")
    assert code == DONE
    assert [*table_of(out)] == ["file", "predicted", "failed"]
    code, _, err = run("predict", numbers, folder, "--threshold", .5)
    assert code == FAILED
    assert "threshold" in err


def test_classes_that_are_numbers_stay_numbers(folder, tmp_path):
    digits = exported(folder, [0, 1, 2] * 4, "digits")
    (tmp_path/"broken.png").write_bytes(b"")
    table = table_of(run("predict", digits, folder, tmp_path, "--threshold", 0)[1])
    assert {*table.predicted} - {""} <= {"0", "1", "2"}
    assert table.answer.tolist() == table.predicted.tolist()


def test_odd_names(file, folder, tmp_path):
    names = ["a,b.png", 'a"quote".png', "Ж ü.png", "=1+1.png", "new\nline.png", "-x.png"]
    there = tmp_path/"odd"
    there.mkdir()
    for name in names: shutil.copy(image_files(folder)[0], there/name)
    shutil.copy(image_files(folder)[0], os.fsencode(there) + b"/\xff.png")
    code, out, _ = run("predict", file, there)
    assert code == DONE
    found = [f.rpartition("/")[2] for f in table_of(out).file]
    assert {*names} - {"new\nline.png"} <= {*found}
    assert len(found) == 7


def test_files_and_folders_each_once_in_order(file, folder, tmp_path, monkeypatch):
    files = image_files(folder)
    other = shutil.copy(files[0], tmp_path/"no ending")
    table = table_of(run("predict", file, files[5], folder, files[5], other)[1])
    assert table.file.tolist() == [str(f) for f in (files[5], *files[:5], *files[6:], other)]
    monkeypatch.chdir(folder)
    assert table_of(run("predict", file, ".")[1]).file.tolist() == [f.name for f in files]


# --- what goes wrong

@pytest.mark.parametrize("argv, message", [
    (["predict", "gone", "FOLDER"], "there is no file 'gone'"),
    (["predict", "FOLDER", "FOLDER"], "is a folder"),
    (["predict", "FILE", "gone"], "no file or folder 'gone'"),
    (["predict", "FILE", "EMPTY"], "no images in"),
    (["predict", "FILE", "FOLDER", "--threshold", "80"], "threshold is a finite number"),
    (["predict", "FILE", "FOLDER", "--threshold", "nan"], "threshold is a finite number"),
    (["predict", "FILE", "FOLDER", "--csv", "gone/out.csv"], "no folder 'gone'"),
    (["predict", "FILE", "FOLDER", "--csv", "EMPTY"], "is a folder"),
    (["predict", "FILE", "FOLDER", "--device", "abacus"], "abacus"),
    (["predict", "FILE", "FOLDER", "--batch", "0"], "bs is a whole number"),
    (["info", "gone"], "there is no file 'gone'"),
])
def test_errors_are_one_line(argv, message, file, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"empty").mkdir()
    names = dict(FILE=file, FOLDER=folder, EMPTY=tmp_path/"empty")
    code, out, err = run(*(names.get(a, a) for a in argv))
    assert (code, out) == (FAILED, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert os.listdir(tmp_path) == ["empty"]


def test_damage_is_noticed(file, tmp_path):
    content = bytearray(Path(file).read_bytes())
    content[-5] ^= 1
    (tmp_path/"damaged.safetensors").write_bytes(content)
    for command in (["info"], ["predict"]):
        more = [tmp_path] if command == ["predict"] else []
        code, out, err = run(*command, tmp_path/"damaged.safetensors", *more)
        assert (code, out) == (FAILED, "")
        assert "checksum" in err


def test_a_full_disk_leaves_the_old_table(file, folder, tmp_path, monkeypatch):
    target = tmp_path/"out.csv"
    target.write_text("old")
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    code, _, err = run("predict", file, folder, "--csv", target)
    assert code == FAILED
    assert "No space left" in err
    assert os.listdir(tmp_path) == ["out.csv"]
    assert target.read_text() == "old"


# --- info

def test_info(file):
    code, out, err = run("info", file)
    assert (code, err) == (DONE, "")
    assert out.startswith("shapes.safetensors: test_resnet, one of 3 classes, 64 px")
    assert "  classes: circle, square, stripes\n" in out
    assert "  train_images: 10\n" in out
    about = json.loads(run("info", file, "--json")[1])
    assert about["task"]["classes"] == ["circle", "square", "stripes"]
    assert about["info"]["versions"]["torch"] == torch.__version__


def test_info_prints_no_control_characters(folder, tmp_path):
    "A name from a file must not move the cursor, or ring the bell."
    from dataclasses import replace
    data = ImageData.from_name_re(folder, r"^(.+)_\d+", size=64, bs=8)
    data = replace(data, task=Task("single", ("\33[2J", "b\7", "c\nd")))
    file = export_model(tmp_path/"a", model_for(data), data, show=False)
    out = run("info", file)[1]
    assert re.findall(r"[^\x20-\x7e\n]", out) == []
    assert r"classes: \x1b[2J, b\x07, c\nd" in out
