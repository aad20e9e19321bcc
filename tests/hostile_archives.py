"""Archives that are damaged or could do harm: {name: (a function that writes it, the message)}.

They are made here, a few kilobytes each, so that none is in the repository.
"""
import bz2, gzip, io, lzma, stat, struct, tarfile, warnings, zipfile, zlib

MB = 1 << 20


# ---- tar

def member(name, data=b"", kind=tarfile.REGTYPE, target="", **more):
    "A member of a tar file, and its content."
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, target
    for key, value in more.items(): setattr(info, key, value)
    return info, data


def link(name, target): return member(name, kind=tarfile.SYMTYPE, target=target)


def same(name, target): return member(name, kind=tarfile.LNKTYPE, target=target)


def tar(*members, mode="w:gz", pax=None):
    "The bytes of a tar file with a photo, and these members."
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, pax_headers=pax) as t:
        for info, data in (member("photos/1.jpg", b"one"), *members):
            t.addfile(info, io.BytesIO(data))
    return file.getvalue()


def header(name, size, kind=b"0", number=None):
    "A header of 512 bytes, with any text in the place of the size."
    info = tarfile.TarInfo(name)
    info.type = kind
    raw = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    raw[124:136] = number or b"%011o\0" % size
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def padded(data): return data + bytes(-len(data) % 512)


def pax(**records):
    "A pax header with these records."
    lines = b""
    for key, value in records.items():
        rest = f" {key.replace('__', '.')}={value}\n".encode()
        n = len(rest) + len(str(len(rest)))
        n = len(rest) + len(str(n))
        lines += str(n).encode() + rest
    return header("x", len(lines), b"x") + padded(lines)


def raw_tar(*parts): return gzip.compress(b"".join(parts) + bytes(1024), 1)


def zeros(mb): return (bytes(MB) for _ in range(mb))


def long_header(kind, mb=100):
    "A header that claims to be many megabytes long, and is, when it is decompressed."
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(header("x", mb * MB, kind))]
    parts += [packer.compress(part) for part in zeros(mb)]
    return b"".join([*parts, packer.flush()])


def packed_zeros(before, mb):
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(before), *(packer.compress(part) for part in zeros(mb))]
    return b"".join([*parts, packer.flush()])


def sparse(size):
    "A file that has a hole of any size."
    return raw_tar(pax(GNU__sparse__major=1, GNU__sparse__minor=0, GNU__sparse__name="x.jpg",
                       GNU__sparse__realsize=size), header("x.jpg", 512), padded(b"0\n"))


def endless_map():
    "A sparse file whose table of holes is said to have a billion entries."
    lines = b"1000000000\n" + b"0\n" * MB
    return raw_tar(pax(GNU__sparse__major=1, GNU__sparse__minor=0, GNU__sparse__name="x.jpg",
                       GNU__sparse__realsize=9), header("x.jpg", len(lines)), padded(lines))


def climbing_links():
    "Folders and links to them, so deep that the resolved path would be too long to be checked."
    long = "d" * 247
    members, step = [], ""
    for letter in "abcdefghijklmnop":
        members += [member(step + long, kind=tarfile.DIRTYPE), link(step + letter, long)]
        step += letter + "/"
    last = step + "l" * 254
    return tar(*members, link(last, "../" * 16), link("escape", last + "/.."),
               member("escape/photo.jpg", b"out"))


ONE = header("photos/1.jpg", 3) + padded(b"one")

