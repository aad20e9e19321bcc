"""What `check` says about old notes, and what `convert` writes.

A small dialect from a file takes the place of the real one, which takes a while to import.
"""
import ast, importlib.util, json, sys
from types import ModuleType

import pytest
from hypothesis import given, strategies as st

from lessonkit.dialects import hook
from lessonkit.dialects.__main__ import FINE, main, NOT_ALL, UNREADABLE
from lessonkit.dialects.check import check_note
from lessonkit.dialects.convert import with_remarks
from lessonkit.dialects.kinds import Known, keywords_of
from lessonkit.dialects.notes import OldCell, python_text, read_python
from lessonkit.dialects.reading import Finding
from tiers import examples

DIALECT = '''
import numpy as np
from pathlib import Path
from lessonkit.dialects.registry import warn_unknown

class Image:
    def show(self, figsize=None): ...
    @property
    def shape(self): ...

class Category: ...

class Items:
    def __len__(self): return 3
    def __getitem__(self, i) -> "tuple[Image, Category]": ...

class NamedItems(Items):
    fnames: list

class Data:
    def __init__(self, path): self.path = path
    @property
    def train_ds(self) -> "Items": ...
    @property
    def size(self): ...
    @classmethod
    def from_folder(cls, path, size=224, **options) -> "Data":
        return cls.create(path, **options)
    @classmethod
    def create(cls, path, bs=64, **options) -> "Data": warn_unknown("create", options)
    def normalize(self, stats=None) -> "Data": return self

class Recorder:
    def plot(self, suggestion=False): ...

class Learner:
    recorder: Recorder
    def __init__(self, data, metrics=None, path=None): self.data, self.wd = data, .01
    def fit(self, epochs, lr=1e-3): ...
    def predict(self, image) -> "tuple[Category, int]": ...
    def to_fp16(self, loss_scale=None) -> "Learner": return self
    def load(self, name): return self

def cnn_learner(data, arch, bn_final=False, **options) -> "Learner":
    return Learner(data, **options)

def error_rate(preds, targets): ...

def shapeless(**options): options.clear()

class URLs:
    PETS = "pets"

__all__ = ["Image", "Data", "Learner", "cnn_learner", "error_rate", "shapeless", "URLs", "np",
           "Path"]
'''
UNSUPPORTED = {"text": ("classified texts", "Lessonkit classifies images."),
               "ImageSegment": ("held a mask", "There are none."),
               "Learner.purge": ("freed memory", "Leave it out.")}
IGNORED = {"cnn_learner": {"bn_final": "the head has no such layer."},
           "Learner.to_fp16": {"loss_scale": "the scale is found."}}


@pytest.fixture
def dialect(tmp_path):
    "The module, read from a file as the real one is."
    file = tmp_path / "old_names.py"
    file.write_text(DIALECT)
    spec = importlib.util.spec_from_file_location("lessonkit.dialects.fastai1", file)
    module = importlib.util.module_from_spec(spec)
    tables = ModuleType(f"{spec.name}.names")
    tables.UNSUPPORTED, tables.IGNORED = UNSUPPORTED, IGNORED
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        patch.setitem(sys.modules, tables.__name__, tables)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def check(dialect, tmp_path):
    def check(*cells):
        "What is said about a notebook that begins with the star import of v1."
        sources = ["from fastai.vision import *", *cells]
        return check_note(write(tmp_path / "old.ipynb", *sources))
    return check


def code_cell(source):
    return dict(cell_type="code", metadata={}, execution_count=None, outputs=[], source=source)


def write(file, *sources):
    "A notebook of these cells."
    cells = [code_cell(source) for source in sources]
    file.write_text(json.dumps(dict(nbformat=4, nbformat_minor=4, metadata={}, cells=cells)))
    return file


def found(report):
    "Kind and name of all findings."
    return [(finding.kind, finding.name) for finding in report.findings]


# ---- names and attributes

