"""The import hook of the dialects: in IPython, in scripts and in a real kernel.

Most tests use small dialects in the place of the real ones, which take a while to import.
"""
import inspect, os, subprocess, sys, textwrap
from types import ModuleType

import pytest
from IPython.core.interactiveshell import InteractiveShell

from lessonkit.dialects import generations, hook

TEXT = "classified texts", "Lessonkit classifies images."
MASK = "held a mask", "Lessonkit has no masks."
NAMES = {
    "0.7": ["np", "accuracy", "ConvLearner", "plots", "resnet34"],
    "v1": ["np", "accuracy", "error_rate", "open_image", "ImageDataBunch", "models", "vision"],
    "v2": ["np", "accuracy", "error_rate", "ImageDataLoaders", "untar_data"],
}
LOAD = "%load_ext lessonkit.dialects"


def make_dialect(generation):
    "A dialect whose names are texts."
    known = ModuleType(f"lessonkit.dialects.{generations.GENERATIONS[generation]}")
    known.__all__, known.__path__ = NAMES[generation], []
    for name in NAMES[generation]: setattr(known, name, f"{name} of {generation}")
    known.names = ModuleType(f"{known.__name__}.names")
    known.names.UNSUPPORTED = {"text": TEXT, "ImageSegment": MASK}
    return known


@pytest.fixture
def dialects(monkeypatch):
    "Small dialects; and afterwards all is as before."
    for generation in NAMES:
        known = make_dialect(generation)
        monkeypatch.setitem(sys.modules, known.__name__, known)
        monkeypatch.setitem(sys.modules, known.names.__name__, known.names)
    sys.modules["lessonkit.dialects.fastai1"].models = ModuleType("models")
    sys.modules["lessonkit.dialects.fastai1"].models.resnet34 = "resnet34 of v1"
    sys.modules["lessonkit.dialects.fastai1"].vision = hook.module_of("v1", "fastai.vision")
    def names(generation): return frozenset(NAMES[generation])
    monkeypatch.setattr(generations, "dialect_names", names)
    monkeypatch.setattr(hook, "dialect_names", names)
    yield
    hook.deactivate()


class Notebook:
    "Cells that run in IPython, and what they printed."
    def __init__(self, shell, capsys): self.shell, self.capsys = shell, capsys

    def __getitem__(self, name): return self.shell.user_ns[name]

    def __contains__(self, name): return name in self.shell.user_ns

    def __call__(self, *cells):
        "Run cells; returns the output of all."
        for cell in cells:
            self.shell.run_cell(textwrap.dedent(cell).strip(), store_history=True).raise_error()
        return self.capsys.readouterr().out

    def fails(self, cell):
        "The error of a cell."
        result = self.shell.run_cell(textwrap.dedent(cell).strip(), store_history=True)
        self.capsys.readouterr()
        return result.error_in_exec or result.error_before_exec


