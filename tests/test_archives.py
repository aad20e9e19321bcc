"""Unpacking: what comes out of sound archives, and what is refused."""
import bz2
import errno
import gzip
import lzma
import os
import random
import re
import stat
import tarfile
import threading
import tracemalloc
import zipfile

import pytest

from hostile_archives import HOSTILE, link, member, same, tar, zip_link, zipped
from lessonkit.data import archives
from lessonkit.data.archives import ArchiveError, unpack, unpacked_from
from tiers import SHARE


def content(folder):
    "{path: content} of all visible files in a folder; None for what is no file."
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink() or path.name.startswith("."): continue
        found[name] = path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else None
    return found


def write(folder, data, name="photos.archive"):
    file = folder / "in" / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(data)
    return file


PHOTOS = {"photos/1.jpg": b"one", "photos/Größe 2.jpg": b"two" * 99_999, "empty.jpg": b""}
MEMBERS = [member(name, data) for name, data in list(PHOTOS.items())[1:]]

SOUND = {
    "zip": lambda: zipped(*list(PHOTOS.items())[1:]),
    "stored zip": lambda: zipped(*list(PHOTOS.items())[1:], kind=zipfile.ZIP_STORED),
    "tar": lambda: tar(*MEMBERS, mode="w"),
    "tar.gz": lambda: tar(*MEMBERS),
    "tar.bz2": lambda: bz2.compress(tar(*MEMBERS, mode="w")),
    "tar.xz": lambda: lzma.compress(tar(*MEMBERS, mode="w")),
    "folders of their own": lambda: tar(member("./", kind=tarfile.DIRTYPE),
                                        member("photos", kind=tarfile.DIRTYPE), *MEMBERS),
    "zip with folders": lambda: zipped(("photos/", b""), *list(PHOTOS.items())[1:]),
    "notes of macOS": lambda: zipped(("__MACOSX/photos/._1.jpg", b"?"), *list(PHOTOS.items())[1:]),
    "rights of all kinds": lambda: tar(*MEMBERS, member("d", kind=tarfile.DIRTYPE, mode=0)),
}

@pytest.mark.parametrize("kind", SOUND)
def test_sound_archives(tmp_path, kind):
    folder = unpack(write(tmp_path, SOUND[kind]()), tmp_path / "out" / "photos", show=False)
    assert content(folder) == PHOTOS
    assert sorted(p.name for p in folder.parent.iterdir() if p.suffix != ".lock") == ["photos"]


def test_rights_are_as_for_new_files(tmp_path):
    wild = member("x.jpg", b"x", mode=0o6777, uid=4321), member("d", kind=tarfile.DIRTYPE, mode=0)
    folder = unpack(write(tmp_path, tar(*wild)), tmp_path / "out", show=False)
    (tmp_path / "new").write_bytes(b"")
    (tmp_path / "made").mkdir()
    for made, new in (("x.jpg", "new"), ("d", "made"), (".", "made")):
        mine, usual = (folder / made).stat(), (tmp_path / new).stat()
        assert (mine.st_mode, mine.st_uid) == (usual.st_mode, usual.st_uid)


LINKS = {
    "link": (lambda: tar(link("photos/2.jpg", "1.jpg")), "photos/2.jpg"),
    "link before its file": (lambda: tar(link("a.jpg", "b.jpg"), member("b.jpg", b"one")), "a.jpg"),
    "link up and down": (lambda: tar(link("x/y/2.jpg", "../../photos/1.jpg")), "x/y/2.jpg"),
    "link to a link": (lambda: tar(link("a", "b"), link("b", "photos/1.jpg")), "a"),
    "hard link": (lambda: tar(same("x/2.jpg", "photos/1.jpg")), "x/2.jpg"),
    "link in a zip": (lambda: zipped(zip_link("photos/2.jpg", "1.jpg")), "photos/2.jpg"),
}

@pytest.mark.parametrize("kind", LINKS)
def test_links_that_stay_inside_become_files(tmp_path, kind):
    make, name = LINKS[kind]
    found = content(unpack(write(tmp_path, make()), tmp_path / "out", show=False))
    assert found[name] == b"one"
    assert None not in found.values()   # no link is left


def row(kind):
    large = re.search("bomb|multiply|endless|long (pax|common|name|link)", kind)
    return pytest.param(kind, marks=[pytest.mark.slow] if large else [])


@pytest.mark.parametrize("kind", [row(kind) for kind in HOSTILE])
def test_hostile_archives_are_refused_and_leave_nothing(tmp_path, kind):
    make, text = HOSTILE[kind]
    file = write(tmp_path, make())
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    (tmp_path / "deep").mkdir()
    with pytest.raises(ArchiveError, match=f"(?i)can't unpack 'photos.archive': .*({text})"):
        unpack(file, tmp_path / "deep" / "folder", show=False)
    assert content(tmp_path) == {"photo.jpg": b"mine", "in/photos.archive": file.read_bytes()}
    assert [p.suffix for p in (tmp_path / "deep").iterdir()] == [".lock"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [name for name in HOSTILE if "long" in name])
def test_hostile_archives_take_no_memory(tmp_path, kind):
    file = write(tmp_path, HOSTILE[kind][0]())
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError): unpack(file, tmp_path / "out", show=False)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally: tracemalloc.stop()