@pytest.mark.parametrize("code, name", [
    ("learn.fly()", "Learner.fly"),
    ("learn.recorder.paint", "Recorder.paint"),
    ("learn.to_fp16().to_fp16().fly()", "Learner.fly"),
    ("Learner(data).fly()", "Learner.fly"),
    ("data.normalize().fly", "Data.fly"),
    ("Data.from_nowhere('x')", "Data.from_nowhere"),
    ("x, y = data.train_ds[0]\nx.fly()", "Image.fly"),
    ("data.train_ds[0][1].fly()", "Category.fly"),
    ("for x, y in data.train_ds: y.fly()", "Category.fly"),
    ("[x.fly() for x, y in data.train_ds]", "Image.fly"),
    ("pred, i = learn.predict(3)\npred.fly", "Category.fly"),
    ("def get(size):\n    return Data.from_folder('x').normalize()\nget(3).fly", "Data.fly"),
    ("make = lambda: Learner(data)\nmake().fly()", "Learner.fly"),
    ("(learn if 3 else None).fly()", "Learner.fly"),
    ("if (l := Learner(data)): l.fly()", "Learner.fly"),
    ("with open('x') as f: learn.fly(f)", "Learner.fly"),
    ("class Own:\n    def f(self): return learn.fly()", "Learner.fly"),
    ("f'{learn.fly()}'", "Learner.fly"),
    ("learn.speed = 3", "Learner.speed"),
    ("data.size = 3", "Data.size"),
    ("learn.fit = 3", "Learner.fit"),
    ("learn.purge()", "Learner.purge"),
    ("ImageSegment", "ImageSegment"),
    ("vision.image.ImageSegment", "ImageSegment"),
    ("from fastai.vision.image import ImageSegment", "ImageSegment"),
    ("from fastai.vision.image import never_heard", "never_heard"),
    ("from fastai.text import *", "fastai.text"),
    ("import fastai.never", "fastai.never"),
    ("fastai.vision.never", "never"),
    ("never_heard(3)", "never_heard"),
])
def test_what_is_missing_is_found(check, code, name):
    begin = "import fastai\ndata = Data.from_folder('x')\nlearn = cnn_learner(data, 'resnet34')"
    assert ("unsupported", name) in found(check(begin, code))


@pytest.mark.parametrize("code", [
    "learn.fit(3, lr=1e-2)", "learn.recorder.plot(suggestion=True)", "learn.wd = .1",
    "learn.data = data", "learn.data.path", "data.path", "data.train_ds.fnames",
    "learn = learn.load('x')\nlearn.anything", "Data.from_folder('x', bs=3, size=4)",
    "cnn_learner(data, 3, path='x', metrics=[error_rate])", "shapeless(a=3)", "URLs.PETS",
    "learn.__class__.__name__", "vision.data.open_image = len",
    "import fastai.vision.learner as v",
    "Image = 3\nImage.anything", "from PIL import Image\nImage.open('x')",
    "learn = 3\nlearn.fly()", "def f(learn): return learn.fly()",
    "try: pass\nexcept OSError as e: e.anything", "[a for a in range(3)]",
    "x = [never.heard for never in 'abc']", "global_later()\ndef global_later(): pass",
    "get_ipython(), display, Out, _, __", "import os.path\nos.path.join('a')",
    "with open('x') as f: f", "lambda a, *b, c=3, **d: (a, b, c, d)",
    "print(np.zeros(3), Path('x'))",
    "match 3:\n    case [a, *b]: a, b", "async def f():\n    async with x as y: y\nx = 3",
    "from helpers import *\nwhat_is(this)", "%%bash\nls {never}", "%%capture out\nx = 3\nout",
    "files = !ls\nfiles[0]", "%time learn.fit(1)", "??learn.fit", "del learn\nlearn = 3",
    "a = b = 3; a.x = 4; a[3].y = 5", "class Own(Learner):\n    pass\nOwn(3).fly()",
    "[*data.train_ds, *range(3)]", "fastai.__version__", "plot = learn.recorder.plot\nplot()",
])
def test_what_works_is_not_called_missing(check, code):
    begin = "import fastai\ndata = Data.from_folder('x')\nlearn = cnn_learner(data, 'resnet34')"
    report = check(begin, code)
    assert [finding for finding in report.findings if finding.kind != "ignored"] == []


@pytest.mark.parametrize("code, kind, name", [
    ("cnn_learner(3, 4, bn_final=True)", "ignored", "cnn_learner(bn_final=)"),
    ("Learner(3).to_fp16(loss_scale=2)", "ignored", "Learner.to_fp16(loss_scale=)"),
    ("Data.from_folder('x', shade=3)", "ignored", "Data.from_folder(shade=)"),
    ("cnn_learner(3, 4, metric=3)", "unsupported", "cnn_learner(metric=)"),
    ("Learner(3, metric=3)", "unsupported", "Learner(metric=)"),
    ("Learner(3).fit(1, wd=3)", "unsupported", "Learner.fit(wd=)"),
])
def test_keywords_are_judged(check, code, kind, name):
    assert found(check(code)) == [(kind, name)]


