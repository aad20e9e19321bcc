"""Opening one image: whatever form it comes in, whatever is wrong with it, and within bounds."""
import io, os, random, signal, socket, struct, subprocess, sys, threading, time, warnings, zlib
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lessonkit.data import formats
from lessonkit.data.formats import FORMATS, limit_decoding
from lessonkit.data.image_data import ImageData
from lessonkit.data.images import (
    image_files, ImageReadError, open_image, open_pixels, passed_over, suggest_pixel_range,
    unreadable_images,
)
from pictures import photo, saved

posix = pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")
KINDS = [  # endings, formats as Pillow calls them, and options for saving
    ("jpg", "JPEG", {}), ("png", "PNG", {}), ("gif", "GIF", {}), ("bmp", "BMP", {}),
    ("tif", "TIFF", {}), ("tif", "TIFF", dict(compression="tiff_lzw")),
    ("tif", "TIFF", dict(compression="jpeg")), ("webp", "WEBP", {}),
    ("webp", "WEBP", dict(lossless=True)), ("ppm", "PPM", {}), ("tga", "TGA", {}),
    ("tga", "TGA", dict(compression="tga_rle")), ("avif", "AVIF", {}), ("jp2", "JPEG2000", {}),
]
if formats.can_open("HEIF"):
    from pillow_heif import register_heif_opener
    register_heif_opener()  # to save them
    KINDS.append(("heic", "HEIF", {}))


def pixels_of(source, *args, **options):
    return np.asarray(open_image(source, *args, **options)[0])


# ---- what is opened

PROGRAM = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n{} loop\nshowpage\n"


@pytest.mark.parametrize("content", [
    PROGRAM, b"\xc5\xd0\xd3\xc6" + bytes(60), b"%PDF-1.4\n" + bytes(200), b"GRIB" + bytes(200),
    b"\x89HDF\r\n\x1a\n" + bytes(200), b"\xd7\xcd\xc6\x9a" + bytes(200), b"BUFR" + bytes(200),
    b"\0\0\1\xb3" + bytes(200), b"SIMPLE  =                    T" + bytes(3000), b"text", b"",
], ids=lambda content: repr(content[:8]))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_other_formats_are_never_opened(tmp_path, content, ending, monkeypatch):
    def no_program(*args, **options): raise AssertionError("a program was started")
    monkeypatch.setattr(subprocess, "Popen", no_program)
    path = tmp_path / f"cat.{ending}"
    path.write_bytes(content)
    for full in (False, True): assert [*unreadable_images([path], full)] == [path]
    for source in (path, str(path), content, io.BytesIO(content)):
        with pytest.raises(ImageReadError): open_image(source, 32)


def test_a_pillow_image_of_another_format_is_refused(tmp_path):
    path = tmp_path / "cat.jpg"
    path.write_bytes(PROGRAM)
    with Image.open(path) as img:
        with pytest.raises(ImageReadError, match="EPS, which isn't opened"): open_image(img)


def test_files_that_are_no_images_are_not_listed(tmp_path):
    for ending in "pdf mpg mpeg h5 hdf grib bufr wmf emf ps eps fits txt npy svg".split():
        (tmp_path / f"a.{ending}").write_bytes(b"content")
    assert image_files(tmp_path) == []


@posix
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.path.relpath(tmp_path / "socket.jpg"))
    expected = dict(pipe="a pipe", zero="a device", folder="a folder", socket="a socket")
    for name, kind in expected.items():
        path = tmp_path / f"{name}.jpg"
        for full in (False, True): assert f"it is {kind}" in unreadable_images([path], full)[path]
        with pytest.raises(ImageReadError, match=f"{name}.jpg.*it is {kind}"): open_pixels(path, 9)
    listening.close()


@pytest.mark.parametrize("ending,format,options", KINDS)
def test_content_decides(tmp_path, ending, format, options):
    "A file of any known format may have the ending of another one."
    content = saved(photo(), format, **options)
    expected = pixels_of(content)
    for other in ("jpg", "png", ending):
        (tmp_path / f"a.{other}").write_bytes(content)
        assert (pixels_of(tmp_path / f"a.{other}") == expected).all()
        assert unreadable_images([tmp_path / f"a.{other}"]) == {}


