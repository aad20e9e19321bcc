"""What contributors and the hosting site use: hooks, merging of notebooks, workflows, releases."""
import os, re, shlex, shutil, subprocess, sys, tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import checks, lowest, notebook_text, release

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
    notebook = attributes(tmp_path, "nbs/data/00_images.ipynb")
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
def test_hooks_find_nothing_here(hooked):
    run = pre_commit(hooked, "--all-files")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("Passed") == 3, run.stdout


@needs_git
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
