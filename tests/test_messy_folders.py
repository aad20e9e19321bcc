"""Folders as people have them: photos of several phones, downloads, and what systems leave there.

Each of the six factories finds the same images in them, and says what it leaves out, and why.
"""
import csv, io, os, struct, subprocess, sys, unicodedata, warnings, zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lessonkit.data import checks, formats
from lessonkit.data.checks import check_images
from lessonkit.data.formats import limit_decoding
from lessonkit.data.image_data import ImageData
from lessonkit.data.images import image_files, ImageReadError, list_images, open_image
from lessonkit.learner import Learner
from pictures import photo, saved

OPTIONS = dict(size=16, bs=4, threads=2)
HEIC = formats.can_open("HEIF")
if HEIC:
    from pillow_heif import register_heif_opener
    register_heif_opener()  # to save them
needs_heic = pytest.mark.skipif(not HEIC, reason="pillow-heif isn't installed")
posix = pytest.mark.skipif(os.name != "posix", reason="needs links and odd names")


# ---- a folder with a little of everything

def turned(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif.tobytes()  # given as bytes, HEIC files get a note of their own, too


def black_png(width, height):
    "A gray PNG without its pixels in memory."
    def chunk(name, body):
        checksum = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + checksum
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = [packer.compress(bytes(1 + width)) for _ in range(height)]
    body = b"".join([*rows, packer.flush()])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def clear(mode):
    "A photo whose left half is transparent."
    img = photo(3).convert("RGBA")
    img.paste((0, 0, 0, 0), (0, 0, 30, 44))
    return img if mode == "RGBA" else img.convert("RGB").quantize(8)


def make(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def good_files():
    "Names in a class folder, and what is in the files."
    moving = dict(save_all=True, append_images=[photo(5), photo(6)])
    files = {
        "IMG_0001.JPG": saved(photo(1), "JPEG"),
        "IMG_0002.Jpeg": saved(photo(2), "JPEG", quality=60, progressive=True),
        "PXL_20260704_101112345.jpg": saved(photo(3), "JPEG", exif=turned(6)),
        "WhatsApp Image 2026-07-04 at 10.11.12.jpeg": saved(photo(4), "JPEG"),
        "Screenshot 2026-07-04 at 10.11.12": saved(photo(5), "PNG"),  # no ending
        "IMG_2041": saved(photo(6), "JPEG"),
        "fa\u00e7ade \U0001f60a.PNG": saved(photo(7), "PNG"),
        "cafe\u0301.jpg": saved(photo(8), "JPEG"),
        "a b (1).webp": saved(photo(9), "WEBP"),
        "moving.webp": saved(photo(10), "WEBP", **moving),
        "moving.gif": saved(photo(11), "GIF", **moving),
        "clear.png": saved(clear("RGBA"), "PNG"),
        "palette.png": saved(clear("P"), "PNG", transparency=0),
        "print.jpg": saved(photo(12).convert("CMYK"), "JPEG"),
        "gray.jpg": saved(photo(13).convert("L"), "JPEG"),
        "bits.png": saved(photo(14).convert("1"), "PNG"),
        "sixteen.png": saved(Image.fromarray(np.full((9, 9), 40_000, np.uint16)), "PNG"),
        "scan.TIF": saved(photo(15), "TIFF", compression="tiff_lzw"),
        "is a png.jpg": saved(photo(16), "PNG"),
        "portrait.jpg": saved(photo(22), "MPO", save_all=True, append_images=[photo(23)]),
        "PXL_1.MP.jpg": saved(photo(24), "JPEG") + b"\0\0\0\x18ftypmp42" + bytes(5000),  # a film
        "thumbnail.jpg": saved(photo(17, 20, 15), "JPEG"),
        "panorama.jpg": saved(photo(18, 300, 40), "JPEG"),
        "n" * 240 + ".jpg": saved(photo(19), "JPEG"),
    }
    if formats.can_open("AVIF"): files["new.avif"] = saved(photo(20), "AVIF")
    if HEIC:
        heic = saved(photo(21), "HEIF")
        files |= {"IMG_3001.HEIC": heic, "IMG_3002.heic": heic, "renamed heic.jpg": heic}
    return files


def broken_files():
    "The same for files that can't be read, and words of the reasons."
    whole = saved(photo(1, 300, 200), "JPEG")
    return {
        "cut.jpg": (whole[:-len(whole) // 3], "truncated"), "empty.JPG": (b"", "is empty"),
        "page.jpg": (b"<!DOCTYPE html><title>404</title>", "web page"),
        "text.png": (b"no image at all", "cannot identify"),
        "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "format EPS"),
        "lfs.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        "header.webp": (saved(photo(2), "WEBP")[:40], "begins like WEBP"),
    }


CLUTTER = ("Thumbs.db", "desktop.ini", ".DS_Store", "._IMG_0001.JPG", "IMG_0001.AAE",
           "IMG_0001.MOV", "notes.txt", "README")
SYSTEM = ("__MACOSX/cat/._IMG_0001.JPG", "@eaDir/IMG_0001.JPG", ".thumbnails/IMG_0001.jpg",
          "cat/@eaDir/IMG_0001.JPG/SYNOPHOTO_THUMB_M.jpg", "cat/.ipynb_checkpoints/a.png")


def messy(root):
    "Two classes, cat and dog, with files of equal names."
    for name in ("cat", "dog"):
        for file, content in good_files().items(): make(root / name / file).write_bytes(content)
        for file in CLUTTER: (root / name / file).write_bytes(b"\0\1\2 something else")
    make(root / "cat" / "huge.png").write_bytes(black_png(8200, 8200))
    for file, (content, _) in broken_files().items(): (root / "cat" / file).write_bytes(content)
    for file in SYSTEM: make(root / file).write_bytes(saved(photo(99), "JPEG"))
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return messy(tmp_path_factory.mktemp("messy") / "my photos")


def names_in(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def expected(folder):
    "Paths of the good files, and of the broken ones."
    good = {folder / name / file for name in ("cat", "dog") for file in good_files()}
    return good | {folder / "cat/huge.png"}, {folder / "cat" / file for file in broken_files()}


def from_lists(folder, files, **options):
    return ImageData.from_lists(folder, files, [class_of(folder, f) for f in files], **options)


def from_df(folder, files, **options):
    names = [f.relative_to(folder).as_posix() for f in files]
    df = pd.DataFrame({"name": names, "label": [class_of(folder, f) for f in files]})
    return ImageData.from_df(folder, df, **options)


def from_csv(folder, files, **options):
    table = folder.parent / "labels.csv"
    with open(table, "w", newline="", encoding="utf-8") as f:
        rows = [(p.relative_to(folder).as_posix(), class_of(folder, p)) for p in files]
        csv.writer(f).writerows([("name", "label"), *rows])
    return ImageData.from_csv(folder, csv_labels=table, **options)


def class_of(folder, file): return file.relative_to(folder).parts[0]


def from_folder(folder, files, **options):
    return ImageData.from_folder(folder, **dict(valid_pct=.2) | options)


def from_name_func(folder, files, **options):
    return ImageData.from_name_func(folder, lambda file: class_of(folder, file), **options)


def from_name_re(folder, files, **options):
    return ImageData.from_name_re(folder, r"/(cat|dog)/", **options)


SEARCHING = [from_folder, from_name_func, from_name_re]
FACTORIES = [*SEARCHING, from_lists, from_df, from_csv]


def names_of(items): return [f.__name__ for f in items]


@pytest.mark.parametrize("factory", FACTORIES, ids=names_of(FACTORIES))
def test_all_factories_use_the_same_images_and_say_what_they_leave_out(folder, factory):
    before = names_in(folder)
    good, broken = expected(folder)
    with pytest.warns(UserWarning) as caught:
        data = factory(folder, sorted(good | broken), **OPTIONS)
    assert {*data.train.paths, *data.valid.paths} == good
    assert data.unreadable.keys() == broken
    for file, (_, words) in broken_files().items():
        assert words in data.unreadable[folder / "cat" / file]
    messages = [str(w.message) for w in caught]
    assert [m for m in messages if f"{len(broken)} of {len(good | broken)} files can't" in m]
    assert len(messages) == 1
    for loader in (data.train_eval, data.valid):
        labels = [data.label(y) for y in loader.targets]
        assert labels == [class_of(folder, p) for p in loader.paths]
        assert sum(len(batch.x) for batch in loader.batches()) == loader.n
    assert names_in(folder) == before


def test_the_check_has_a_row_for_each_file_that_is_broken_or_surprises(folder):
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    table = check_images(folder)
    assert list(table.columns) == ["file", "problem", "advice"]
    _, broken = expected(folder)
    odd = {"moving.webp": "several frames", "moving.gif": "several frames", "huge.png": "8200 x",
           "sixteen.png": "only 9 x 9", "thumbnail.jpg": "only 20 x 15",
           "panorama.jpg": "300 x 40"}
    rows = dict(zip(table.file, table.problem))
    good, _ = expected(folder)
    surprising = {p for p in good if p.name in odd}
    assert rows.keys() == broken | surprising
    assert list(table.file) == sorted(table.file)
    for path in surprising: assert odd[path.name] in rows[path]
    for path in broken: assert broken_files()[path.name][1] in rows[path]
    assert table.advice.str.len().min() > 5
    assert not table.problem.str.contains(str(folder), regex=False).any()
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_the_check_agrees_with_what_data_leaves_out(folder):
    good, broken = expected(folder)
    for full in (True, False):
        table = check_images([*good, *broken], full=full)
        unusable = table[table.advice.str.contains("again|instead|itself|convert|lfs|formats")]
        assert broken <= {*unusable.file}
    with pytest.warns(UserWarning):
        data = from_lists(folder, sorted(good | broken), check="full", **OPTIONS)
    assert data.unreadable.keys() == broken


def test_a_messy_folder_is_predicted_with_reasons_for_the_rest(folder, flat_learner):
    good, broken = expected(folder)
    with pytest.warns(UserWarning, match=f"{len(broken)} of {len(good | broken)} files"):
        preds = flat_learner.predict_folder(folder)
    assert {*preds.paths} == good
    assert {*preds.failed_paths.values()} == broken


@pytest.fixture(scope="module")
def flat_learner(tmp_path_factory):
    "A small network with random weights."
    flat = tmp_path_factory.mktemp("plain")
    for i in range(12): photo(i).save(flat / f"{'dog' if i % 2 else 'cat'}_{i}.png")
    data = ImageData.from_name_re(flat, r"^(\w+)_", **OPTIONS)
    return Learner(data, "resnet18", weights=None, show=False, device="cpu", precision="fp32")


def test_files_of_equal_names_keep_their_labels(folder):
    with pytest.warns(UserWarning): data = from_folder(folder, (), **OPTIONS)
    both = [p for p in (*data.train.paths, *data.valid.paths) if p.name == "IMG_0001.JPG"]
    assert sorted(p.parent.name for p in both) == ["cat", "dog"]


def test_surprises_are_named(tmp_path):
    photo(1).save(tmp_path / "good.png")
    photo(1, 300, 40).save(tmp_path / "panorama.png")
    Image.new("RGB", (60, 44), "navy").save(tmp_path / "pocket.jpg")
    Image.fromarray(np.arange(2500, dtype=np.uint16).reshape(50, 50)).save(tmp_path / "x-ray.png")
    table = check_images(tmp_path)
    assert [p.name for p in table.file] == ["panorama.png", "pocket.jpg", "x-ray.png"]
    assert 'fit="pad"' in table.advice[0]
    assert "one color" in table.problem[1]
    assert "pixel_range=(0, 4095)" in table.advice[2]
    assert len(check_images(tmp_path, pixel_range=(0, 255))) == 2


def test_an_interrupted_check_says_that_nothing_was_changed(tmp_path, monkeypatch):
    def interrupted(*args): raise KeyboardInterrupt
    monkeypatch.setattr(checks, "run_in_threads", interrupted)
    with pytest.raises(KeyboardInterrupt, match="checking 3 files; none was changed"):
        check_images([tmp_path / "a.png"] * 3)


def test_a_messy_test_folder(tmp_path):
    train, test = messy(tmp_path / "d" / "photos"), tmp_path / "d" / "test"
    for name in ("IMG_1.JPG", "IMG_2"): photo().save(make(test / name), "JPEG")
    make(test / "cut.jpg").write_bytes(saved(photo(), "JPEG")[:300])
    make(test / "Thumbs.db").write_bytes(b"\0")
    with pytest.warns(UserWarning, match="7 of"):
        data = ImageData.from_folder(train, valid_pct=.2, test=test, **OPTIONS)
    assert [p.name for p in data.test.paths] == ["IMG_1.JPG", "IMG_2", "cut.jpg"]


@posix
def test_links_count_once_and_dead_ones_are_reported(tmp_path):
    root = tmp_path / "photos"
    for i in range(6): photo(i).save(make(root / ("cat", "dog")[i % 2] / f"IMG_{i}.JPG"))
    (root / "cat" / "again.jpg").symlink_to("IMG_0.JPG")
    (root / "cat" / "gone").symlink_to("nowhere")
    (root / "cat" / "gone.jpg").symlink_to("nowhere.jpg")
    with pytest.warns(UserWarning, match="1 of 7 files can't be read.*gone.jpg.*which is missing"):
        data = ImageData.from_folder(root, valid_pct=.4, **OPTIONS)
    assert data.train.n + data.valid.n == 6
    table = check_images(root)
    assert [f.name for f in table.file] == ["gone.jpg"]
    assert "leave it out" in table.advice[0]


# ---- HEIC

@needs_heic
@pytest.mark.parametrize("format", ["HEIF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_phones_formats_are_opened_upright(tmp_path, format, orientation):
    if not formats.can_open(format): pytest.skip(f"this Pillow has no {format}")
    path, img = tmp_path / f"a.{format.lower()}", photo(3, 64, 48)
    path.write_bytes(saved(img, format, exif=turned(orientation), quality=95))
    jpeg = saved(img, "JPEG", exif=turned(orientation), quality=95)
    seen, wanted = (np.asarray(open_image(source)[0], int) for source in (path, jpeg))
    assert seen.shape == wanted.shape
    assert abs(seen - wanted).mean() < 9


@pytest.fixture
def without_heic(monkeypatch):
    monkeypatch.setattr(formats, "_heif_package", lambda: None)


HEIC_HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
PIP = 'pip install "lessonkit[heic]"'


@pytest.fixture
def iphone(tmp_path, without_heic):
    "Photos of an iPhone, most of them HEIC, and a table of all of them."
    root = tmp_path / "iphone"
    for i in range(8): photo(i).save(make(root / ("cat", "dog")[i % 2] / f"IMG_{i}.JPG"))
    for i in range(5): make(root / "cat" / f"IMG_1{i}.HEIC").write_bytes(HEIC_HEAD)
    make(root / "dog" / "IMG_20").write_bytes(HEIC_HEAD)
    return root


@pytest.mark.parametrize("factory", SEARCHING, ids=names_of(SEARCHING))
def test_heic_is_never_passed_over_in_silence(iphone, factory):
    with pytest.warns(UserWarning) as caught: data = factory(iphone, (), **OPTIONS)
    message, = [str(w.message) for w in caught]
    assert message.startswith("in 'iphone', 6 HEIC files are left out (IMG_10.HEIC, IMG_11.HEIC")
    assert PIP in message
    assert data.train.n + data.valid.n == 8


@pytest.mark.parametrize("factory", FACTORIES[3:], ids=names_of(FACTORIES[3:]))
def test_heic_that_is_listed_is_counted(iphone, factory):
    files = [p for p in iphone.rglob("*") if p.is_file()]
    with pytest.warns(UserWarning) as caught: data = factory(iphone, sorted(files), **OPTIONS)
    message, = [str(w.message) for w in caught]
    assert message.startswith("6 of 14 files can't be read and are left out")
    assert "IMG_10.HEIC, IMG_11.HEIC, and 4 more: it is a file of the format HEIC" in message
    assert PIP in message
    assert len(data.unreadable) == 6


def test_heic_in_other_folders_is_counted_too(iphone, flat_learner):
    wanted = "6 HEIC files are left out.*lessonkit.heic."
    with pytest.warns(UserWarning, match=wanted): image_files(iphone)
    with pytest.warns(UserWarning, match=wanted): preds = flat_learner.predict_folder(iphone)
    assert len(preds) == 8
    plain = iphone.parent / "plain"
    for i in range(8): photo(i + 9).save(make(plain / ("cat", "dog")[i % 2] / f"{i}.png"))
    with pytest.warns(UserWarning, match=wanted):
        data = ImageData.from_folder(plain, valid_pct=.4, test=iphone, **OPTIONS)
    assert data.test.n == 8
    table = check_images(iphone)
    assert len(table) == 6
    assert table.advice.str.contains(PIP, regex=False).all()
    files, skipped = list_images(iphone)
    assert (len(files), len(skipped["HEIF"])) == (8, 6)
    with pytest.raises(ImageReadError, match="format HEIC.*lessonkit.heic."):
        open_image(iphone / "cat" / "IMG_10.HEIC")


def test_other_formats_that_are_missing_are_counted_too(tmp_path, monkeypatch):
    for i in range(8): photo(i).save(make(tmp_path / ("cat", "dog")[i % 2] / f"{i}.png"))
    for i in range(3): (tmp_path / "cat" / f"{i}.avif").write_bytes(b"\0\0\0\x18ftypavif")
    monkeypatch.setattr(formats, "_built_into_pillow", lambda: {"AVIF": False})
    with pytest.warns(UserWarning, match="3 AVIF files are left out.*this Pillow has no AVIF"):
        data = from_folder(tmp_path, (), valid_pct=.4, **OPTIONS)
    assert data.train.n + data.valid.n == 8


def test_a_folder_of_heic_only_says_so(tmp_path, without_heic):
    for i in range(3): make(tmp_path / "d" / "cat" / f"{i}.HEIC").write_bytes(HEIC_HEAD)
    with pytest.warns(UserWarning, match="3 HEIC files are left out"):
        with pytest.raises(ValueError, match="no images found"):
            ImageData.from_folder(tmp_path / "d", valid_pct=.2)


LAZY = """
import sys, warnings
warnings.simplefilter("error")
from lessonkit.all import *
from pathlib import Path
folder = Path(sys.argv[1])
data = ImageData.from_folder(folder/"jpeg", valid_pct=.4, size=16, bs=4)
assert len(image_files(folder/"heic")) == 1
assert "pillow_heif" not in sys.modules, "loaded though nothing needed it"
open_image(folder/"heic"/"0.HEIC")
assert "pillow_heif" in sys.modules
"""


@needs_heic
def test_the_package_is_loaded_when_the_first_heic_is_opened(tmp_path):
    make(tmp_path / "heic" / "0.HEIC").write_bytes(saved(photo(), "HEIF"))
    for i in range(8): photo(i).save(make(tmp_path / "jpeg" / "ab"[i % 2] / f"{i}.jpg"))
    command = [sys.executable, "-c", LAZY, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_a_package_that_does_not_work_is_named(tmp_path, monkeypatch):
    def broken(name): raise ImportError("libheif.so.1: cannot open shared object file")
    monkeypatch.setattr(formats, "_heif_package", lambda: "pillow_heif")
    monkeypatch.setattr(formats, "import_module", broken)
    formats._register_heif.cache_clear()
    (tmp_path / "a.heic").write_bytes(HEIC_HEAD)
    with pytest.raises(ImageReadError, match="pillow_heif.*libheif.so.1.*--force-reinstall"):
        open_image(tmp_path / "a.heic")
    formats._register_heif.cache_clear()


def test_a_package_that_is_installed_meanwhile_is_found(tmp_path, monkeypatch):
    installed = []
    monkeypatch.setattr(formats, "find_spec", lambda name: name in installed)
    (tmp_path / "a.heic").write_bytes(HEIC_HEAD)
    with pytest.warns(UserWarning, match="1 HEIC"): assert image_files(tmp_path) == []
    installed.append("pillow_heif")
    assert image_files(tmp_path) == [tmp_path / "a.heic"]


# ---- tables

@pytest.fixture
def listed(tmp_path):
    "Images with names as a phone, a Mac and a person give them, and their labels."
    names = ["IMG_0001.JPG", "a, b.jpg", 'the "best".png', "caf\u00e9.png", "deep/c.jpg", "d e.jpg"]
    for i, name in enumerate(names): photo(i).save(make(tmp_path / name))
    labels = ["Stra\u00dfe", "a; b", "Stra\u00dfe", "a; b", "Stra\u00dfe", "a; b"]
    return tmp_path, dict(zip(names, labels))


def written(rows, delimiter=",", quoting=csv.QUOTE_MINIMAL, end="\r\n"):
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(rows)
    return file.getvalue().encode()


def table_variants(labels):
    "Ways to write down the same table: bytes, and the arguments that go with them."
    head, rows = [("file", "label")], [*labels.items()]
    table = head + rows
    mac = [(unicodedata.normalize("NFD", name), label) for name, label in rows]
    windows = [(name.replace("/", "\\"), label) for name, label in rows]
    semicolons = written(table, ";")
    wide = [(n, "x", y) for n, y in rows]
    return {
        "plain": (written(table), {}), "Unix": (written(table, end="\n"), {}),
        "semicolons": (semicolons, dict(delimiter=";")),
        "Excel": (b"sep=;\r\n" + semicolons, {}),
        "tabs": (written(table, "\t"), dict(delimiter="\t")),
        "all quoted": (written(table, quoting=csv.QUOTE_ALL), {}),
        "BOM": (b"\xef\xbb\xbf" + written(table), {}),
        "no head": (written(rows), dict(header=None)),
        "blank rows": (written(head) + b"\r\n,\r\n" + written(rows) + b"\r\n\r\n", {}),
        "more columns": (written([("n", "by", "y"), *wide]), dict(label_col="y")),
        "trailing commas": (written([(*row, "") for row in table]), {}),
        "a Mac's names": (written(head + mac), {}),
        "Windows' folders": (written(head + windows), {}),
    }


VARIANTS = list(table_variants({}))


@posix
@pytest.mark.parametrize("variant", VARIANTS)
def test_tables_come_in_many_forms(listed, variant):
    folder, labels = listed
    content, options = table_variants(labels)[variant]
    (folder / "labels.csv").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = ImageData.from_csv(folder, valid_idx=[0, 1], **options, **OPTIONS)
    found = {}
    for loader in (data.valid, data.train_eval):
        for path, y in zip(loader.paths, loader.targets): found[path] = data.label(y)
    names = [p.relative_to(folder).as_posix() for p in found]
    assert dict(zip(names, found.values())) == labels


WRONG_TABLES = {
    "another delimiter": (b"file;label\r\na.png;x\r\n", r"is it delimiter=';'"),
    "a missing file": (b"file,label\r\na.png,x\r\nnone.png,y\r\n", r"1 of 2 files do not exist: "),
    "other capitals": (b"file,label\r\nA.PNG,x\r\n", "There is 'a.png' instead of 'A.PNG'"),
    "no endings": (b"file,label\r\na,x\r\n", "There is 'a.png' instead of 'a'"),
    "converted": (b"file,label\r\na.heic,x\r\n", "There is 'a.png' instead of 'a.heic'"),
    "a folder inside": (b"file,label\r\nb.png,x\r\n", "'b.png' is in the folder 'inside'"),
    "another computer": (b"file,label\r\n/home/me/x/a.png,x\r\n", "There is no folder '/home/me/x"),
    "a row too long": (b"file,label\r\na.png,x,y\r\n", "line 2 of 'labels.csv' has 3 cells"),
    "a row too short": (b"file,label\r\na.png\r\n", "line 2 of 'labels.csv' has 1 cells"),
    "no label": (b"file,label\r\na.png,\r\n", "1 empty labels, first in row 0"),
    "Latin-1": ("file,label\r\na.png,Stra\u00dfe\r\n".encode("cp1252"), "not a text file in UTF-8"),
    "UTF-16": ("file,label\r\na.png,x\r\n".encode("utf-16"), "not a text file in UTF-8"),
    "a workbook": (b"PK\3\4\0\0", "pandas.read_excel"), "nothing": (b"", "is empty"),
    "no rows": (b"file,label\r\n", "none with an image below"),
    "two labels": (b"file,label\r\na.png,x\r\na.png,y\r\n", "a file has two labels"),
}


@posix
@pytest.mark.parametrize("name", WRONG_TABLES)
def test_what_is_wrong_with_a_table_is_said(tmp_path, name):
    photo().save(tmp_path / "a.png")
    photo().save(make(tmp_path / "inside" / "b.png"))
    content, message = WRONG_TABLES[name]
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ImageData.from_csv(tmp_path, **OPTIONS)


# ---- memory

def test_an_image_that_is_too_large_is_left_out_with_advice(tmp_path):
    for i in range(6): photo(i).save(make(tmp_path / ("cat", "dog")[i % 2] / f"{i}.png"))
    (tmp_path / "cat" / "wall.png").write_bytes(black_png(6000, 6000))
    limit_decoding(2**-6)  # 16 MB
    try:
        with pytest.warns(UserWarning, match="wall.png: decoding it .6000 x 6000 pixels."):
            data = ImageData.from_folder(tmp_path, valid_pct=.4, **OPTIONS)
        table = check_images(tmp_path)
    finally: limit_decoding(1)
    assert [p.name for p in data.unreadable] == ["wall.png"]
    assert [p.name for p in table.file] == ["wall.png"]
    assert "make the image smaller" in table.advice[0]
    assert [p.name for p in check_images(tmp_path).file] == ["wall.png"]  # of one color
