"""Downloads from a server that stalls, cuts off, lies, redirects and sends web pages."""
import gzip
import hashlib
import io
import os
import random
import re
import threading
from types import SimpleNamespace

import pytest
from PIL import Image

from lessonkit.data import downloads
from lessonkit.data.downloads import DownloadError, download, download_images
from web_site import Answer, web_site

CONTENT = random.Random(0).randbytes(300_000)
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()
PAGE = b"<!DOCTYPE html><html><title>Please sign in</title></html>"


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(downloads, "RETRY_PAUSE", 0)
    with web_site() as site: yield site


def visible(folder): return sorted(f.name for f in folder.glob("[!.]*"))


def hidden(folder): return sorted(f.name for f in folder.glob(".*") if f.suffix != ".lock")


def get(site, folder, path="/a.zip", **options):
    options = dict(timeout=1., show=False) | options
    return download(site.url + path, folder, **options)


# ---- servers that misbehave, and what comes of it

SOUND = Answer(CONTENT)

FINE = {   # name: answers, one for each request
    "sound": [SOUND],
    "cut off, then sound": [Answer(CONTENT, cut=100_000), SOUND],
    "cut off again and again": [*(Answer(CONTENT, cut=n) for n in 6*[60_000]), SOUND],
    "cut off without ranges": [Answer(CONTENT, cut=100_000, ranges=False),
                               Answer(CONTENT, ranges=False)],
    "stalls, then sound": [Answer(CONTENT, stall=100_000), SOUND],
    "stalls before the first byte": [Answer(CONTENT, stall=0), SOUND],
    "in chunks": [Answer(CONTENT, chunked=True)],
    "in chunks that end early": [Answer(CONTENT, chunked=True, cut=100_000), SOUND],
    "without a length": [Answer(CONTENT, length=None)],
    "claims to be longer": [Answer(CONTENT, length=1000), SOUND],
    "a length that is no number": [Answer(CONTENT, length=None, headers=[("X-Length", "many")])],
    "busy at first": [Answer(b"busy", status=503), Answer(b"slowly", status=429), SOUND],
    "another version after a cut": [Answer(bytes(300_000), cut=100_000),
                                   Answer(CONTENT, version="v2")],
    "a part of another version": [
        Answer(bytes(300_000), cut=100_000),
        Answer(CONTENT, headers=[("ETag", '"v2"')]), Answer(CONTENT, version="v2")],
    "no mark of a version": [Answer(CONTENT, cut=100_000, version=None),
                             Answer(CONTENT, version=None)],
    "a mark that is weak": [Answer(CONTENT, cut=9, headers=[("ETag", 'W/"v1"')]),
                            Answer(CONTENT, headers=[("ETag", 'W/"v1"')])],
    "redirected": [Answer(to="/elsewhere")],
    "compressed on the way": [Answer(CONTENT, gzipped=True)],
    "another part than asked for": [
        Answer(CONTENT, cut=100_000),
        Answer(CONTENT, ranges=False, status=206,
               headers=[("Content-Range", "bytes 0-299999/300000")]), SOUND],
    "a part that nobody asked for": [
        Answer(CONTENT, ranges=False, status=206,
               headers=[("Content-Range", "bytes 5-299999/300000")]), SOUND],
    "a part of a longer file": [
        Answer(CONTENT, cut=100_000),
        Answer(CONTENT, headers=[("Content-Range", "bytes 100000-299999/400000")]), SOUND],
}

@pytest.mark.parametrize("name", FINE)
def test_the_file_is_right_in_the_end(site, tmp_path, name):
    site["/a.zip"], site["/elsewhere"] = FINE[name], SOUND
    file = get(site, tmp_path)
    assert file.read_bytes() == CONTENT
    assert file == tmp_path / "a.zip"
    assert hidden(tmp_path) == [".a.zip.download.json"]