def test_keywords_are_followed_to_where_they_are_passed(dialect):
    def keywords(function, owner=None):
        return keywords_of(Known(function, owner, owner is not None))
    assert {"path", "metrics", "data", "arch"} <= keywords(dialect.cnn_learner).names
    assert not keywords(dialect.cnn_learner).takes_others
    from_folder = keywords(dialect.Data.from_folder.__func__, dialect.Data)
    assert from_folder.names == {"path", "size", "bs"}
    assert from_folder.takes_others
    assert keywords(dialect.shapeless).is_open


def test_the_names_that_a_note_uses_decide(dialect, tmp_path):
    "These are in the real lists of names."
    file = write(tmp_path / "old.ipynb", "from fastai.basics import *", "x = DataBunch\nError = 3")
    report = check_note(file)
    assert (report.generation, report.because) == ("v1", "the names it uses")
    main(["convert", str(file), str(tmp_path / "new.ipynb")])
    first = json.loads((tmp_path / "new.ipynb").read_text())["cells"][0]["source"]
    assert "".join(first).endswith('lessonkit.dialects.activate("v1")')


def test_a_report_lists_what_works(check):
    report = check("data = Data.from_folder('x', size=3, bs=4)\nlearn = Learner(data)",
                   "learn.fit(1, lr=3)\nlearn.recorder.plot()")
    assert report.used["Data.from_folder"] == {"size", "bs"}
    assert report.used["Learner.fit"] == {"lr"}
    text = str(report)
    assert "fastai v1, because of `from fastai.vision import *`" in text
    assert "Data.from_folder(bs=, size=)" in text
    assert "Recorder.plot" in text
    assert text.endswith("All of it is supported.")


# ---- what others have dropped

@pytest.mark.parametrize("code, says", [
    ("x = np.float(3)", "write float"),
    ("import numpy\nnumpy.random.seed(3); numpy.object", "write object"),
    ("from PIL import Image\nImage.open('x').resize((3, 3), Image.ANTIALIAS)", "Image.LANCZOS"),
    ("import PIL\nPIL.Image.ANTIALIAS", "Image.LANCZOS"),
    ("from sklearn.cross_validation import train_test_split", "sklearn.model_selection"),
    ("import sklearn.cross_validation", "sklearn.model_selection"),
    ("from scipy.misc import imread, imresize", "plt.imread"),
    ("import pandas as pd\npd.Panel(3)", "no pandas.Panel"),
    ("import pandas as pd\ndf = pd.read_csv('x', error_bad_lines=False)", "error_bad_lines"),
    ("import pandas as pd\ndf = pd.read_csv('x')\ndf = df.append(df)", "pd.concat"),
    ("import pandas as pd\ndf = pd.read_csv('x')\ndf.ix[3, 'a']", ".loc"),
    ("y = labels.as_matrix()\nlabels = 3", ".to_numpy()"),
    ("df = 3\ndf.style.hide_index()", ".hide(axis="),
    ("from collections import Iterable", "collections.abc.Iterable"),
    ("import matplotlib.pyplot as plt\nplt.hist([3], normed=True)", "density"),
])
def test_what_other_packages_have_dropped(check, code, says):
    report = check(code)
    assert {kind for kind, _ in found(report)} == {"today"}
    assert says in str(report)


@pytest.mark.parametrize("code", [
    "import numpy as np\nnp.float64(3), np.random.rand(3)", "xs = []\nxs.append(3)",
    "from sklearn.metrics import confusion_matrix, fbeta_score",
    "import pandas as pd\ndf = pd.read_csv('x', sep=',', header=None)\ndf.label, df['a'].values",
    "from PIL import Image\nImage.open('x').convert('RGB').resize((3, 3), Image.BICUBIC)",
    "from collections import Counter, OrderedDict", "import torch.nn.functional as F\nF.relu(3)",
])
def test_what_they_still_have(check, code):
    assert check(code).is_fine


