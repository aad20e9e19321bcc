"""Do the tests notice when the package is wrong? Each of tests/mutations.py is made in a copy.

`make test` tries a fixed sample of the mutations, `make nightly` all of them. All runs of pytest
are forks of one process (tests/forking.py), so that none of them waits for torch.
"""
import json, os, re, shutil, subprocess, sys, zlib
from pathlib import Path

import pytest

import lessonkit
from mutations import MUTATIONS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(lessonkit.__file__).parent
EVERY = 4   # `make test` tries one mutation in so many
LIMIT = 600   # seconds for one of them: a mistake may make a loop endless

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes can be forked here")


def sampled(name):
    "Is it in the sample? Chosen by name alone, so another mutation doesn't change the sample."
    return zlib.crc32(name.encode()) % EVERY == 0


def row(mutation):
    name = mutation[0]
    marks = [] if sampled(name) else [pytest.mark.nightly]
    return pytest.param(*mutation, marks=marks, id=name.replace(" ", "-"))


def ids_of(mutations): return sorted({test for *_, tests in mutations for test in tests})


def mutated(name, module, text, wrong):
    "The file of the module in the package, and its source with the mistake."
    file = module.replace(".", "/") + ".py"
    source = (PACKAGE / file).read_text()
    count = source.count(text)
    assert count == 1, f"the text of {name!r} is in {file} {count} times"
    source = source.replace(text, wrong)
    compile(source, file, "exec")   # it has to fail a test, not to fail at its import
    return file, source


@pytest.fixture(scope="module")
def run():
    "run(folder, tests): pytest's exit code, and all it printed, with the package in `folder`."
    env = os.environ | dict(PYTHONDONTWRITEBYTECODE="1", LESSONKIT_TIER="test")
    # a copy isn't the wheel, and isn't counted
    for name in ("COVERAGE_PROCESS_START", "LESSONKIT_TEST_WHEEL"): env.pop(name, None)
    command = [sys.executable, "-P", str(ROOT / "tests/forking.py"), "pytest"]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    server = subprocess.Popen(command, cwd=ROOT, env=env, text=True, **pipes)

    def run(folder, tests, *options):
        log = folder / "pytest.log"
        args = ["-q", "-rpfE", "-p", "no:cacheprovider", *options, *map(str, tests)]
        job = dict(folder=str(folder), args=args, log=str(log), limit=LIMIT)
        print(json.dumps(job), file=server.stdin, flush=True)
        return json.loads(server.stdout.readline()), log.read_text()

    yield run
    server.stdin.close()
    server.wait()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "Makes a copy of the package; returns the folder that holds it."
    def copy():
        folder = tmp_path_factory.mktemp("copy")
        ignore = shutil.ignore_patterns("__pycache__", "assets")
        shutil.copytree(PACKAGE, folder / "lessonkit", ignore=ignore)
        (folder / "lessonkit/assets").symlink_to(PACKAGE / "assets")  # large, and never changed
        return folder
    return copy


@pytest.fixture(scope="module")
def sound(request, run, copy):
    "What pytest says of a sound copy: one run of the tests of all mutations of this session."
    items = [item for item in request.session.items if "sound" in item.fixturenames]
    tests = {test for item in items for test in item.callspec.params["tests"]}
    return run(copy(), sorted(tests))[1]


@pytest.mark.slow
@pytest.mark.parametrize("name, module, text, wrong, tests", list(map(row, MUTATIONS)))
def test_mutation_is_noticed(name, module, text, wrong, tests, run, copy, sound):
    for test in tests:
        found = {line.split()[0] for line in sound.splitlines() if f" {test}" in line}
        assert found == {"PASSED"}, f"{test} doesn't pass without the mutation:\n{sound[-3000:]}"
    folder = copy()
    file, source = mutated(name, module, text, wrong)
    (folder / "lessonkit" / file).write_text(source)
    status, said = run(folder, tests, "-x")
    assert status == 1, f"{name}: no test noticed it (pytest's code is {status}):\n{said[-3000:]}"


def test_table():
    "Of every mutation, also of those that are not tried today: it can be made, and only once."
    for name, module, text, wrong, _ in MUTATIONS: mutated(name, module, text, wrong)
    assert len({name for name, *_ in MUTATIONS}) == len(MUTATIONS)
    assert any(sampled(name) for name, *_ in MUTATIONS)


@pytest.mark.slow
def test_every_test_in_the_table_exists(run, copy):
    status, said = run(copy(), ids_of(MUTATIONS), "--collect-only")
    assert status == 0, said[-3000:]
    collected = said.splitlines()
    for test in ids_of(MUTATIONS):
        assert any(re.match(re.escape(test) + r"(\[|$)", line) for line in collected), test


@pytest.mark.slow
def test_the_copy_is_what_is_tested(run, copy):
    folder = copy()
    probe = folder / "probe.py"
    probe.write_text("import os, subprocess, sys\n"
                     "def where(): import lessonkit; return lessonkit.__file__\n"
                     f"def test(): assert where().startswith({str(folder)!r})\n"
                     "def test_process():\n"
                     "    code = 'import lessonkit; print(lessonkit.__file__)'\n"
                     "    where = subprocess.check_output([sys.executable, '-P', '-c', code])\n"
                     f"    assert where.decode().startswith({str(folder)!r})\n"
                     "def test_tier(): assert os.environ['LESSONKIT_TIER'] == 'test'\n"
                     "def test_failure(): assert False\n")
    status, said = run(folder, [probe])
    assert status == 1 and "3 passed" in said and "1 failed" in said, said