def test_more_formats_can_be_allowed(tmp_path):
    photo().save(tmp_path / "a.pcx")
    assert image_files(tmp_path) == []
    assert "allow_formats('PCX')" not in str(passed_over(tmp_path))
    formats.allow_formats("PCX")
    try:
        assert image_files(tmp_path) == [tmp_path / "a.pcx"]
        assert (pixels_of(tmp_path / "a.pcx") == np.asarray(photo())).all()
    finally: del FORMATS["PCX"]


# ---- every form gives the same answer, and is left as it was

@pytest.mark.parametrize("ending,format,options", KINDS)
@pytest.mark.parametrize("size", [None, 20])
def test_every_form_of_a_file_gives_the_same_image(tmp_path, ending, format, options, size):
    path = tmp_path / f"a.{ending}"
    content = saved(photo(width=200, height=150), format, **options)
    path.write_bytes(content)
    expected = pixels_of(path, size)
    at_end = io.BytesIO(content)
    at_end.seek(0, os.SEEK_END)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive: archive.write(path, "a")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive, open(path, "rb") as file:
        forms = [str(path), content, bytearray(content), memoryview(content), at_end, file,
                 archive.open("a"), zipfile.Path(archive, "a"), Image.open(path)]
        for form in forms:
            for _ in range(2): assert (pixels_of(form, size) == expected).all(), form
    assert at_end.tell() == len(content)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_form_of_an_array_gives_the_same_image(channels):
    array = np.asarray(photo())
    expected = open_pixels(array, 16, channels)[0]
    first = np.ascontiguousarray(array.transpose(2, 0, 1))
    floats = array / 255
    for form in (Image.fromarray(array), first, torch.tensor(first), torch.tensor(array),
                 array.astype(np.int64), array.astype(np.uint16) * 257, floats,
                 floats.astype(np.float32), torch.tensor(floats).permute(2, 0, 1),
                 torch.tensor(floats, requires_grad=True), memoryview(array),
                 np.asfortranarray(array)):
        assert (open_pixels(form, 16, channels)[0] == expected).all()


def test_arrays_in_files_are_read_like_arrays(tmp_path):
    array = np.asarray(photo())
    for name, form in dict(last=array, first=array.transpose(2, 0, 1), floats=array / 255).items():
        np.save(tmp_path / name, form)
        assert (pixels_of(tmp_path / f"{name}.npy") == array).all()
        content = (tmp_path / f"{name}.npy").read_bytes()
        (tmp_path / f"{name}.jpg").write_bytes(content)  # content decides
        for source in (content, io.BytesIO(content), tmp_path / f"{name}.jpg"):
            assert (pixels_of(source) == array).all()


@pytest.mark.parametrize("wrong", [
    np.float64(3), np.uint8(3), np.zeros(()), np.zeros(9, np.uint8), np.zeros((2, 9, 9, 3)),
    np.zeros((0, 9)), np.array([["a"]]), np.array([[None]]), np.zeros((2, 2), complex),
    torch.zeros(2, 3, 9, 9), 3, None, [1, 2], [[0, 255]], {}, object(), np.zeros((9, 9, 7)),
    int, b"", "", io.StringIO("text"),
], ids=lambda value: type(value).__name__)
def test_what_is_not_one_image_is_refused(wrong):
    with pytest.raises(ImageReadError, match="can't read .*: ..."): open_image(wrong)


@pytest.mark.parametrize("prepare", [
    lambda img: None, lambda img: img.load(), lambda img: img.draft("RGB", (90, 90))])
def test_a_pillow_image_is_left_as_it_was(tmp_path, prepare):
    photo(width=400, height=300).save(tmp_path / "a.jpg")
    img = Image.open(tmp_path / "a.jpg")
    prepare(img)
    before = img.mode, img.size
    for channels in (1, 3, 4):
        for size in (None, 20):
            opened = open_image(img, size, channels)[0]
            opened.paste(0, (0, 0, 9, 9))  # the caller may change what came back
    assert (img.mode, img.size) == before
    plain = Image.open(tmp_path / "a.jpg")
    plain.draft("RGB", before[1])
    assert (np.asarray(img) == np.asarray(plain)).all()


def test_errors_without_words_give_their_name(tmp_path):
    class NoMemory:
        def read(self, *args): raise MemoryError
        def seek(self, *args): pass
        def tell(self): return 0
    with pytest.raises(ImageReadError, match="MemoryError"): open_image(NoMemory())
    photo().save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as closed: pass
    with pytest.raises(ImageReadError, match="can't read the JpegImageFile given: .*[a-zA-Z]"):
        open_image(closed)
    with pytest.raises(ImageReadError, match="mode 'rb'"):
        with open(tmp_path / "a.jpg", encoding="latin1") as text: open_image(text)