REFUSED = {   # name: answers, what the message says
    "missing": ([Answer(status=404)], "the server answered 404"),
    "forbidden": ([Answer(status=403)], "the server answered 403"),
    "always busy": ([Answer(status=503)], "the server answered 503"),
    "a web page": ([Answer(PAGE)], "it is a web page, not a file"),
    "a web page with a mark": ([Answer(b"\xef\xbb\xbf\n" + PAGE)], "it is a web page"),
    "empty": ([Answer()], "the file is empty"),
    "a redirect without an end": ([Answer(to="/a.zip")], "TooManyRedirects"),
    "a redirect to a file here": ([Answer(to="file:///etc/hostname")], "InvalidSchema"),
    "a redirect to a page": ([Answer(to="/page")], "it is a web page"),
    "always cut off at the same byte": ([Answer(CONTENT, cut=99, ranges=False)],
                                        "the connection ended|IncompleteRead"),
    "always claims to be longer": ([Answer(CONTENT, length=1000)],
                                   "416|another part|IncompleteRead"),
    "always stalls": ([Answer(CONTENT, stall=99, ranges=False)], "timed out|no answer for 1 s"),
    "larger than the disk": ([Answer(CONTENT, length=10**16)], "needs 10,000,000,000 MB, and"),
    "damaged compression": ([Answer(CONTENT, headers=[("Content-Encoding", "gzip")])],
                            "ContentDecodingError"),
}

@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_good_is_refused(site, tmp_path, name):
    site["/a.zip"], text = REFUSED[name]
    site["/page"] = Answer(PAGE)
    with pytest.raises(OSError, match=text): get(site, tmp_path, tries=2)
    assert visible(tmp_path) == []


def test_a_shorter_length_is_noticed_by_the_checksum(site, tmp_path):
    site["/a.zip"] = Answer(CONTENT, length=-1000)
    with pytest.raises(DownloadError, match="its sha256 is"): get(site, tmp_path, sha256=SHA256)
    with pytest.raises(DownloadError, match="its md5 is"): get(site, tmp_path, md5=MD5)
    assert visible(tmp_path) == []


def test_a_download_goes_on_where_it_was_cut_off(site, tmp_path):
    site["/a.zip"] = [Answer(CONTENT, cut=100_000), Answer(status=404)]
    with pytest.raises(DownloadError, match="404"): get(site, tmp_path)
    kept = (tmp_path / ".a.zip.part").stat().st_size
    assert 0 < kept <= 100_000
    site["/a.zip"] = SOUND
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert site.ranges == [None, f"bytes={kept}-", f"bytes={kept}-"]


def test_without_a_mark_halves_are_joined_only_under_a_checksum(site, tmp_path):
    cut, rest = Answer(CONTENT, cut=100_000, version=None), Answer(CONTENT, version=None)
    site["/a.zip"] = [cut, rest, cut, rest]
    get(site, tmp_path / "1")
    assert site.ranges == [None, None]
    get(site, tmp_path / "2", sha256=SHA256)
    assert site.ranges[3].startswith("bytes=")


def test_halves_that_do_not_fit_are_downloaded_again(site, tmp_path):
    "The beginning is of another version, which only the checksum can tell."
    site["/a.zip"] = [Answer(bytes(300_000), cut=100_000, version=None),
                      Answer(status=404), Answer(CONTENT, version=None)]
    with pytest.raises(DownloadError, match="404"): get(site, tmp_path, md5=MD5)
    assert get(site, tmp_path, md5=MD5).read_bytes() == CONTENT


def test_a_beginning_of_another_address_is_not_used(site, tmp_path):
    site["/a.zip"] = [Answer(bytes(300_000), cut=100_000), Answer(status=404)]
    with pytest.raises(DownloadError): get(site, tmp_path)
    site["/b/a.zip"] = SOUND
    assert get(site, tmp_path, "/b/a.zip").read_bytes() == CONTENT
    assert site.ranges[-1] is None


def test_a_wrong_checksum_leaves_nothing(site, tmp_path):
    site["/a.zip"] = SOUND
    with pytest.raises(DownloadError, match="its sha256 is .*, and should be 000"):
        get(site, tmp_path, sha256=64*"0")
    assert visible(tmp_path) == hidden(tmp_path) == []