TARS = {
    "absolute path": (lambda: tar(member("/photo.jpg")), "absolute path"),
    "absolute path after dots": (lambda: tar(member("//../photo.jpg")), "absolute path"),
    "dots": (lambda: tar(member("../photo.jpg")), "lead out"),
    "dots in the middle": (lambda: tar(member("photos/../../photo.jpg")), "lead out"),
    "dots that come back": (lambda: tar(member("photos/../x.jpg")), "lead out"),
    "dots at the end": (lambda: tar(member("photos/..", kind=tarfile.DIRTYPE)), "lead out"),
    "backslashes": (lambda: tar(member(r"..\photo.jpg")), "lead out"),
    "both slashes": (lambda: tar(member(r"photos/..\..\photo.jpg")), "lead out"),
    "drive": (lambda: tar(member("C:photo.jpg")), "absolute path"),
    "network share": (lambda: tar(member(r"\\server\share\photo.jpg")), "absolute path"),
    "dots behind a mark": (lambda: tar(member(".lessonkit-unpacked.json/../../x")), "lead out"),
    "dots behind macOS": (lambda: tar(member("__MACOSX/../../photo.jpg")), "lead out"),
    "pax path": (lambda: raw_tar(ONE, pax(path="../photo.jpg"), header("x", 0)), "lead out"),
    "line feed": (lambda: tar(member("photos/a\nb.jpg")), "control characters"),
    "no name": (lambda: tar(member(".")), "has no name"),
    "name too long": (lambda: tar(member("x" * 5000)), "name too long"),
    "too deep": (lambda: tar(member("x/" * 3000 + "y")), "name too long"),
    "link out": (lambda: tar(link("x.jpg", "../photo.jpg")), "link that leads out"),
    "link to an absolute path": (lambda: tar(link("x.jpg", "/etc/hostname")), "leads out"),
    "link out of a folder": (lambda: tar(link("photos/x.jpg", "../../photo.jpg")), "leads out"),
    "link out and in again": (lambda: tar(link("x.jpg", "../folder/photos/1.jpg")), "leads out"),
    "link with backslashes": (lambda: tar(link("x.jpg", r"..\photo.jpg")), "leads out"),
    "link to a drive": (lambda: tar(link("x.jpg", "C:/photo.jpg")), "absolute path"),
    "file through a link out": (lambda: tar(link("d", ".."), member("d/photo.jpg")), "leads out"),
    "file through a link": (lambda: tar(link("d", "photos"), member("d/2.jpg")),
                            "link to a folder"),
    "link through a link": (lambda: tar(link("photos/d", "."), link("x", "photos/d/../../y")),
                            "link to a folder|leads out"),
    "link to a folder": (lambda: tar(link("d", "photos")), "link to a folder"),
    "links in a circle": (lambda: tar(link("a", "b"), link("b", "a")), "link to a folder, or"),
    "link to itself": (lambda: tar(link("a", "a")), "link to a folder, or to what"),
    "link to nothing": (lambda: tar(link("a", "photos/9.jpg")), "what is not there"),
    "link in a file's place": (lambda: tar(link("photos/1.jpg", "2.jpg"), member("photos/2.jpg")),
                               "two of its files"),
    "two links of one name": (lambda: tar(link("a", "photos/1.jpg"), link("a", "photos/1.jpg")),
                              "two links"),
    "long way up": (climbing_links, "link to a folder|too long"),
    "hard link out": (lambda: tar(same("x.jpg", "../photo.jpg")), "leads out"),
    "hard link to an absolute path": (lambda: tar(same("x.jpg", "/etc/hostname")), "leads out"),
    "hard link to nothing": (lambda: tar(same("x.jpg", "photos/9.jpg")), "what is not there"),
    "links that multiply": (
        lambda: tar(member("a", bytes(30 * MB)), *(same(f"b{i}", "a") for i in range(9))), "bomb"),
    "character device": (lambda: tar(member("x", kind=tarfile.CHRTYPE)), "device or a pipe"),
    "block device": (lambda: tar(member("x", kind=tarfile.BLKTYPE)), "device or a pipe"),
    "pipe": (lambda: tar(member("x", kind=tarfile.FIFOTYPE)), "device or a pipe"),
    "unknown kind": (lambda: tar(member("x", kind=b"Z")), "device or a pipe"),
    "one name twice": (lambda: tar(member("photos/1.jpg", b"two")), "two of its files"),
    "one name twice, with a dot": (lambda: tar(member("photos/./1.jpg")), "two of its files"),
    "file as a folder": (lambda: tar(member("photos/1.jpg/2.jpg")), "damaged|two of its files"),
    "folder as a file": (lambda: tar(member("photos")), "two of its files|damaged"),
    "bomb": (lambda: tar(member("x.jpg", bytes(120 * MB))), "bomb"),
    "bomb in bz2": (lambda: bz2.compress(tar(member("x.jpg", bytes(120 * MB)), mode="w")), "bomb"),
    "bomb in xz": (lambda: lzma.compress(tar(member("x.jpg", bytes(120 * MB)), mode="w"), preset=0),
                   "bomb"),
    "bomb behind macOS": (lambda: tar(member("__MACOSX/x.jpg", bytes(120 * MB))), "bomb"),
    "bomb of zeros after its end": (lambda: packed_zeros(ONE, 9), "far too long"),
    "sparse bomb": (lambda: sparse(10**12), "bomb"),
    "endless table of holes": (endless_map, "far too long"),
    "long pax header": (lambda: long_header(b"x"), "far too long"),
    "long common header": (lambda: long_header(b"g"), "far too long"),
    "long name": (lambda: long_header(b"L"), "far too long"),
    "long link": (lambda: long_header(b"K"), "far too long"),
    "headers in headers": (lambda: raw_tar(*[pax(comment="x")] * 3000, ONE),
                           "damaged .RecursionError|far too long"),
    "negative size": (lambda: raw_tar(ONE, header("x", 0, number=b"\xff" * 12)), "damaged|cut off"),
    "negative size in pax": (lambda: raw_tar(ONE, pax(size=-1024), header("x", 0)),
                             "damaged|cut off"),
    "size of an exabyte": (lambda: raw_tar(ONE, header("x", 0, number=b"\x80\0\0\0" + b"\x10" * 8)),
                           "damaged|cut off"),
    "size that is no number": (lambda: raw_tar(ONE, header("x", 0, number=b"many people")),
                               "damaged"),
    "wrong checksum of a header": (lambda: raw_tar(ONE, header("x", 0)[:-1] + b"x", ONE),
                                   "damaged"),
    "cut off in a file": (lambda: tar(member("x.jpg", bytes(9999)), mode="w")[:4000],
                          "damaged|cut off"),
    "cut off between files": (lambda: ONE, "cut off"),
    "cut off in a header": (lambda: ONE + header("x", 0)[:300], "damaged|cut off"),
    "cut off in the compression": (lambda: tar()[:-9], "damaged"),
    "another sum of the compression": (lambda: tar()[:-8] + bytes(8), "damaged"),
    "two, one after another": (lambda: gzip.compress(tar(mode="w") * 2), "follows after"),
    "noise after its end": (lambda: gzip.compress(tar(mode="w") + b"noise" * 9999),
                            "follows after"),
    "noise after the compression": (lambda: tar() + b"noise", "damaged"),
}


