import hashlib
import http.server
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from keras_resnext.weights import downloads

CONTENT = b"".join(
    hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(1 << 15)
)  # 1 MiB in which no two blocks are equal
SHA256 = hashlib.sha256(CONTENT).hexdigest()
# The module alone: the package would import a backend in every child.
CHILD = """
import sys
import downloads, filelock

class FileLock(filelock.FileLock):
    def acquire(self, *args, **kwargs):
        print("at the lock", flush=True)
        return super().acquire(*args, **kwargs)

filelock.FileLock = FileLock
print(downloads.fetch(*sys.argv[1:]))
"""


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.content`, and notes every request and byte sent."""

    def do_GET(self):
        server = self.server
        wanted = self.headers["Range"]
        server.ranges.append(wanted)
        assert self.headers["Accept-Encoding"] == "identity"
        if self.path == "/moved.bin?download=true":
            self.send_response(302)
            self.send_header("Location", "/weights.bin")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path != "/weights.bin":
            self.send_error(404)
            return
        start = 0
        if wanted and server.supports_range:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(server.content):
                self.send_error(416)
                return
            self.send_response(206)
        else:
            self.send_response(200)
        body = server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body[: server.drop_after]
        half = len(body) // 2 if server.hold is not None else len(body)
        self.wfile.write(body[:half])
        if server.hold is not None:
            server.reached.set()
            server.hold.wait()
        self.wfile.write(body[half:])
        server.sent.append(len(body))

    def log_message(self, *args):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False  # server_close() then joins every handler.

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/weights.bin"
        self.content = CONTENT
        self.supports_range = True
        self.drop_after = None
        self.hold = None
        self.reached = threading.Event()
        self.ranges = []
        self.sent = []

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}
    )
    thread.start()
    yield server
    if server.hold is not None:
        server.hold.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def start_child(server, tmp_path):
    """Starts `fetch` in another process, and ends it with the test."""
    children = []

    def start():
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, server.url, SHA256, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.path.dirname(downloads.__file__),
            },
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()


def names(directory):
    return sorted(p.name for p in directory.iterdir() if p.suffix != ".lock")


def test_good_then_cached(server, tmp_path):
    for sha256 in (SHA256, SHA256.upper(), SHA256[:8]):
        path = downloads.fetch(server.url, sha256, tmp_path / "new" / "deep")
        assert path == tmp_path / "new" / "deep" / "weights.bin"
        assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["weights.bin"]
    assert server.ranges == [None]


def test_redirect_and_query_keep_the_name(server, tmp_path):
    moved = server.url.replace("weights", "moved")
    path = downloads.fetch(f"{moved}?download=true", SHA256, tmp_path)
    assert path == tmp_path / "moved.bin"
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, None]


@pytest.mark.parametrize("set_by", ["KERAS_HOME", "HOME", "both"])
def test_default_directory(server, tmp_path, monkeypatch, set_by):
    monkeypatch.delenv("KERAS_HOME", raising=False)
    keras = tmp_path if set_by == "KERAS_HOME" else tmp_path / ".keras"
    if set_by == "both":
        monkeypatch.setenv("KERAS_HOME", os.path.join("~", ".keras"))
        set_by = "HOME"
    monkeypatch.setenv(set_by, str(tmp_path))
    path = downloads.fetch(server.url, SHA256)
    assert path == keras / "models" / "keras_resnext" / "weights.bin"


def test_progress_only_where_bytes_are_many(
    server, tmp_path, monkeypatch, capfd
):
    downloads.fetch(server.url, SHA256, tmp_path)
    assert "weights.bin: 100%" in capfd.readouterr().err
    downloads.fetch(server.url, SHA256, tmp_path)
    monkeypatch.setattr(downloads, "QUIET", len(CONTENT) + 1)
    downloads.fetch(server.url, SHA256, tmp_path / "quiet")
    assert capfd.readouterr() == ("", "")


def test_corrupted_download_leaves_nothing(server, tmp_path):
    server.content = b"x" * 100
    received = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(
        ValueError,
        match=rf"SHA-256 {SHA256} is required\. Received: "
        rf"sha256='{received}' from url='{server.url}'\. It was deleted",
    ):
        downloads.fetch(server.url, SHA256, tmp_path)
    assert names(tmp_path) == []
    assert server.ranges == [None]


def test_corrupted_cache_is_replaced(server, tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"wrong")
    path = downloads.fetch(server.url, SHA256, tmp_path)
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["weights.bin"]


@pytest.mark.parametrize("supports_range", [True, False])
def test_lost_connection_then_resumed(server, tmp_path, supports_range):
    server.supports_range = supports_range
    server.drop_after = 300_000
    with pytest.raises(ConnectionError, match="continues where it stopped"):
        downloads.fetch(server.url, SHA256, tmp_path)
    assert names(tmp_path) == ["weights.bin.part"]
    kept = (tmp_path / "weights.bin.part").stat().st_size
    assert 300_000 - downloads.CHUNK <= kept <= 300_000

    server.drop_after = None
    path = downloads.fetch(server.url, SHA256, tmp_path)
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["weights.bin"]
    assert server.ranges == [None, f"bytes={kept}-"]
    rest = len(CONTENT) - kept if supports_range else len(CONTENT)
    assert server.sent == [300_000, rest]


@pytest.mark.parametrize(
    ("part", "requests"),
    [
        (b"", [None]),
        (CONTENT, [f"bytes={len(CONTENT)}-"]),
        (CONTENT + b"x", [f"bytes={len(CONTENT) + 1}-", None]),
        (b"x" * 1000, ["bytes=1000-", None]),
    ],
    ids=["empty", "complete", "too long", "of another file"],
)
def test_part_left_behind(server, tmp_path, part, requests):
    (tmp_path / "weights.bin.part").write_bytes(part)
    path = downloads.fetch(server.url, SHA256, tmp_path)
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["weights.bin"]
    assert server.ranges == requests


def test_two_processes_share_one_transfer(server, tmp_path, start_child):
    server.hold = threading.Event()
    children = [start_child(), start_child()]
    for child in children:
        assert child.stdout.readline() == "at the lock\n"
    assert server.reached.wait(60)
    server.hold.set()
    for child in children:
        out, err = child.communicate(timeout=60)
        assert child.returncode == 0, err
        assert out == f"{tmp_path / 'weights.bin'}\n"
    assert server.sent == [len(CONTENT)]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_process_is_resumed(server, tmp_path, start_child):
    server.hold = threading.Event()
    child = start_child()
    # The server sends one half and holds the connection open, so the child
    # comes to have written every whole chunk of that half.
    half = len(CONTENT) // 2 // downloads.CHUNK * downloads.CHUNK
    part = tmp_path / "weights.bin.part"
    while child.poll() is None:
        if part.exists() and part.stat().st_size == half:
            break
    child.send_signal(signal.SIGKILL)
    _, err = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, err

    server.hold.set()
    path = downloads.fetch(server.url, SHA256, tmp_path)
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["weights.bin"]
    assert server.ranges == [None, f"bytes={half}-"]
    assert len(CONTENT) - half in server.sent


def closed_port_url():
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
        return f"http://127.0.0.1:{closed.server_port}/weights.bin"


def test_offline_says_where_to_put_the_file(tmp_path):
    url = closed_port_url()
    with pytest.raises(ConnectionError) as raised:
        downloads.fetch(url, SHA256, tmp_path)
    assert re.fullmatch(
        "Could not download the file: a server that sends it is required. "
        rf"Received: url='{url}' \(ConnectionError: NewConnection.*refused.*\)"
        r"\. Connect and call again, or put the file by hand at "
        rf"'{tmp_path / 'weights.bin'}'\.",
        str(raised.value),
    )
    (tmp_path / "weights.bin").write_bytes(CONTENT)
    downloads.fetch(url, SHA256, tmp_path)


def test_offline_never_uses_a_wrong_file(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"wrong")
    with pytest.raises(
        ConnectionError,
        match=f"or replace the wrong file by hand at '{re.escape(str(path))}'",
    ):
        downloads.fetch(closed_port_url(), SHA256, tmp_path)
    assert path.read_bytes() == b"wrong"


def test_certificates_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(
        ConnectionError, match=r"a server .* \(OSError: Could not .*none\.pem"
    ):
        downloads.fetch("https://127.0.0.1/weights.bin", SHA256, tmp_path)


def test_the_password_of_a_proxy_is_not_told(tmp_path, monkeypatch):
    def get(url, **options):
        raise downloads.requests.exceptions.InvalidProxyURL(
            f"No host in http://me:p@ss@:1/{'x' * 300}\nand more"
        )

    monkeypatch.setattr(downloads.requests, "get", get)
    with pytest.raises(ConnectionError) as raised:
        downloads.fetch("https://127.0.0.1/weights.bin", SHA256, tmp_path)
    text = str(raised.value)
    assert "(InvalidProxyURL: No host in http://:1/xxx" in text
    assert "me:" not in text and "ss@" not in text and "and more" not in text
    assert len(text) < 500


def test_not_found(server, tmp_path):
    url = server.url.replace("weights", "missing")
    with pytest.raises(
        ConnectionError, match=rf"Received: url='{url}' \(404\)\. Connect"
    ):
        downloads.fetch(url, SHA256, tmp_path)
    assert names(tmp_path) == []


def test_unwritable_directory(tmp_path):
    (tmp_path / "file").touch()
    directory = tmp_path / "file" / "below"
    with pytest.raises(
        OSError,
        match="that can be read and written is required. Received: directory="
        rf"{re.escape(repr(str(directory)))} \(.+\)\. .* set KERAS_HOME",
    ):
        downloads.fetch("https://127.0.0.1/weights.bin", SHA256, directory)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "weights.bin",
        "https://127.0.0.1",
        "https://127.0.0.1/",
        "https://127.0.0.1/..",
        "https://127.0.0.1/..\\weights.bin",
        None,
    ],
)
def test_wrong_url(tmp_path, url):
    with pytest.raises(
        ValueError,
        match="`url` must be an http or https URL that ends in a file name. "
        + re.escape(f"Received: url={url!r}."),
    ):
        downloads.fetch(url, SHA256, tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("sha256", [None, "", SHA256[:7], "x" * 64, SHA256 * 2])
def test_wrong_digest(tmp_path, sha256):
    with pytest.raises(
        ValueError,
        match="`sha256` must be 8 to 64 hexadecimal digits. "
        + re.escape(f"Received: sha256={sha256!r}."),
    ):
        downloads.fetch("https://127.0.0.1/weights.bin", sha256, tmp_path)