def test_a_file_that_is_here_is_not_downloaded_again(site, tmp_path):
    site["/a.zip"] = SOUND
    for options in ({}, {}, dict(sha256=SHA256.upper()), dict(md5=MD5)):
        get(site, tmp_path, **options)
    assert len(site.requests) == 1
    with pytest.raises(FileExistsError, match="its md5 is"): get(site, tmp_path, md5=32*"0")
    with pytest.raises(FileExistsError, match="came from another address"):
        get(site, tmp_path, "/b/a.zip")
    assert get(site, tmp_path, name="b.zip") == tmp_path / "b.zip"


def test_names_stay_in_the_folder(site, tmp_path):
    for path in ("/x/..%2F..%2Fa.zip", "/..%5C..%5Ca.zip", "/.a.zip", "/a.zip?/../b"):
        site[path] = SOUND
        assert get(site, tmp_path / str(len(path)), path).name == "a.zip"
    site["/a.zip"] = SOUND
    assert get(site, tmp_path, name="../../b.zip") == tmp_path / "b.zip"


def test_a_mislabeled_tar_gz_stays_as_it_is(site, tmp_path):
    packed = gzip.compress(CONTENT)
    site["/a.tar.gz"] = [Answer(packed, headers=[("Content-Encoding", "x-gzip")], cut=98_304),
                         Answer(packed, headers=[("Content-Encoding", "x-gzip")])]
    assert get(site, tmp_path, "/a.tar.gz").read_bytes() == packed
    assert site.ranges == [None, "bytes=98304-"]


def test_an_address_without_encryption_is_not_led_to():
    def answer(url, *history): return SimpleNamespace(url=url, history=history, status_code=200)
    safe, unsafe = answer("https://a.org/x"), answer("http://b.org/x", answer("https://a.org/x"))
    downloads._check_answer(safe, "x", trusted=False)
    downloads._check_answer(unsafe, "x", trusted=True)
    downloads._check_answer(answer("http://a.org/x"), "x", trusted=False)
    with pytest.raises(DownloadError, match="without encryption"):
        downloads._check_answer(unsafe, "x", trusted=False)


def test_messages_hold_no_keys(site, tmp_path):
    site["/a.zip?key=123"] = [Answer(status=404)]
    for url in (f"{site.url}/a.zip?key=123", "http://me:123@127.0.0.1:1/a.zip?key=123"):
        with pytest.raises(DownloadError) as e: download(url, tmp_path, tries=1, show=False)
        assert "123" not in str(e.value)
        assert e.value.__cause__ is None
    for note in tmp_path.glob("*.json"): assert "key=" not in note.read_text()