# ---- zip

def zipped(*members, kind=zipfile.ZIP_DEFLATED):
    "The bytes of a zip file with a photo, and these members: names or ZipInfo, and content."
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as z, warnings.catch_warnings():
        warnings.simplefilter("ignore")   # of names that occur twice
        for name, data in (("photos/1.jpg", b"one"), *members): z.writestr(name, data)
    return file.getvalue()


def special(name, mode):
    "A member of another kind: a link, a device."
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (mode | 0o644) << 16
    return info


def zip_link(name, target): return special(name, stat.S_IFLNK), target


def patched(old, new, count=-1, **options):
    "A zip file in which some bytes are replaced; both have the same length."
    assert len(old) == len(new)
    data = zipped((old.decode("latin-1"), b"x"), **options)
    return data.replace(old, new, count)


def central(offset, value, size=2, data=None):
    "A zip file with a changed field in the central directory's last entry."
    data = bytearray(data or zipped(("x.jpg", bytes(1000))))
    start = data.rindex(b"PK\x01\x02") + offset
    data[start:start + size] = value.to_bytes(size, "little")
    return bytes(data)


def overlapping(n=200):
    "A bomb of one stored megabyte that many entries share."
    data = zipped(("0.jpg", b"\1" * MB), kind=zipfile.ZIP_STORED)
    start = data.rindex(b"PK\x01\x02")
    entry = data[start:data.index(b"PK\x05\x06")]
    first = data[data.index(b"PK\x01\x02"):start]
    entries = first + entry * n
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, n + 1, n + 1, len(entries), data.index(first), 0)
    return data[:data.index(first)] + entries + end