@pytest.fixture
def notebook(dialects, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    paths = list(sys.path)
    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance()
    yield Notebook(shell, capsys)
    hook.deactivate()
    shell.history_manager.end_session()
    InteractiveShell.clear_instance()
    sys.path[:] = paths


@pytest.fixture
def installed(tmp_path, monkeypatch):
    "A folder in the place of an installed fastai."
    for name in ("fastai", "fastai/vision"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("real = True\n__version__ = '9.9'\n")
    folder = tmp_path / "fastai-9.9.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: fastai\nVersion: 9.9\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "fastai"]:
        del sys.modules[name]


# ---- which generation

@pytest.mark.parametrize("cell, generation", [
    ("from fastai.imports import *\nfrom fastai.transforms import *\n"
     "from fastai.conv_learner import *\nfrom fastai.model import *", "0.7"),
    ("from fastai import *\nfrom fastai.vision import *", "v1"),
    ("import fastai\nfrom fastai.metrics import error_rate\nif 1:\n  from fastai.vision import *",
     "v1"),
    ("from fastai.vision.all import *", "v2"),
    ("import fastai.vision.all as vision", "v2"),
    ("from fastai2.vision.all import *", "v2"),
    ("import fastbook", "v2"),
    ("from fastai.basics import untar_data", "v2"),
    ("%%time\nimport fastai\nfrom fastai.vision import *", "v1"),
    ("%precision 2\nfiles = !echo a\nfrom fastai.plots import *", "0.7"),
    ("def later():\n    import fastai.vision.all\nimport fastai", "v2"),
])
def test_the_whole_cell_says_which_generation_it_is(notebook, cell, generation):
    notebook(LOAD)
    out = notebook(cell)
    assert f"this is fastai {generation}" in out
    assert hook.finder.generation == generation


def test_the_line_may_be_in_the_same_cell(notebook):
    out = notebook(f"{LOAD}\nimport fastai\nfrom fastai.metrics import error_rate\n"
                   "from fastai.vision import *")
    assert "this is fastai v1, because of `from fastai.vision import *`" in out
    assert notebook["error_rate"] == "error_rate of v1"


def test_names_that_are_the_same_in_all_are_there_before_it_is_known(notebook):
    notebook(LOAD, "from fastai.imports import *", "a = np.arange(3)\npath = Path('.')")
    assert hook.finder.generation is None
    assert notebook["np"].__name__ == "numpy"
    assert "accuracy" not in notebook


def test_star_imports_are_completed_when_it_is_known(notebook):
    notebook(LOAD, "from fastai import *\nfrom fastai.metrics import *")
    notebook("untar_data = 'my own'")
    notebook("from fastai.vision.all import *")
    assert notebook["accuracy"] == "accuracy of v2"
    assert notebook["ImageDataLoaders"] == "ImageDataLoaders of v2"
    notebook("from fastai.vision.all import untar_data")
    assert notebook["untar_data"] == "untar_data of v2"


def test_completing_leaves_own_variables_alone(notebook):
    notebook(LOAD, "from fastai.metrics import *", "untar_data = 'my own'", "import fastbook")
    assert notebook["untar_data"] == "my own"
    assert notebook["accuracy"] == "accuracy of v2"


def test_names_imported_too_early_are_placeholders_until_it_is_known(notebook):
    notebook(LOAD, "from fastai.metrics import error_rate, accuracy as right")
    error = notebook.fails("error_rate(1, 2)")
    assert isinstance(error, RuntimeError)
    assert 'lessonkit.dialects.activate("v1")' in str(error)
    notebook("from fastai.vision import *")
    assert notebook["error_rate"] == "error_rate of v1"
    assert notebook["right"] == "accuracy of v1"


def test_two_imports_that_fit_several_may_leave_one(notebook):
    notebook(LOAD, "from fastai.basics import *")
    assert hook.finder.possible == {"v1", "v2"}
    notebook("from fastai.torch_imports import *")   # of 0.7 and v2
    assert hook.finder.generation == "v2"


def test_the_names_in_a_later_cell_decide(notebook):
    notebook(LOAD, "from fastai.basics import *", "error_rate = 3\nx = np.zeros(error_rate)")
    assert hook.finder.generation is None
    out = notebook("import os\nuntar_data")
    assert "this is fastai v2, because of the names in this cell" in out
    assert notebook["untar_data"] == "untar_data of v2"
    assert notebook["error_rate"] == 3


def test_choosing_by_hand(notebook):
    notebook(LOAD, "from fastai.metrics import error_rate")
    notebook("import lessonkit.dialects\nlessonkit.dialects.activate('v1', epochs=1)")
    assert notebook["error_rate"] == "error_rate of v1"
    assert hook.settings.epochs == 1
    error = notebook.fails("lessonkit.dialects.activate('0.7')")
    assert "restart the kernel" in str(error)


@pytest.mark.parametrize("line, says", [
    ("from fastai.conv_learner import *", "is of fastai 0.7"),
    ("from fastai.vision.all import *", "is of fastai v2"),
    ("import fastbook", "is of fastai v2"),
    ("from fastai2.vision.all import *", "is of fastai v2"),
])
def test_a_second_generation_is_refused(notebook, line, says):
    notebook(LOAD, "from fastai.vision import *")
    error = notebook.fails(line)
    assert isinstance(error, ImportError)
    assert says in str(error)
    assert "restart the kernel" in str(error)


def test_a_star_import_of_the_empty_package_of_v2_is_v1(notebook):
    notebook(LOAD, "from fastai.vision.all import *")
    error = notebook.fails("from fastai.vision import *")
    assert isinstance(error, ImportError)
    assert "fastai v1" in str(error)


def test_a_module_beside_the_notebook_is_read_like_a_cell(notebook, tmp_path, monkeypatch):
    (tmp_path / "old_helpers.py").write_text("import fastai\nfrom fastai.vision.all import *\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    notebook(LOAD, "from old_helpers import *")
    sys.modules.pop("old_helpers")
    assert hook.finder.generation == "v2"
    assert notebook["error_rate"] == "error_rate of v2"


# ---- names and modules

def test_all_names_are_in_all_modules(notebook):
    notebook(LOAD, """
        from fastai.vision import *
        from fastai.metrics import ImageDataBunch
        from fastai.vision.models import resnet34
        import fastai.vision.learner as learner
        from fastai.callbacks import hooks
    """)
    assert notebook["ImageDataBunch"] == "ImageDataBunch of v1"
    assert notebook["resnet34"] == "resnet34 of v1"
    assert notebook["learner"].error_rate == "error_rate of v1"
    assert notebook["hooks"].error_rate == "error_rate of v1"
    assert notebook["vision"].data.error_rate == "error_rate of v1"
    assert notebook["__version__"] == "1.0.61"


def test_models_are_a_module_of_their_own(notebook):
    "The dialect's `models` has names that its star import doesn't bring."
    models = sys.modules["lessonkit.dialects.fastai1"].models
    models.__name__, models.__all__ = "lessonkit.dialects.fastai1.models", ["resnet34"]
    def no_such(name): raise hook.NotSupported(f"models.{name}")
    models.__getattr__ = no_such
    notebook(LOAD, "from fastai.vision import *\nfrom fastai.vision.models import *")
    assert notebook["resnet34"] == "resnet34 of v1"
    assert isinstance(notebook.fails("from fastai.vision.models import wrn_22"), hook.NotSupported)


def test_a_library_in_the_place_of_a_module_overrides_nothing(notebook, monkeypatch):
    "v2 has ipywidgets as `widgets`, and its Image isn't the one of the notes."
    known = sys.modules["lessonkit.dialects.fastai2"]
    known.__all__ = [*known.__all__, "widgets", "Image"]
    known.widgets, known.Image = ModuleType("ipywidgets"), "Image of v2"
    known.widgets.Image, known.widgets.HBox = "Image of ipywidgets", "HBox of ipywidgets"
    notebook(LOAD, "from fastai.vision.all import *\nfrom fastai.vision.widgets import *",
             "from fastai.vision.widgets import HBox")
    assert notebook["Image"] == "Image of v2"
    assert notebook["HBox"] == "HBox of ipywidgets"


def test_packages_of_v2_settle_the_generation(notebook, monkeypatch):
    monkeypatch.setattr(hook, "STAND_INS", {"a_lost_package": "v2"})
    out = notebook(LOAD, "from a_lost_package import untar_data")
    assert "this is fastai v2, because of `import a_lost_package`" in out
    assert notebook["untar_data"] == "untar_data of v2"
    assert "restart the kernel" in str(notebook.fails("from fastai.vision import *"))


def test_what_is_not_supported_says_so(notebook):
    notebook(LOAD, "from fastai.vision import *\nfrom fastai.vision.image import ImageSegment")
    error = notebook.fails("ImageSegment.create('a.png')")
    assert isinstance(error, NotImplementedError)
    assert str(error) == ("ImageSegment is not supported here: it held a mask. "
                          "Lessonkit has no masks.")
    error = notebook.fails("from fastai.text.data import *")
    assert isinstance(error, NotImplementedError) and isinstance(error, ImportError)
    assert "fastai.text is not supported here: it classified texts" in str(error)


@pytest.mark.parametrize("line", ["from fastai.vision import nothing", "import fastai.nothing",
                                  "from fastai.nothing import x", "fastai.vision.nothing"])
def test_unknown_names_say_so(notebook, line):
    notebook(LOAD, "import fastai\nfrom fastai.vision import *")
    error = notebook.fails(line)
    assert isinstance(error, (ImportError, AttributeError))
    assert "among the names of fastai v1 that lessonkit knows" in str(error)


def test_functions_put_into_a_module_are_seen(notebook):
    notebook(LOAD, "from fastai.vision import *", """
        import fastai
        def open_ben_color(file): return file
        vision.data.open_image = open_ben_color
    """)
    assert hook.patched("open_image") is notebook["open_ben_color"]
    notebook("vision.data.open_image = open_image")
    assert hook.patched("open_image") is None
    notebook("fastai.vision.data.open_image = open_ben_color")
    assert hook.patched("open_image") is notebook["open_ben_color"]
    out = notebook("fastai.metrics.error_rate = open_ben_color")
    assert "has no effect on the kit" in out


def test_tools_that_ask_all_modules_are_not_disturbed(notebook):
    notebook(LOAD, "from fastai.vision import *\nimport fastai.metrics", """
        import pickle, doctest
        def own(x):
            ">>> own(1)\\n2"
            return x + 1
        same = pickle.loads(pickle.dumps(own)) is own
        class Own: pass
        pickled = pickle.dumps(Own())
    """)
    assert notebook["same"]
    notebook("%load_ext autoreload\n%autoreload 2", "1 + 1")
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "fastai": continue
        assert inspect.getmodule(module) is module
        assert not hasattr(module, "__wrapped__")
        assert not hasattr(module, "__file__")
        assert "accuracy" in dir(module)


def test_packages_beside_fastai_have_stand_ins_only_if_missing(notebook, tmp_path, monkeypatch):
    (tmp_path / "fastprogress.py").write_text("real = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(hook, "STAND_INS", {"fastprogress": None, "a_lost_package": "v2"})
    notebook(LOAD, "from fastai.vision.all import *\nfrom a_lost_package.parts import *",
             "import fastprogress, a_lost_package")
    assert notebook["fastprogress"].real
    assert notebook["a_lost_package"].error_rate == "error_rate of v2"
    sys.modules.pop("fastprogress")
    notebook("%unload_ext lessonkit.dialects")
    assert isinstance(notebook.fails("import a_lost_package.parts"), ModuleNotFoundError)


# ---- on and off

@pytest.mark.parametrize("line", [f"{LOAD}  # for old notes: see docs.fast.ai", f"{LOAD} #",
                                  "%reload_ext lessonkit.dialects", LOAD])
def test_forms_of_the_line(notebook, line):
    out = notebook(line)
    assert "fastai, fastai2 and fastbook now mean lessonkit.dialects" in out
    notebook("from fastai.vision import *", "%unload_ext lessonkit.dialects")
    assert not hook.finder.is_active
    assert notebook(line)
    notebook("%reload_ext lessonkit.dialects", "from fastai.vision import *")
    assert sys.meta_path.count(hook.finder) == 1
    assert hook.finder.generation == "v1"


def test_an_installed_fastai_is_left_aside_and_comes_back(installed, notebook):
    out = notebook(LOAD)
    assert "fastai 9.9, as installed, comes back by %unload_ext lessonkit.dialects" in out
    notebook("from fastai.vision import *")
    assert notebook["error_rate"] == "error_rate of v1"
    notebook("%unload_ext lessonkit.dialects", "import fastai.vision\nreal = fastai.vision.real")
    assert notebook["real"]


def test_an_imported_fastai_is_not_replaced(installed, notebook):
    notebook("import fastai.vision")
    error = notebook.fails(LOAD)
    assert isinstance(error, RuntimeError)
    assert "fastai is already imported in this process: restart the kernel" in str(error)
    assert not hook.finder.is_active
    assert notebook["fastai"].vision.real


def test_unloading_leaves_nothing_behind(notebook):
    before, finders = set(sys.modules), list(sys.meta_path)
    notebook(LOAD, "from fastai.vision import *\nimport fastai.vision.data",
             "vision.data.open_image = len", "%unload_ext lessonkit.dialects")
    made_up = {name for name in set(sys.modules) - before if name.split(".")[0] == "fastai"}
    assert made_up == set()
    assert sys.meta_path == finders
    assert hook.patched("open_image") is None
    assert notebook.shell.events.callbacks["pre_run_cell"] == []
    assert isinstance(notebook.fails("import fastai"), ModuleNotFoundError)


# ---- processes of their own

def python(*argv, **environment):
    "What a process prints, and its exit code."
    done = subprocess.run([sys.executable, *argv], text=True, capture_output=True, timeout=300,
                          env=os.environ | environment)
    return done.stdout + done.stderr, done.returncode


def test_the_package_imports_without_torch():
    out, code = python("-c", "import lessonkit.dialects, sys; print('torch' in sys.modules)")
    assert (out, code) == ("False\n", 0)


@pytest.mark.slow
@pytest.mark.parametrize("generation, line, name", [
    ("0.7", "from fastai.conv_learner import *", "ConvLearner"),
    ("v1", "from fastai.vision import *", "ImageDataBunch"),
    ("v2", "from fastai.vision.all import *", "ImageDataLoaders"),
])
def test_a_script(generation, line, name, tmp_path):
    "The real dialects, with the hook and without it."
    script = tmp_path / "old.py"
    script.write_text("import lessonkit.dialects\n"
                      f"lessonkit.dialects.activate({generation!r})\n{line}\n"
                      f"hooked = {name}\n"
                      "lessonkit.dialects.deactivate()\n"
                      f"from lessonkit.dialects.{generations.GENERATIONS[generation]} import *\n"
                      f"print(hooked is {name}, np.__name__, plt.__name__)\n")
    out, code = python(str(script), MPLBACKEND="agg")
    assert (out.splitlines()[-1], code) == ("True numpy matplotlib.pyplot", 0)


@pytest.mark.slow
def test_a_real_kernel(tmp_path):
    from jupyter_client.manager import start_new_kernel
    manager, client = start_new_kernel(cwd=str(tmp_path), env=os.environ | {"MPLBACKEND": "agg"})
    printed = []
    def run(cell):
        def note(message):
            content = message["content"]
            if message["msg_type"] == "stream": printed.append(content["text"])
        reply = client.execute_interactive(cell, timeout=120, output_hook=note)
        return reply["content"]
    try:
        assert run(f"{LOAD}  # old notes")["status"] == "ok"
        assert run("%reload_ext autoreload\n%autoreload 2\n%matplotlib inline")["status"] == "ok"
        assert run("import fastai\nfrom fastai.metrics import error_rate")["status"] == "ok"
        reply = run("%%time\nfrom fastai.vision import *\nprint(ImageDataBunch.__name__)")
        assert reply["status"] == "ok", reply["traceback"]
        assert "this is fastai v1" in "".join(printed)
        assert run("print(error_rate.__name__)")["status"] == "ok"
        assert run("import fastai.vision.all")["ename"] == "ImportError"
        assert run("%unload_ext lessonkit.dialects")["status"] == "ok"
        found = run("import sys; assert 'fastai' not in sys.modules")
        assert found["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