# ---- one rule for all numbers

@pytest.mark.parametrize("top", [65535, 4095, 1023, 257, 256, 255, 200])
def test_sixteen_bits_do_not_depend_on_the_brightest_pixel(tmp_path, top):
    ramp = np.linspace(0, top, 600).reshape(20, 30).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    np.save(tmp_path / "a.npy", ramp)
    for source in (ramp, *(tmp_path / f"a.{e}" for e in ("png", "tif", "npy"))):
        assert (open_pixels(source, None, 1)[0][..., 0] == ramp // 257).all()
        scaled = open_pixels(source, None, 1, (0, 4095))[0][..., 0]
        assert (scaled == ramp.astype(int).clip(0, 4095) * 255 // 4095).all()


@pytest.mark.parametrize("values,pixel_range", [
    (np.linspace(0, 1e5, 600).astype(np.int32), (0, 1e5)),
    (np.linspace(-1000, 1000, 600).astype(np.int32), (-1000, 1000)),
    (np.linspace(0, 255, 600).astype(np.float32), (0, 255)),
    (np.linspace(-3, 5, 600).astype(np.float32), (-3, 5)),
])
def test_other_numbers_need_a_range(tmp_path, values, pixel_range):
    values = values.reshape(20, 30)
    Image.fromarray(values).save(tmp_path / "a.tif")
    for source in (values, tmp_path / "a.tif", Image.fromarray(values), torch.tensor(values)):
        with pytest.raises(ImageReadError, match="pixel_range="): open_image(source)
        seen = open_pixels(source, None, 1, pixel_range)[0]
        assert (seen.min(), seen.max()) == (0, 255)
        assert len(np.unique(seen)) > 200
    for full in (False, True):
        assert "pixel_range" in unreadable_images([tmp_path / "a.tif"], full)[tmp_path / "a.tif"]
    assert unreadable_images([tmp_path / "a.tif"], pixel_range=pixel_range) == {}


def test_data_of_twelve_bits(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 4096, (20, 20), dtype=np.uint16)).save(
            tmp_path / f"{'ab'[i % 2]}_{i}.png")
    pattern, options = r"^(.)_", dict(size=16, presize=16, bs=4)
    assert suggest_pixel_range(image_files(tmp_path)) == (0, 4095)
    for _ in range(2):  # each time that data is made, once
        with pytest.warns(UserWarning, match=r"pixel_range=\(0, 4095\)") as caught:
            dark = ImageData.from_name_re(tmp_path, pattern, **options)
        assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = ImageData.from_name_re(tmp_path, pattern, pixel_range=(0, 4095), **options)
    assert next(dark.valid.batches()).x.max() < 16
    assert next(data.valid.batches()).x.max() > 200
    assert data.pixel_range == (0, 4095)
    with pytest.raises(ValueError, match="pixel_range is None, or the two numbers"):
        ImageData.from_name_re(tmp_path, pattern, pixel_range=4095, **options)


# ---- listing

@posix
def test_links_are_followed_and_files_listed_once(tmp_path):
    root, store = tmp_path / "root", tmp_path / "store"
    for folder in (root / "cat", store / "fox", store / "deep" / "er"):
        folder.mkdir(parents=True)
        for i in range(3): photo(key=i).save(folder / f"{i}.png")
    (root / "fox").symlink_to(store / "fox")
    (root / "owl").symlink_to(store / "deep")
    (root / "kitty").symlink_to("cat")
    (root / "cat" / "up").symlink_to("..")
    (root / "cat" / "top").symlink_to("/")
    (store / "fox" / "back").symlink_to(root)
    (root / "one.png").symlink_to(store / "fox" / "1.png")
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "self.png").symlink_to("self.png")
    (store / "blob").write_bytes(saved(photo(), "PNG"))
    (root / "blob.png").symlink_to(store / "blob")  # as a cache of downloads does it
    names = [f.relative_to(root).as_posix() for f in image_files(root)]
    folders = [f"{folder}/{i}.png" for folder in ("cat", "fox", "owl/er") for i in range(3)]
    assert names == sorted([*folders, "blob.png", "gone.png", "self.png"])
    bad = unreadable_images(image_files(root))
    assert {f.name for f in bad} == {"gone.png", "self.png"}
    assert "link" in bad[root / "gone.png"]
    reasons = passed_over(root)
    assert {p.relative_to(root).as_posix() for p in reasons} == {"kitty", "cat/up", "cat/top",
                                                                 "fox/back"}