def test_two_at_once_download_once(site, tmp_path):
    site["/a.zip"] = Answer(CONTENT, chunked=True)
    found = []
    threads = [threading.Thread(target=lambda: found.append(get(site, tmp_path))) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert found == 4*[tmp_path / "a.zip"]
    assert len(site.requests) == 1


@pytest.mark.parametrize("kind", [NotImplementedError, OSError(38, "Function not implemented")])
def test_disks_without_locks(site, tmp_path, monkeypatch, kind):
    import filelock
    def refuse(*args): raise kind
    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    site["/a.zip"] = [Answer(CONTENT, cut=100_000), SOUND]
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert hidden(tmp_path) == [f".a.zip.{os.getpid()}.download.json"]


@pytest.mark.parametrize("wrong, text", [("a.zip", "not a web address"), ("ftp://a.org/x", "not a"),
                                         ("file:///etc/hostname", "not a web address")])
def test_wrong_addresses(tmp_path, wrong, text):
    with pytest.raises(ValueError, match=text): download(wrong, tmp_path)


# ---- images

def picture(kind="JPEG", color="red"):
    file = io.BytesIO()
    Image.new("RGB", (64, 48), color).save(file, kind)
    return file.getvalue()


IMAGES = {   # name: answers, part of the problem; None if it is fine
    "a JPEG": ([Answer(picture())], None),
    "a PNG without an ending": ([Answer(picture("PNG"))], None),
    "fine at the second try": ([Answer(status=503), Answer(picture())], None),
    "redirected": ([Answer(to="/moved.jpg")], None),
    "compressed on the way": ([Answer(picture("BMP"), gzipped=True)], None),
    "missing": ([Answer(status=404)], "404"),
    "a web page": ([Answer(PAGE)], "web page"),
    "text": ([Answer(b"not an image at all")], "not an image"),
    "empty": ([Answer()], "empty"),
    "cut off": ([Answer(picture()[:-100])], "truncated|damaged"),
    "cut off on the way": ([Answer(picture(), cut=400)], "ended|IncompleteRead"),
    "claims to be longer": ([Answer(picture(), length=99)], "ended|IncompleteRead"),
    "claims to be shorter": ([Answer(picture(), length=-99)], "truncated|damaged"),
    "stalls": ([Answer(picture(), stall=100)], "timed out|no answer"),
    "drips": ([Answer(bytes(90_000), chunked=True, pause=.2)], "more than 1.5 seconds"),
    "too large": ([Answer(bytes(200_000))], "more than 100,000 bytes"),
    "too large, in chunks": ([Answer(bytes(200_000), chunked=True)], "more than 100,000 bytes"),
    "leads nowhere": ([Answer(to="http://127.0.0.1:1/")], "refused"),
    "leads to a file here": ([Answer(to="file:///etc/hostname")], "file:"),
    "leads to itself": ([Answer(to="/leads to itself".replace(" ", "_"))], "redirects"),
    "damaged compression": ([Answer(picture(), headers=[("Content-Encoding", "gzip")])], "."),
}

def test_each_failure_of_an_image_is_reported(site, tmp_path):
    for name, (answers, _) in IMAGES.items(): site["/" + name.replace(" ", "_")] = list(answers)
    site["/moved.jpg"] = Answer(picture())
    urls = [f"{site.url}/{name.replace(' ', '_')}" for name in IMAGES]
    urls += ["not an address", 3, urls[0]]
    table = download_images(urls, tmp_path / "photos", timeout=.5, longest=100_000, show=False)
    assert table.columns.tolist() == ["url", "file", "problem"]
    assert table.url.tolist() == urls
    for (name, (_, text)), row in zip(IMAGES.items(), table.itertuples()):
        if text is None: assert (row.problem, row.file.is_file()) == (None, True), name
        else:
            assert row.file is None, name
            assert re.search(text, row.problem), (name, row.problem)
    assert "not a web address" in table.problem[len(IMAGES)]
    assert "should be text" in table.problem[len(IMAGES) + 1]
    assert table.file.iloc[-1] == table.file[0]
    saved = set(filter(None, table.file))
    assert set((tmp_path / "photos").iterdir()) == saved   # no leftovers


def test_images_are_named_by_content_and_address(site, tmp_path):
    site["/1/photo.jpg"], site["/2/photo.jpg"] = Answer(picture()), Answer(picture("PNG", "blue"))
    urls = [f"{site.url}/{i}/photo.jpg" for i in (1, 2)]
    files = download_images(urls, tmp_path, show=False).file
    assert [f.suffix for f in files] == [".jpg", ".png"]
    assert all(f.name.startswith("photo-") for f in files)
    again = download_images(urls[::-1], tmp_path, show=False)
    assert again.file.tolist() == files.tolist()[::-1]
    assert len(site.requests) == 2


def test_many_images_have_their_own_rows(site, tmp_path):
    "More than there are threads, and those that fail are among them."
    for i in range(60): site[f"/{i}.jpg"] = Answer(picture(color=(i, 0, 0)) if i % 3 else PAGE)
    urls = [f"{site.url}/{i}.jpg" for i in range(60)]
    table = download_images(urls, tmp_path, threads=4, show=False)
    assert table.url.tolist() == urls
    for i, row in enumerate(table.itertuples()):
        assert (row.file is None) == (i % 3 == 0)
        if row.file: assert row.file.read_bytes() == picture(color=(i, 0, 0))


def test_a_list_in_a_file(site, tmp_path):
    site["/a.jpg"] = Answer(picture())
    (tmp_path / "urls.txt").write_text(f"\ufeff# mine\n\n{site.url}/a.jpg\r\n", "utf-8")
    assert len(download_images(tmp_path / "urls.txt", tmp_path / "p", show=False)) == 1
    assert len(download_images([], tmp_path / "p", show=False)) == 0
