"""The wheel on a machine like Kaggle's, and beside packages as old or new as Colab's.

tools/sandboxes.py makes both. Lessons begin with their first cell: on Kaggle it installs the kit
from an attached wheel. The lessons take minutes and are for `make nightly`.
"""
import os, re, shutil, sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

pytest.importorskip("fcntl", reason="needs the users and permissions of POSIX")
import first_cells, kit_wheel, sandboxes
from lessonkit.data import phone, sample

ROOT = Path(__file__).resolve().parents[1]
LESSONS = sorted(path for number in ("01", "04")
                 for path in (ROOT / "nbs/lessons").glob(f"{number}_*.ipynb"))
lessons = pytest.mark.parametrize("path", LESSONS, ids=[path.stem for path in LESSONS])
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return kit_wheel.build(tmp_path_factory.mktemp("dist"))


# ---- Kaggle

@pytest.fixture(scope="module", params=[
    pytest.param(True, id="jail", marks=pytest.mark.skipif(
        not sandboxes.can_jail(), reason="only root on Linux may have its own file system")),
    pytest.param(False, id="permissions", marks=pytest.mark.skipif(
        os.getuid() == 0, reason="root may write everywhere"))])
def kaggle(request, wheel, tmp_path_factory):
    "A sandbox with two attached folders: the wheel, and images in folders of their classes."
    folder = tmp_path_factory.mktemp("kaggle")
    for path in sample.tiny(folder / "flat", n=40).glob("*.*"):
        target = folder / "photos" / path.name.split("_")[0]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    inputs = {"kit": wheel.parent, "photos": folder / "photos"}
    found = sandboxes.Kaggle(folder / "sandbox", inputs, jailed=request.param)
    yield found
    found.release()


def test_kaggle_is_closed(kaggle):
    "Nothing but the working folder and /tmp can be written to, and nothing else is reached."
    out = kaggle.run("""
import os, sys, urllib.request
from importlib.util import find_spec
from pathlib import Path
def fails(work):
    try: work()
    except OSError: return True
attached = Path(sys.argv[1])
places = [attached, attached / "photos", Path.home()]
print(all(fails((place / "new").touch) for place in places), os.getuid() != 0,
      fails(lambda: urllib.request.urlopen("http://pypi.org", timeout=5)), find_spec("lessonkit"))
Path("new").touch()
""", kaggle.attached)
    assert out.split() == ["True", "True", "True", "None"]


def test_the_repository_is_out_of_reach_on_kaggle(kaggle):
    if not kaggle.jailed: pytest.skip("permissions hide nothing")
    code = "import sys; from pathlib import Path; print(Path(sys.argv[1]).exists())"
    assert kaggle.run(code, ROOT / "nbs").strip() == "False"


TRAIN = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("always")
from lessonkit.all import *
from lessonkit.core.files import cache_dir
photos = Path(sys.argv[1]) / "photos"
before = sorted((p, p.stat().st_mtime_ns) for p in photos.rglob("*"))
data = ImageData.from_folder(photos, valid_pct=.25, size=32, bs=8)
learn = Learner(data, weights=None, arch="resnet18", show=False)
learn.fit_one_cycle(2)
learn.save("first")
learn.load("first")
learn.export("exported")
preds = load_classifier("exported.safetensors").predict_folder(photos)
assert sorted((p, p.stat().st_mtime_ns) for p in photos.rglob("*")) == before
assert cache_dir() == cache_dir()   # one that may not last, with a warning
print(f"predicted {len(preds)}, refused {len(preds.failed)}")
"""


def test_photos_that_cannot_be_written_to_are_trained_on(kaggle):
    first_cell = first_cells.cells(ROOT, "nbs/lessons/01_pets.ipynb")[1]
    out = kaggle.run(first_cell + TRAIN, kaggle.attached)
    assert out.splitlines()[-1] == "predicted 40, refused 0"
    assert out.count("no cache folder") == 1


@pytest.mark.nightly
@lessons
def test_lessons_run_on_kaggle(kaggle, path):
    assert "final error rate" in kaggle.notebook(path, in_small=True)


@pytest.mark.nightly
@pytest.mark.parametrize("path", LESSONS[1:], ids=[path.stem for path in LESSONS[1:]])
def test_lesson_4_takes_photos_that_are_attached(wheel, tmp_path, path):
    "The reader's folder can't be written to, and has neither answers nor a test folder."
    if os.getuid() == 0 and not sandboxes.can_jail(): pytest.skip("root may write everywhere")
    trail = phone.photos(tmp_path / "hike", n=20, show=False) / "trail"
    kaggle = sandboxes.Kaggle(tmp_path / "sandbox", {"kit": wheel.parent, "trail": trail})
    nb = nbformat.read(path, 4)
    line = re.compile("^mine +=.*", re.M)
    cell = next(cell for cell in nb.cells if line.search(cell.source))
    cell.source = line.sub(f'mine = "{kaggle.attached}/trail"', cell.source)
    nbformat.write(nb, tmp_path / path.name)
    try: out = kaggle.notebook(tmp_path / path.name, in_small=True)
    finally: kaggle.release()
    assert "final error rate" in out


# ---- Colab

@pytest.fixture(scope="module")
def colab(wheel, tmp_path_factory):
    if sys.version_info[:2] > (3, 12):
        pytest.skip("Colab's NumPy has no wheel for this Python")
    try: return sandboxes.Colab(tmp_path_factory.mktemp("colab") / "sandbox", wheel)
    except RuntimeError as e:
        if os.environ.get("CI") == "true": raise
        pytest.skip(f"pip can't install Colab's packages here: {str(e)[-200:]}")


@pytest.mark.nightly
def test_colab_has_its_own_versions(colab):
    out = colab.run("""
import ipywidgets, numpy, pandas, PIL, lessonkit
print(numpy.__version__, pandas.__version__, PIL.__version__, ipywidgets.__version__)
print(lessonkit.__file__)
""").splitlines()
    names = "numpy", "pandas", "pillow", "ipywidgets"
    assert out[0].split() == [sandboxes.COLAB[name] for name in names]
    assert Path(out[1]).is_relative_to(colab.folder)


WIDGETS = r"""
from importlib import import_module
from pathlib import Path
from lessonkit.all import *
from lessonkit.data import sample
path = sample.tiny(Path("tiny"), n=40)
data = ImageData.from_name_re(path, r"^(.+)_\d+", size=32, bs=8)
learn = Learner(data, weights=None, arch="resnet18", show=False)
with LivePlot(learn): learn.fit_one_cycle(2)
try_it = TryIt(learn)
made = [try_it, LRPicker(learn.lr_find(num_it=20)), ImageCleaner(learn, journal="edits.csv")]
views = ["application/vnd.jupyter.widget-view+json" in w._repr_mimebundle_() for w in made]
try_it.show(data.valid.paths[0])
print(views, import_module("ipywidgets").__version__)
"""


@pytest.mark.nightly
def test_widgets_are_made_with_colabs_ipywidgets(colab, tmp_path):
    "In a kernel; tests/test_widgets_browser.py clicks on them, with version 8."
    path = tmp_path / "widgets.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(WIDGETS)]), path)
    out = colab.notebook(path, MPLBACKEND="agg")
    assert f"[True, True, True] {sandboxes.COLAB['ipywidgets']}" in out


@pytest.mark.nightly
@lessons
def test_lessons_run_on_colab(colab, path):
    assert "final error rate" in colab.notebook(path, in_small=True)