def test_what_is_passed_over_is_named(tmp_path):
    (tmp_path / "fox").mkdir()
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    for name in ("no_ending", "ending.odd"):
        (tmp_path / "fox" / name).write_bytes(saved(photo(), "JPEG"))
    (tmp_path / "fox" / "raw.NEF").write_bytes(b"II*\0" + bytes(40))
    (tmp_path / "notes.txt").write_text("BMP")
    (tmp_path / "a.xyz").write_text("BM")
    (tmp_path / "ok.png").write_bytes(saved(photo(), "PNG"))
    expected = {"ending.odd", "raw.NEF"}
    for name in ("IMG_1.HEIC", "IMG_2"): (tmp_path / "fox" / name).write_bytes(heic)
    if not formats.can_open("HEIF"): expected |= {"IMG_1.HEIC", "IMG_2"}
    reasons = {p.name: reason for p, reason in passed_over(tmp_path).items()}
    assert reasons.keys() == expected
    with pytest.warns(UserWarning, match="1 camera raw file is left out .raw.NEF.: convert"):
        assert tmp_path / "fox" / "no_ending" in image_files(tmp_path)
    assert all("convert" in r or "rename" in r for r in reasons.values())


# ---- damaged files

@pytest.mark.parametrize("ending,format,options", KINDS)
def test_cut_files_are_found_by_the_quick_check(tmp_path, ending, format, options):
    content = saved(photo(), format, **options)
    rng = random.Random(0)
    path = tmp_path / f"a.{ending}"
    for share in (.05, .3, .5, .7, .9, .97, rng.random(), rng.random()):
        path.write_bytes(content[:int(share * len(content))])
        try: open_image(path)
        except ImageReadError: assert [*unreadable_images([path])] == [path], share
        else: assert unreadable_images([path]) == {}, share


def damaged(content, name, rng):
    "Bytes of a note are changed."
    at = content.index(name) + rng.randrange(24)
    width = rng.choice((1, 4, 8))
    new = rng.choice((bytes(width), b"\xff" * width, rng.randbytes(width)))
    return content[:at] + new + content[at + width:]


@pytest.mark.parametrize("format,names", [
    ("JPEG", [b"Exif", b"maker"]), ("PNG", [b"eXIf", b"zTXt", b"iTXt", b"maker"]),
    ("WEBP", [b"EXIF", b"maker"]), ("TIFF", [b"maker"])])
def test_pixels_survive_damaged_notes(tmp_path, format, names):
    exif, info = Image.Exif(), PngInfo()
    exif.update({271: "maker" * 9, 272: "model" * 9, 274: 3})
    info.add_text("title", "a picture of noise " * 9, zip=True)
    info.add_itxt("title", "ein Bild " * 9, zip=True)
    options = dict(PNG=dict(pnginfo=info), WEBP=dict(lossless=True)).get(format, {})
    content = saved(photo(), format, exif=exif, **options)
    turned = pixels_of(content)
    rng, path = random.Random(0), tmp_path / f"a.{format.lower()}"
    for name in names:
        for _ in range(20):
            path.write_bytes(damaged(content, name, rng))
            seen = pixels_of(path.read_bytes())
            assert (seen == turned).all() or (seen == turned[::-1, ::-1]).all(), name
            assert unreadable_images([path]) == {}, name


@pytest.mark.parametrize("kind, body, checksum", [
    (b"tEXt", b"title\0a dog", 0), (b"pHYs", b"\0\0", None), (b"gAMA", b"\0", None),
    (b"zTXt", b"title\0\0" + zlib.compress(bytes(70_000_000)), None), (b"eXIf", b"junk", 0),
], ids=["checksum", "short", "short gamma", "huge text", "EXIF"])
def test_all_checks_pass_over_damaged_notes(tmp_path, kind, body, checksum):
    content, path = png(9, 5), tmp_path / "a.png"
    if checksum is None: checksum = zlib.crc32(kind + body)
    note = struct.pack(">I4s", len(body), kind) + body + struct.pack(">I", checksum)
    path.write_bytes(content[:33] + note + content[33:])
    assert open_image(path)[0].size == (9, 5)
    assert [unreadable_images([path], full) for full in (False, True)] == [{}, {}]