ZIPS = {
    "absolute path": (lambda: zipped(("/photo.jpg", b"")), "absolute path"),
    "dots": (lambda: zipped(("../photo.jpg", b"")), "lead out"),
    "dots in the middle": (lambda: zipped(("photos/../../photo.jpg", b"")), "lead out"),
    "backslashes": (lambda: patched(b"..|photo.jpg", rb"..\photo.jpg"), "lead out"),
    "folder with dots": (lambda: zipped(("../photos/", b"")), "lead out"),
    "drive": (lambda: zipped(("C:/photo.jpg", b"")), "absolute path"),
    "network share": (lambda: patched(b"||server|x", rb"\\server\x"), "absolute path"),
    "NUL in a name": (lambda: patched(b"x.jpg|.txt", b"x.jpg\0.txt"), "control characters"),
    "no name": (lambda: zipped(("./x", b""), (".", b"")), "has no name"),
    "link out": (lambda: zipped(zip_link("x.jpg", "../photo.jpg")), "leads out"),
    "link to an absolute path": (lambda: zipped(zip_link("x", "/etc/hostname")), "leads out"),
    "file through a link": (lambda: zipped(zip_link("d", ".."), ("d/photo.jpg", b"")), "leads out"),
    "link to itself": (lambda: zipped(zip_link("x", "x")), "what is not there"),
    "link with a long target": (lambda: zipped(zip_link("x", "y" * MB)), "too long|not there"),
    "device": (lambda: zipped((special("x", stat.S_IFCHR), b"")), "device or a pipe"),
    "pipe": (lambda: zipped((special("x", stat.S_IFIFO), b"")), "device or a pipe"),
    "one name twice": (lambda: zipped(("photos/1.jpg", b"two")), "two of its files"),
    "file as a folder": (lambda: zipped(("photos/1.jpg/x", b"")), "damaged|two of its files"),
    "bomb": (lambda: zipped(("x.jpg", bytes(120 * MB))), "bomb"),
    "bomb of many files": (lambda: zipped(*((f"{i}.jpg", bytes(4 * MB)) for i in range(30))),
                           "bomb"),
    "overlapping files": (overlapping, "overlap"),
    "shorter than it says": (lambda: central(24, 5000, 4), "damaged|cut off"),
    "longer than it says": (lambda: central(24, 10, 4), "damaged|cut off"),
    "an exabyte, it says": (lambda: central(24, 2**32 - 2, 4), "damaged|cut off|bomb"),
    "wrong checksum": (lambda: central(16, 12345, 4), "damaged"),
    "encrypted": (lambda: central(8, 1), "encrypted"),
    "unknown compression": (lambda: central(10, 77), "damaged"),
    "another name inside": (lambda: patched(b"xxxx.jpg", b"/etc/xxx", 1), "damaged"),
    "wrong place": (lambda: central(42, 10**9, 4), "damaged"),
    "cut off": (lambda: zipped(("x.jpg", bytes(9999)))[:-9], "damaged"),
    "only its head": (lambda: zipped()[:40], "damaged"),
    "only its end": (lambda: zipped()[-22:], "damaged"),
}

OTHERS = {
    "empty": (lambda: b"", "damaged"),
    "a web page": (lambda: b"<!DOCTYPE html><title>Sign in</title>", "damaged"),
    "zeros": (lambda: bytes(100), "damaged"),
    "RAR": (lambda: b"Rar!\x1a\7\1\0", "a RAR archive.*another program"),
    "7-Zip": (lambda: b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    "Zstandard": (lambda: b"\x28\xb5\x2f\xfd\0", "a Zstandard archive"),
    "compressed text": (lambda: gzip.compress(b"hello"), "damaged"),
}

HOSTILE = {f"{kind}: {name}": value for kind, table in (("tar", TARS), ("zip", ZIPS), ("", OTHERS))
           for name, value in table.items()}
