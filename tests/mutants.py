"""Damaged image files, each from a seed: what tests/test_fuzz_images.py opens.

`originals()` are small files in many formats. `mutant(number)` is one of them with random damage:
flipped bits, cuts, numbers and sizes that can't be right, chunks that were swapped, and so on.
The same numbers give the same files as long as Pillow and its codecs stay the same.
"""
import importlib.util, io, random, re, struct, zlib
from functools import cache

import numpy as np
from PIL import features, Image, PngImagePlugin

from pictures import saved

WIDTH, HEIGHT = 61, 47   # numbers that are easy to find in the head of a file


# ---- originals

def picture(mode="RGB", key=0):
    "Smooth colors with some noise."
    rng = np.random.default_rng(key)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    layers = [128 + 90 * np.sin(x / 9 + k) * np.cos(y / (5 + k + key)) for k in range(3)]
    pixels = np.stack(layers, 2) + rng.normal(0, 6, (HEIGHT, WIDTH, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def sixteen_bits():
    return Image.fromarray(np.asarray(picture("L")).astype(np.uint16) * 257)


def notes():
    "EXIF that turns the image, and texts."
    exif, texts = Image.Exif(), PngImagePlugin.PngInfo()
    exif.update({271: "maker" * 9, 272: "model" * 9, 274: 6})
    texts.add_text("title", "a picture of noise " * 9, zip=True)
    texts.add_itxt("title", "a picture of noise " * 9, zip=True)
    return exif, texts


def array_file(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def common_formats():
    exif, texts = notes()
    frames = dict(save_all=True, append_images=[picture(key=1), picture(key=2)])
    clear = picture("RGBA")
    clear.putalpha(picture("L", key=1))
    return {
        "jpg": saved(picture(), "JPEG"),
        "progressive.jpg": saved(picture(), "JPEG", progressive=True),
        "cmyk.jpg": saved(picture("CMYK"), "JPEG"),
        "turned.jpg": saved(picture(), "JPEG", exif=exif, icc_profile=bytes(200)),
        "png": saved(picture(), "PNG"),
        "palette.png": saved(picture("P"), "PNG", transparency=3),
        "sixteen.png": saved(sixteen_bits(), "PNG"),
        "notes.png": saved(clear, "PNG", exif=exif, pnginfo=texts),
        "animated.png": saved(picture(), "PNG", **frames),
        "gif": saved(picture("P"), "GIF"),
        "animated.gif": saved(picture(), "GIF", **frames),
        "webp": saved(picture(), "WEBP", exif=exif),
        "lossless.webp": saved(clear, "WEBP", lossless=True),
        "animated.webp": saved(picture(), "WEBP", **frames),
        "bmp": saved(picture(), "BMP"),
        "palette.bmp": saved(picture("P"), "BMP"),
        "ico": saved(picture(), "ICO", sizes=[(32, 32)]),
    }


def other_formats():
    text = " ".join(map(str, np.asarray(picture("L")).ravel())).encode()
    floats = Image.fromarray(np.asarray(picture("L"), np.float32) / 255)
    return {
        "tif": saved(picture(), "TIFF"),
        "lzw.tif": saved(picture(), "TIFF", compression="tiff_lzw"),
        "deflate.tif": saved(picture("RGBA"), "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": saved(picture(), "TIFF", compression="jpeg"),
        "group4.tif": saved(picture("1"), "TIFF", compression="group4"),
        "sixteen.tif": saved(sixteen_bits(), "TIFF"),
        "npy": array_file(np.asarray(picture())),
        "sixteen.npy": array_file(np.asarray(sixteen_bits())),
        "ppm": saved(picture(), "PPM"),
        "text.pgm": b"P2\n%d %d\n255\n" % (WIDTH, HEIGHT) + text,
        "pfm": saved(floats, "PPM"),
        "tga": saved(picture("RGBA"), "TGA"),
        "packed.tga": saved(picture(), "TGA", compression="tga_rle"),
    }


@cache
def originals():
    "Intact files: {name, whose ending is that of the file: content}. Some need optional codecs."
    found = common_formats() | other_formats()
    if features.check("avif"): found["avif"] = saved(picture(), "AVIF")
    if features.check("jpg_2000"): found["jp2"] = saved(picture(), "JPEG2000")
    if importlib.util.find_spec("pillow_heif"):
        from pillow_heif import register_heif_opener
        register_heif_opener()
        found["heic"] = saved(picture(), "HEIF")
        found["clear.heic"] = saved(picture("RGBA"), "HEIF")
    return found


# ---- damage: each function takes a random generator and the content of a file

def place(rng, content):
    "A position: half of them near the beginning."
    share = rng.random()
    return int(len(content) * (share**4 if rng.random() < .5 else share))


def part(rng, content):
    "Two positions, seldom far apart."
    begin = place(rng, content)
    return begin, min(len(content), begin + 1 + int(len(content) * rng.random()**4))


def flip_bits(rng, content):
    out = bytearray(content)
    for _ in range(rng.choice((1, 2, 8, 64))):
        out[place(rng, content)] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(rng, content): return content[:place(rng, content)]


def remove(rng, content):
    begin, end = part(rng, content)
    return content[:begin] + content[end:]


def insert(rng, content):
    at, count = place(rng, content), rng.choice((1, 2, 4, 100))
    new = rng.choice((bytes(count), b"\xff" * count, rng.randbytes(count)))
    return content[:at] + new + content[at:]


def repeat(rng, content):
    begin, end = part(rng, content)
    return content[:end] + content[begin:end] * rng.choice((1, 3, 50)) + content[end:]


def blank(rng, content):
    begin, end = part(rng, content)
    return content[:begin] + rng.choice((b"\0", b"\xff")) * (end - begin) + content[end:]


def splice(rng, content):
    "The beginning of one file and the end of another."
    other = rng.choice([*originals().values()])
    return content[:place(rng, content)] + other[place(rng, other):]


NUMBERS = (0, 1, 2, 7, 2**7 - 1, 2**7, 2**8 - 1, 2**12, 2**14, 2**15 - 1, 2**15, 2**16 - 1, 10**5,
           2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**64 - 1)
ORDERS = "big", "little"
SIDES = (1, 33, 200, 1000, 2500, 5000, 7000, 9000)   # of images that may be opened


def packed(number, width, order):
    "A number, or the largest one that has so many bytes."
    return min(number, 256**width - 1).to_bytes(width, order)


def change_number(rng, content):
    at, width = place(rng, content), rng.choice((1, 2, 4, 8))
    new = packed(rng.choice(NUMBERS), width, rng.choice(ORDERS))
    return content[:at] + new + content[at + width:]


def pattern_of_sizes():
    "How width and height, or one less, may be stored."
    sides = WIDTH, HEIGHT, WIDTH - 1, HEIGHT - 1
    known = [side.to_bytes(n, order) for n in (4, 2) for order in ORDERS for side in sides]
    known += [b"%d" % WIDTH, b"%d" % HEIGHT]
    return re.compile(b"|".join(map(re.escape, known)))


SIZES = pattern_of_sizes()


def change_size(rng, content):
    "Other sizes where the head of the file has them."
    numbers = SIDES if rng.random() < .7 else NUMBERS
    def other(match):
        if rng.random() < .4: return match[0]
        number = rng.choice(numbers)
        if match[0].isdigit(): return b"%d" % number
        return packed(number, len(match[0]), "little" if match[0][0] else "big")
    return SIZES.sub(other, content[:600]) + content[600:]


# ---- chunks

def chunk_ends(content):
    "Where the parts of a file begin, as it says itself; [] for formats without parts."
    if content.startswith(b"\x89PNG"): return ends_of_chunks(content, 8, ">I", 12)
    if content.startswith(b"RIFF"): return ends_of_chunks(content, 12, "<4xI", 8)
    if content[4:8] in (b"ftyp", b"jP  "): return ends_of_chunks(content, 0, ">I", 0)
    if content.startswith(b"\xff\xd8"): return ends_of_chunks(content, 2, ">2xH", 2)
    return []


def ends_of_chunks(content, at, kind, more):
    "From `at` on, chunks whose length is stored as `kind` and which are `more` bytes longer."
    places = [at]
    while at + 8 <= len(content):
        length = struct.unpack_from(kind, content, at)[0] + more
        if length < 2: break
        at += length
        places.append(min(at, len(content)))
    return places


def shuffle_chunks(rng, content):
    "Swap two parts of a file, leave one out, or repeat one."
    places = sorted({0, *chunk_ends(content), len(content)})
    if len(places) < 4: places = sorted({0, *(place(rng, content) for _ in range(4)), len(content)})
    parts = [content[a:b] for a, b in zip(places, places[1:])]
    i, j = rng.randrange(len(parts)), rng.randrange(len(parts))
    how = rng.randrange(3)
    if how == 0: parts[i], parts[j] = parts[j], parts[i]
    elif how == 1: del parts[i]
    else: parts.insert(i, parts[j])
    return b"".join(parts)


def change_length(rng, content):
    "Another number where a part begins: in most formats, its length."
    places = [p for p in chunk_ends(content) if p < len(content)]
    if not places: return change_number(rng, content)
    at, width = rng.choice(places) + rng.choice((0, 2, 4)), rng.choice((1, 2, 4))
    new = packed(rng.choice(NUMBERS), width, rng.choice(ORDERS))
    return content[:at] + new + content[at + width:]


def with_checksums(content):
    "A PNG file whose checksums are right again, so that what was changed is read."
    places, out = chunk_ends(content), bytearray(content)
    for begin, end in zip(places, places[1:]):
        if end - begin < 12: continue
        out[end - 4:end] = zlib.crc32(out[begin + 4:end - 4]).to_bytes(4, "big")
    return bytes(out)


DAMAGE = (flip_bits, flip_bits, cut, remove, insert, repeat, blank, splice, change_number,
          change_number, change_size, change_size, change_size, shuffle_chunks, change_length)


def mutant(number):
    "A damaged file: the name of the original, the ending of the file's name, the content."
    rng = random.Random(number)
    names = list(originals())
    name = names[number % len(names)]
    content = originals()[name]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if content: content = rng.choice(DAMAGE)(rng, content)
    if rng.random() < .7:   # most keep their beginning, without which no decoder gets them
        content = originals()[name][:12] + content[12:]
    if content.startswith(b"\x89PNG") and rng.random() < .7: content = with_checksums(content)
    kind = name if rng.random() < .95 else rng.choice(names)
    return name, kind.rsplit(".")[-1], content