def test_packages_that_are_missing_are_listed(check):
    report = check("import no_such_thing.inner as n, os", "from nor_this import x",
                   "import fastprogress")
    assert report.missing == ("no_such_thing", "nor_this")
    assert "aren't installed here: no_such_thing, nor_this" in str(report)


def test_python_2_is_named_and_read_on(check):
    report = check("print 'size', np.float(3)\nlearn = Learner(3)\nprint learn.fly()",
                   "for i in xrange(3): print i")
    assert found(report) == [("python", "Python"), ("today", "numpy.float"), ("python", "Python"),
                             ("unsupported", "Learner.fly"), ("python", "Python"),
                             ("python", "xrange")]


# ---- old formats

def worksheet(nbformat):
    cells = [dict(cell_type="heading", level=1, source="Bears"), dict(
        cell_type="code", language="python", outputs=[dict(output_type="pyout")], collapsed=False,
        input="from fastai.vision import *\nprint error_rate", prompt_number=3)]
    return dict(nbformat=nbformat, nbformat_minor=0, metadata=dict(name=""),
                worksheets=[dict(cells=cells, metadata={})])


@pytest.mark.parametrize("nbformat", [2, 3])
def test_old_formats_of_notebooks(nbformat, dialect, tmp_path):
    (tmp_path / "old.ipynb").write_text(json.dumps(worksheet(nbformat)))
    assert main(["convert", str(tmp_path / "old.ipynb"), str(tmp_path / "new.ipynb")]) == NOT_ALL
    import nbformat as formats
    new = formats.read(tmp_path / "new.ipynb", as_version=4)
    formats.validate(new)
    assert [cell.cell_type for cell in new.cells] == ["code", "markdown", "code"]
    assert new.cells[1].source == "# Bears"
    assert "a print statement of Python 2" in new.cells[2].source


# ---- convert

STATEMENTS = ["a = 1", "if a:\n    b = f(a,\n          3)", "x = '''\ntext\n'''", "%time f(3)",
              "!ls", "def f(x):\n    return x", "a = 3; b = '''\n'''; c = 4", "for i in a: pass",
              "files = !ls", "@f\nclass C:\n    'doc'", "y = [\n    1,\n\n    2]",
              "# a comment", "", "s = f'''{a}\n{b}'''", "a = 1 + \\\n    2"]


@given(st.lists(st.sampled_from(STATEMENTS), max_size=5), st.sets(st.integers(1, 12), max_size=4),
       st.sampled_from(["", "%%time\n"]))
@examples(150)
def test_remarks_never_change_the_code(statements, lines, magic):
    source = magic + "\n".join(statements)
    tree, problems = read_python(python_text(source))
    cell = OldCell(1, "code", source, python_text(source), tree, tuple(problems))
    count = source.count("\n") + 1
    findings = [Finding(1, line, "today", "x", f"remark {line}.")
                for line in lines if line <= count]
    new = with_remarks(cell, findings)
    changed, _ = read_python(python_text(new))
    assert ast.dump(changed) == ast.dump(tree)
    assert [line for line in new.split("\n") if "# lessonkit: " not in line] == source.split("\n")
    assert new.count("# lessonkit: ") == len(findings)
    assert new.startswith(magic)


def test_a_converted_notebook(dialect, tmp_path):
    old = write(tmp_path / "old.ipynb", "from fastai.vision import *",
                "data = Data.from_folder('x')\nif data:\n    mask = ImageSegment(3)")
    assert main(["convert", str(old), str(tmp_path / "new.ipynb")]) == NOT_ALL
    cells = json.loads((tmp_path / "new.ipynb").read_text())["cells"]
    assert ["".join(cell["source"]) for cell in cells] == [
        "%load_ext lessonkit.dialects", "from fastai.vision import *",
        "data = Data.from_folder('x')\nif data:\n"
        "    # lessonkit: ImageSegment is not supported: it held a mask. There are none.\n"
        "    mask = ImageSegment(3)"]


def test_a_converted_script(dialect, tmp_path):
    (tmp_path / "old.py").write_text("'''What it does.'''\nfrom fastai.vision import *\nnp.float\n")
    assert main(["convert", str(tmp_path / "old.py"), str(tmp_path / "new.py")]) == NOT_ALL
    lines = (tmp_path / "new.py").read_text().splitlines()
    assert lines[:4] == ["'''What it does.'''", "import lessonkit.dialects",
                         'lessonkit.dialects.activate("v1")', "from fastai.vision import *"]
    assert lines[4].startswith("# lessonkit: numpy")


