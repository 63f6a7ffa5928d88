"""Fetches one file over HTTP, once: resumed, verified, and put in place whole.

A file reaches its final name only after its SHA-256 has been checked, so no
crash, lost connection or second process can leave a wrong file there. Next to
`<name>`, an unfinished download is `<name>.part`, and `<name>.lock` is an empty
file that stays: deleting it could give two waiting processes two locks.
"""

import hashlib
import os
import pathlib
import re
import urllib.parse

import filelock
import requests
import tqdm
import urllib3

TIMEOUT = (10, 60)  # Seconds: to connect, and between two reads.
CHUNK = 64 * 1024  # Bytes: the most that a lost connection throws away.
QUIET = 1_000_000  # Bytes: a shorter download shows no progress bar.


def fetch(url, sha256, directory=None):
    """Returns the path of a verified local copy of `url`.

    The copy is named as the last part of the URL's path: two URLs that end
    alike need two directories. Its SHA-256 is computed on every call, which
    takes about 0.1 s per 100 MB, and a copy that fails is downloaded anew. A
    verified copy needs neither a network nor a writable directory.

    Args:
        url: An `http` or `https` URL.
        sha256: The file's SHA-256 in hexadecimal digits, or its first 8 or
            more. Eight find an accident; all 64 also stop an attacker.
        directory: Where the file is kept; created where missing. Defaults to
            `models/keras_resnext` in Keras' home (`KERAS_HOME`, `~/.keras`).

    Returns:
        The file's absolute `pathlib.Path`.

    Raises:
        ValueError: If an argument is malformed, or if the downloaded bytes
            have another SHA-256; these bytes are deleted.
        ConnectionError: If the server cannot be reached or refuses, or if the
            connection is lost; the bytes received stay for the next call.
        OSError: If the directory cannot be written.
    """
    if not re.fullmatch("[0-9a-fA-F]{8,64}", str(sha256)):
        raise ValueError(
            "`sha256` must be 8 to 64 hexadecimal digits. Received: "
            f"sha256={sha256!r}. Take it from the file's publisher."
        )
    parts = urllib.parse.urlsplit(str(url))
    name = parts.path.rpartition("/")[2]
    # The name becomes a path: none of `..`, `C:x` or `..\x` may leave the
    # directory.
    if parts.scheme not in ("http", "https") or not re.fullmatch(
        r"[^\\:]*\w", name
    ):
        raise ValueError(
            "`url` must be an http or https URL that ends in a file name. "
            f"Received: url={url!r}. Open a local file by its path instead."
        )
    directory = pathlib.Path(directory or _default_directory()).absolute()
    path = directory / name
    try:
        if not matches(path, sha256):
            directory.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(directory / f"{name}.lock"):
                # Another process may have fetched it while this one waited.
                if not matches(path, sha256):
                    _download(url, sha256, path)
    except ConnectionError:
        raise
    except OSError as error:
        raise OSError(
            "A directory that can be read and written is required. Received: "
            f"directory={str(directory)!r} ({error.strerror or error}). Make "
            "room or pass another `directory`, or set KERAS_HOME."
        ) from error
    return path


def _download(url, sha256, path):
    """Puts the verified content of `url` at `path`; the caller has the lock."""
    part = path.with_name(f"{path.name}.part")
    resumed = part.exists()
    _transfer(url, part, path)
    if resumed and not matches(part, sha256):
        # The old bytes may be of another version, or damaged by a crash: only
        # a download from the first byte shows whether the server is wrong.
        part.unlink()
        _transfer(url, part, path)
    if not matches(part, sha256):
        received = _digest(part)
        part.unlink()
        raise ValueError(
            f"Could not download the file: SHA-256 {sha256} is required. "
            f"Received: sha256={received!r} from url={url!r}. It was deleted: "
            "call again, and if this repeats, check the URL and the digest."
        )
    os.replace(part, path)


def _transfer(url, part, path):
    """Appends what is missing of `url` to `part`, unverified."""
    # A compressed transfer would make ranges and lengths count other bytes.
    headers = {"Accept-Encoding": "identity"}
    offset = part.stat().st_size if part.exists() else 0
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        with requests.get(
            url, headers=headers, stream=True, timeout=TIMEOUT
        ) as response:
            if offset and response.status_code == 416:
                return  # Nothing is missing, or `part` is too long.
            response.raise_for_status()
            if response.status_code != 206:
                offset = 0  # The server sends everything, asked or not.
            _write(response.raw, part, offset, path.name)
    except OSError as error:
        if error.errno is not None:  # a file's; those of `requests` have none
            raise
        response = getattr(error, "response", None)
        reason = getattr(response, "status_code", None) or _reason(error)
        # The caller looked at `path`: a file there has failed its check.
        verb = "replace the wrong file" if path.exists() else "put the file"
        raise ConnectionError(
            "Could not download the file: a server that sends it is required. "
            f"Received: url={url!r} "
            f"({reason}). Connect and call again, or {verb} by hand at "
            f"'{path}'."
        ) from error
    except urllib3.exceptions.HTTPError as error:
        raise ConnectionError(
            "Could not download the whole file, which is required. Received: "
            f"{part.stat().st_size} bytes from url={url!r} "
            f"({_reason(error)}). Call again: the download continues "
            "where it stopped."
        ) from error


def _reason(error):
    """Returns an error in short, without the password of a proxy."""
    line = re.sub(r"//[^/\s]*@", "//", str(error).partition("\n")[0])
    line = re.sub(r".*\(Caused by (.*)\)$", r"\1", line)
    return f"{type(error).__name__}: {line[:200]}"


def _write(body, part, offset, name):
    """Streams the urllib3 response `body` into `part` from byte `offset`."""
    body.enforce_content_length = True  # urllib3 1 accepts a short body.
    missing = body.length_remaining
    with (
        open(part, "ab" if offset else "wb") as file,
        tqdm.tqdm(
            desc=name,
            initial=offset,
            total=None if missing is None else offset + missing,
            unit="B",
            unit_scale=True,
            disable=missing is not None and missing < QUIET,
        ) as bar,
    ):
        for chunk in body.stream(CHUNK, decode_content=False):
            bar.update(file.write(chunk))
        file.flush()
        os.fsync(file.fileno())


def _default_directory():
    """Returns the cache folder, with Keras' own rule for its home."""
    home = os.path.expanduser("~")  # "~" still, for a user without a home
    if home == "~" or not os.access(home, os.W_OK):
        home = "/tmp"
    keras = os.environ.get("KERAS_HOME", os.path.join(home, ".keras"))
    return os.path.join(os.path.expanduser(keras), "models", "keras_resnext")


def _digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def matches(path, sha256):
    """Tells whether a file is there and its SHA-256 begins so."""
    return path.is_file() and _digest(path).startswith(sha256.lower())
