"""A web server on this machine that misbehaves on request, for the tests of downloads."""
import gzip, re, threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Answer(NamedTuple):
    "What the server sends for one request."
    content: bytes = b""
    status: int = 200
    version: str | None = "v1"     # the ETag, without quotation marks
    ranges: bool = True            # honor Range and If-Range
    cut: int | None = None         # end the connection after so many bytes of the body
    stall: int | None = None       # stop sending after so many bytes, and keep the connection
    length: int | None = 0         # added to the true Content-Length; None: send no length
    chunked: bool = False          # in pieces, with HTTP's chunked encoding
    pause: float = 0.              # seconds between these pieces
    gzipped: bool = False          # compressed on the way, which nobody has asked for
    to: str | None = None          # redirect to this address or path
    headers: tuple = ()            # more of them, or instead of ours: (name, value)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.close_connection = True
        site = self.server.site
        site.requests.append((self.path, self.headers["Range"]))
        answer = site.next_answer(self.path)
        if answer is None: return self.send_error(404)
        try: self.send(answer)
        except OSError: pass   # the client has gone

    def send(self, answer):
        body, headers = answer.content, {"Connection": "close"}
        status = answer.status
        if answer.to: status, headers["Location"] = 302, answer.to
        if answer.version: headers["ETag"] = f'"{answer.version}"'
        start = self.start(answer)
        if start and start >= len(body): return self.send_error(416)
        if start:
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body = body[start:]
        if answer.gzipped:
            body = gzip.compress(body)
            headers["Content-Encoding"] = "gzip"
        if answer.chunked: headers["Transfer-Encoding"] = "chunked"
        elif answer.length is not None: headers["Content-Length"] = len(body) + answer.length
        self.send_response(status)
        for name, value in (headers | dict(answer.headers)).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.send_body(body, answer)

    def start(self, answer):
        "The first byte that is asked for, as far as the server goes along with it."
        match = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        if not match or not answer.ranges or answer.status != 200: return 0
        condition = self.headers["If-Range"]
        return int(match[1]) if condition in (None, f'"{answer.version}"') else 0

    def send_body(self, body, answer):
        end = answer.cut if answer.cut is not None else answer.stall
        if answer.chunked: self.send_chunks(body[:end], end is None, answer.pause)
        else: self.wfile.write(body[:end])
        self.wfile.flush()
        if answer.stall is not None: self.server.site.ended.wait(30)

    def send_chunks(self, body, whole, pause):
        for i in range(0, len(body), 1000):
            piece = body[i:i + 1000]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if pause: self.server.site.ended.wait(pause)
        if whole: self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *args): "Print nothing."


class Site:
    "`site[path] = Answer(...)`, or a list of them, one for each request; the last one stays."
    def __init__(self, url):
        self.url, self.answers, self.requests = url, {}, []
        self.ended = threading.Event()

    def __setitem__(self, path, answers):
        self.answers[path] = answers if isinstance(answers, list) else [answers]

    def next_answer(self, path):
        waiting = self.answers.get(path)
        if not waiting: return None
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    @property
    def ranges(self): return [asked for _, asked in self.requests]


@contextmanager
def web_site():
    "A context: `as` gives a Site, which is closed at the end."
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.site = Site(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(.02,), daemon=True)
    thread.start()
    try: yield server.site
    finally:
        server.site.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