NUMBERS = [b"\xff" * 4, bytes(4), b"../x", b"\x80\0\0\0"]


def mutate(data, rng):
    "A damaged copy: bits, bytes, numbers, cuts, parts moved."
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        if len(data) < 2: break
        at = rng.randrange(len(data))
        kind = rng.randrange(5)
        if kind == 0: data[at] ^= 1 << rng.randrange(8)
        elif kind == 1: data[at:at + 4] = rng.choice(NUMBERS)
        elif kind == 2: del data[at:]
        elif kind == 3: del data[at:at + rng.choice([1, 2, 100, 512])]
        else:
            start = rng.randrange(len(data))
            data[at:at] = data[start:start + 512]
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "stored zip", "tar", "tar.gz", "tar.xz"])
def test_damaged_archives_never_leave_the_folder(tmp_path, kind):
    "Either all is refused, or all that is there is in the folder."
    sound = {"photos/1.jpg": b"one", "photos/2.jpg": bytes(range(256)) * 9}
    members = [member("photos/2.jpg", sound["photos/2.jpg"]), link("a/b.jpg", "../photos/1.jpg")]
    zips = {"zip": zipfile.ZIP_DEFLATED, "stored zip": zipfile.ZIP_STORED}
    if kind in zips: data = zipped(("photos/2.jpg", sound["photos/2.jpg"]), kind=zips[kind])
    else: data = tar(*members, mode="w")
    packers = {"tar.gz": gzip.compress, "tar.xz": lzma.compress}
    refused = 0
    for i in range(round(60 * SHARE)):
        rng = random.Random(f"{kind} {i}")
        # damage is made before the compression, too, where its checksum doesn't notice
        inner = mutate(data, rng) if kind in packers and i % 2 else data
        packed = packers.get(kind, bytes)(inner)
        file = write(tmp_path, packed if inner is not data else mutate(packed, rng))
        home = tmp_path / f"{i}"
        home.mkdir()
        try: unpack(file, home / "folder", show=False)
        except ArchiveError: refused += 1
        assert {p.name for p in home.iterdir()} <= {"folder", ".folder.lock"}, i
        assert None not in content(home).values(), i
    assert refused
    assert content(tmp_path / "in").keys() == {"photos.archive"}


def test_the_same_archive_twice_and_another_one(tmp_path):
    first, second = write(tmp_path, tar(), "1.tar.gz"), write(tmp_path, zipped(), "2.zip")
    folder = unpack(first, tmp_path / "out", show=False)
    (folder / "photos/1.jpg").write_bytes(b"changed by its owner")
    unpack(first, folder, show=False)
    assert content(folder) == {"photos/1.jpg": b"changed by its owner"}
    with pytest.raises(FileExistsError, match="has files already"): unpack(second, folder)
    assert unpacked_from(folder) == archives.content_digest(first).hex()
    (tmp_path / "empty").mkdir()
    unpack(second, tmp_path / "empty", show=False)
    assert unpacked_from(tmp_path / "empty") == archives.content_digest(second).hex()
    assert unpacked_from(tmp_path) is None


def test_two_at_once(tmp_path):
    file, done = write(tmp_path, SOUND["tar.gz"]()), []
    def work(): done.append(unpack(file, tmp_path / "out", show=False))
    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert done == 4*[tmp_path / "out"]
    assert content(tmp_path / "out") == PHOTOS


def test_what_a_killed_process_left_is_removed(tmp_path):
    file = write(tmp_path, tar())
    left, other = tmp_path / ".out.0123.unpacking", tmp_path / ".outer.0123.unpacking"
    for folder in (left, other): (folder / "photos").mkdir(parents=True)
    unpack(file, tmp_path / "out", show=False)
    assert not left.exists()
    assert other.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_is_not_the_archives_fault(tmp_path, monkeypatch, number):
    def fail(*args): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(archives.Unpacking, "write", fail)
    with pytest.raises(OSError, match=os.strerror(number)):
        unpack(write(tmp_path, tar()), tmp_path / "out", show=False)
    assert not (tmp_path / "out").exists()


def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch):
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.setattr(archives.Unpacking, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        unpack(write(tmp_path, tar()), tmp_path / "out", show=False)
    assert {p.name for p in tmp_path.iterdir()} == {"in", ".out.lock"}


@pytest.mark.parametrize("name", [".lessonkit-unpacked.json", ".lessonkit-unpacked.json/x"])
def test_the_mark_is_our_own(tmp_path, name):
    "An archive can't say of itself which one it is."
    file = write(tmp_path, tar(member(name, b'{"sha256": "0"}')))
    folder = unpack(file, tmp_path / "out", show=False)
    assert unpacked_from(folder) == archives.content_digest(file).hex()
    assert content(folder) == {"photos/1.jpg": b"one"}


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_what_is_unpacked_is_found_where_nothing_can_be_written(tmp_path):
    file = write(tmp_path, tar())
    folder = unpack(file, tmp_path / "shared" / "out", show=False)
    folder.parent.chmod(0o555)
    try: assert unpack(file, folder, show=False) == folder
    finally: folder.parent.chmod(0o755)


def test_a_folder_is_no_archive(tmp_path):
    with pytest.raises(ArchiveError, match="is a folder"): unpack(tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError): unpack(tmp_path / "no.zip", tmp_path / "out")