# ---- memory

def png(width, height, kind=0):
    "A black PNG without the pixels in memory; `kind` 0 is gray, 2 is RGB."
    row = bytes(1 + width * (3 if kind else 1))
    packer, parts = zlib.compressobj(9), []
    rows = max(1, 2**20 // len(row))
    for start in range(0, height, rows):
        parts.append(packer.compress(row * min(rows, height - start)))
    def chunk(name, body):
        checksum = zlib.crc32(name + body)
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", checksum)
    head = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    body = b"".join(parts) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.fixture
def small_limit():
    limit_decoding(2**-6)  # 16 MB
    yield
    limit_decoding(1)


@pytest.mark.parametrize("content", [
    png(1, 1_500_000), png(3000, 3000, 2), saved(Image.new("RGB", (3000, 3000)), "WEBP"),
    saved(Image.fromarray(np.zeros((3000, 3000), np.float32)), "TIFF"),
    saved(Image.new("RGB", (3000, 3000)), "JPEG"),
], ids=["narrow PNG", "PNG", "WebP", "float TIFF", "JPEG"])
def test_images_beyond_the_limit_are_refused_by_name(tmp_path, small_limit, content):
    path = tmp_path / "big.img"
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match=r"big.img.*0.02 GB.*call limit_decoding\(1\)"):
        open_image(path)
    if not content.startswith(b"\xff\xd8"): assert [*unreadable_images([path])] == [path]
    limit_decoding(1)
    assert open_pixels(path, 10)[0].shape == (10, 10, 3)
    assert unreadable_images([path]) == {}


def test_a_large_jpeg_that_is_wanted_small_fits(tmp_path, small_limit):
    Image.new("RGB", (3000, 3000)).save(tmp_path / "a.jpg")
    assert open_pixels(tmp_path / "a.jpg", 200)[0].shape == (200, 200, 3)
    assert unreadable_images([tmp_path / "a.jpg"]) == {}


MEASURED = """
import sys
from concurrent.futures import ThreadPoolExecutor
from lessonkit.data.formats import limit_decoding
from lessonkit.data.images import open_pixels
def status(name): return next(int(l.split()[1]) for l in open("/proc/self/status") if name in l)
limit_decoding(.2)
before = status("VmHWM")
with ThreadPoolExecutor(8) as pool: list(pool.map(lambda _: open_pixels(sys.argv[1], 64), range(8)))
print((status("VmHWM") - before) / 1024, (status("VmRSS") - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_threads_share_the_memory_and_give_it_back(tmp_path):
    (tmp_path / "a.png").write_bytes(png(6000, 6000, 2))  # 140 MB decoded
    ran = subprocess.run([sys.executable, "-c", MEASURED, str(tmp_path / "a.png")],
                         capture_output=True, text=True, check=True)
    peak, left = map(float, ran.stdout.split())
    assert 100 < peak < 250
    assert left < 60


def test_too_many_pixels_for_pillow(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(15_000, 15_000))
    with pytest.raises(ImageReadError, match="bomb.png.*225000000 pixels.*MAX_IMAGE_PIXELS"):
        open_image(path)
    assert [*unreadable_images([path])] == [path]


def test_a_budget_is_shared_and_never_exceeded():
    budget, together, most = formats.MemoryBudget(10), [], []
    def work(needed):
        with budget.reserve(needed):
            together.append(needed)
            most.append(sum(together))
            time.sleep(.001)
            together.remove(needed)
    with ThreadPoolExecutor(8) as pool: list(pool.map(work, [3, 10, 7, 1] * 20))
    assert max(most) <= 10
    assert budget.used == 0


# ---- Ctrl-C

@pytest.mark.parametrize("full", [False, True])
def test_ctrl_c_stops_the_check_within_half_a_second(tmp_path, full):
    photo(width=300, height=200).save(tmp_path / "a.png")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    pressed = []
    def press():
        pressed.append(time.monotonic())
        signal.raise_signal(signal.SIGINT)
    timer = threading.Timer(.2, press)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt, match="none was changed"):
            unreadable_images([tmp_path / "a.png"] * 100_000, full, threads=2)
        assert time.monotonic() - pressed[0] < .5
    finally: signal.signal(signal.SIGINT, before)