# ---- the command line

def test_exit_codes(dialect, tmp_path, capsys):
    fine = write(tmp_path / "fine.ipynb", "from fastai.vision import *\nerror_rate")
    bad = write(tmp_path / "bad.ipynb", "from fastai.vision import *\nImageSegment")
    unclear = write(tmp_path / "open.ipynb", "import fastai")
    (tmp_path / "broken.ipynb").write_text("{")
    assert main(["check", str(fine)]) == FINE
    assert main(["check", str(fine), str(bad)]) == NOT_ALL
    assert capsys.readouterr().out.count("fastai v1, because of") == 3
    for file in (unclear, tmp_path / "broken.ipynb", tmp_path / "gone.ipynb", tmp_path):
        assert main(["check", str(bad), str(file)]) == UNREADABLE
        assert str(file) in capsys.readouterr().err
    assert main(["check", str(unclear), "--generation", "v1"]) == FINE


def test_nothing_is_overwritten(dialect, tmp_path, capsys):
    old = write(tmp_path / "old.ipynb", "from fastai.vision import *")
    (tmp_path / "new.ipynb").write_text("mine")
    assert main(["convert", str(old), str(tmp_path / "new.ipynb")]) == UNREADABLE
    assert "exists already: choose another name" in capsys.readouterr().err
    assert (tmp_path / "new.ipynb").read_text() == "mine"
    before = old.read_text()
    assert main(["convert", str(old), str(old)]) == UNREADABLE
    assert old.read_text() == before
    assert main(["convert", str(old), str(tmp_path / "new.py")]) == UNREADABLE
    assert not (tmp_path / "new.py").exists()


# ---- the real dialects

LESSONS = {
    "0.7": """
        from fastai.conv_learner import *
        data = ImageClassifierData.from_paths(PATH, tfms=tfms_from_model(resnet34, 224))
        learn = ConvLearner.pretrained(resnet34, data, precompute=True)
        learn.fit(0.01, 2)
        learn.precompute = False
        learn.sched.plot_lr()
        log_preds, y = learn.TTA()
        PATH = "data/"
    """,
    "v1": """
        from fastai.vision import *
        data = ImageDataBunch.from_folder("x", ds_tfms=get_transforms(), size=224).normalize()
        learn = cnn_learner(data, models.resnet34, metrics=error_rate)
        learn.fit_one_cycle(4)
        learn.recorder.plot()
        interp = ClassificationInterpretation.from_learner(learn)
        interp.plot_top_losses(9, figsize=(15, 11))
    """,
    "v2": """
        from fastai.vision.all import *
        pets = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files,
                         splitter=RandomSplitter(seed=42), item_tfms=Resize(460),
                         get_y=using_attr(RegexLabeller(r"(.+)_\\\\d+.jpg$"), "name"))
        dls = pets.dataloaders("x")
        learn = cnn_learner(dls, resnet34, metrics=error_rate)
        learn.fine_tune(3)
        learn.recorder.plot_loss()
        ClassificationInterpretation.from_learner(learn).most_confused(min_val=3)
    """,
}


@pytest.mark.slow
@pytest.mark.parametrize("generation", LESSONS)
def test_a_lesson_of_each_generation(generation, tmp_path):
    "All of it is supported, and an invented name isn't."
    import textwrap
    lesson = textwrap.dedent(LESSONS[generation])
    file = write(tmp_path / "old.ipynb", lesson, "learn.fly_to_the_moon()")
    report = check_note(file)
    assert report.generation == generation
    (finding,) = report.findings
    assert finding.name.endswith("Learner.fly_to_the_moon")


@pytest.mark.slow
@pytest.mark.parametrize("generation", LESSONS)
def test_tables_say_what_to_do(generation):
    "Whole sentences, about names that the star import doesn't bring as something that works."
    for name, texts in hook.name_table(generation, "UNSUPPORTED").items():
        did, instead = texts
        assert did and not did.endswith("."), name
        assert instead.endswith((".", ")", "`")), name
    for call, keywords in hook.name_table(generation, "IGNORED").items():
        assert all(isinstance(text, str) and text for text in keywords.values()), call
