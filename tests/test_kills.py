"""A download or an unpacking may be killed at any byte: half a file or folder is never used."""
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from lessonkit.data.downloads import PartialFile
from tiers import TIER
from web_site import Answer, web_site

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork"),
]

MANY = TIER == "nightly"
DOWNLOADS, UNPACKINGS = (200, 100) if MANY else (12, 8)


def steps(every=1):
    "Which steps to be killed at: one in `every`, and all of them in `make nightly`."
    return range(1, 1000, 1 if MANY else every)


KILLED = (-9, -25)   # by SIGKILL, or by SIGXFSZ
CONTENT = random.Random(0).randbytes(700_001)


class Killer:
    "Runs jobs in forks of one process that has imported everything."
    def __init__(self):
        command = [sys.executable, "-P", str(Path(__file__).with_name("killing.py"))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True,
                                        env=os.environ | dict(NO_PROXY="127.0.0.1"))

    def run(self, job, *args, limit=None, n=0, **options):
        "How the fork ended."
        work = dict(job=job, args=list(map(str, args)), limit=limit, n=n, options=options)
        self.process.stdin.write(json.dumps(work) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, self.process.stderr.read()
        return int(answer)

    def finish(self, job, *args, **options):
        "Run it without a limit."
        assert self.run(job, *args, **options) == 0

    def close(self):
        self.process.communicate()
        assert self.process.returncode == 0


@pytest.fixture(scope="module")
def killer():
    killer = Killer()
    yield killer
    killer.close()


@pytest.fixture
def site():
    with web_site() as site: yield site


def leftovers(folder):
    return [p.name for kind in ("part", "unpacking") for p in folder.rglob(f"*.{kind}")]


# ---- downloads

HONEST = Answer(CONTENT)
UNMARKED = Answer(CONTENT, version=None)   # no way to tell whether a beginning still fits

@pytest.mark.parametrize("kind", ["marked", "unmarked"])
def test_a_download_killed_at_a_random_byte(tmp_path, killer, site, kind):
    answer = HONEST if kind == "marked" else UNMARKED
    site["/a.zip"], resumed = answer, 0
    for i in range(DOWNLOADS // 2):
        n = random.Random(f"{kind} {i}").randrange(len(CONTENT))
        folder = tmp_path / str(i)
        job = "download", f"{site.url}/a.zip", folder
        assert killer.run(*job, limit="size", n=n) in KILLED, n
        assert list(folder.glob("[!.]*")) == [], n
        kept = (folder / ".a.zip.part").stat().st_size if (folder / ".a.zip.part").exists() else 0
        assert kept <= n
        killer.finish(*job)
        resumed += site.ranges[-1] == f"bytes={kept}-"
        assert (folder / "a.zip").read_bytes() == CONTENT, n
        assert leftovers(folder) == []
    assert resumed > DOWNLOADS // 2 * .8 if kind == "marked" else resumed == 0


def test_a_download_killed_at_each_step(tmp_path, killer, site):
    "And in the meantime, the file on the server has changed."
    old, new = Answer(CONTENT[::-1], version="old"), Answer(CONTENT, version="new")
    for n in steps():
        folder = tmp_path / str(n)
        job = "download", f"{site.url}/a.zip", folder
        site["/a.zip"] = old
        status = killer.run(*job, limit="step", n=n)
        complete = (folder / "a.zip").exists()
        if complete: assert (folder / "a.zip").read_bytes() == CONTENT[::-1], n
        if status == 0: break
        assert status in KILLED, n
        begun = (folder / ".a.zip.part").exists()
        full = begun and (folder / ".a.zip.part").stat().st_size == len(CONTENT)
        site["/a.zip"] = new
        killer.finish(*job)
        wanted = CONTENT[::-1] if complete or full else CONTENT
        assert (folder / "a.zip").read_bytes() == wanted, n
        assert leftovers(folder) == []
    assert n > 5


def test_a_changed_file_killed_at_each_step(tmp_path, killer, site):
    "The beginning that is here is of a version that the server has no more."
    site["/a.zip"] = Answer(CONTENT, version="new")
    url = f"{site.url}/a.zip"
    for n in steps():
        part = PartialFile(tmp_path / str(n) / "a.zip", url)
        part.begin('"old"', len(CONTENT))
        part.path.write_bytes(bytes(100_000))
        status = killer.run("download", url, part.path.parent, limit="step", n=n)
        killer.finish("download", url, part.path.parent)
        assert (tmp_path / str(n) / "a.zip").read_bytes() == CONTENT, n
        if status == 0: break
        assert status in KILLED, n
    assert n > 5


# ---- archives

def photos(n=40):
    "{name: content} of a data set: two classes of small files."
    rng = random.Random(1)
    return {f"{('cat', 'dog')[i % 2]}_{i}.jpg": rng.randbytes(rng.randrange(30_000))
            for i in range(n)}


def pack(kind):
    file, files = io.BytesIO(), photos()
    if kind == "zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as z:
            for name, data in files.items(): z.writestr(f"pets/{name}", data)
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w:gz") as t:
        for name, data in files.items():
            info = tarfile.TarInfo(f"pets/{name}")
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return file.getvalue()


def unpacked(folder):
    return {p.name: p.read_bytes() for p in (folder / "pets").iterdir()}


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_unpacking_killed_at_a_random_byte(tmp_path, killer, kind):
    archive, files = tmp_path / f"pets.{kind}", photos()
    archive.write_bytes(pack(kind))
    total = sum(map(len, files.values()))
    for i in range(UNPACKINGS // 2):
        n = random.Random(f"{kind} {i}").randrange(1, total)
        folder = tmp_path / str(i) / "photos"
        job = "unpack", archive, folder
        assert killer.run(*job, limit="byte", n=n) in KILLED, n
        assert not folder.exists(), n
        killer.finish(*job)
        assert unpacked(folder) == files, n
        assert leftovers(folder.parent) == []


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_an_unpacking_killed_at_each_step(tmp_path, killer, kind):
    archive, files = tmp_path / f"pets.{kind}", photos()
    archive.write_bytes(pack(kind))
    for n in steps(7):
        folder = tmp_path / str(n) / "photos"
        job = "unpack", archive, folder
        status = killer.run(*job, limit="step", n=n)
        if folder.exists(): assert unpacked(folder) == files, n
        if status == 0: break
        assert status in KILLED, n
        killer.finish(*job)
        assert unpacked(folder) == files, n
        assert leftovers(folder.parent) == []
    assert n > 40


def test_a_data_set_killed_at_each_step(tmp_path, killer, site, monkeypatch):
    "From the address to the table: what `datasets.get` returns later is all of it."
    from lessonkit.data import datasets
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    site["/pets.zip"] = Answer(pack("zip"))
    url = f"{site.url}/pets.zip"
    for n in steps(9):
        cache = tmp_path / str(n)
        status = killer.run("get", url, limit="step", n=n, cache=str(cache))
        monkeypatch.setenv("LESSONKIT_CACHE", str(cache))
        found = datasets.get(url, download=True)
        assert len(found.table) == 40, n
        assert {name: (found.path / name).read_bytes() for name in found.table.file} == photos(), n
        assert leftovers(cache) == []
        if status == 0: break
        assert status in KILLED, n
    assert n > 50
