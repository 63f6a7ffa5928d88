"""Writes files, whole or not at all, and looks after their folders."""

import contextlib
import errno
import os
import pathlib

import filelock

from keras_resnext.files import replacing


def write(path, content):
    """Writes a file that appears only when it is complete.

    Args:
        path: Path of the file.
        content: Text, or a function that writes into an open binary file.
    """
    with replacing(path) as part, open(part, "wb") as file:
        if callable(content):
            content(file)
        else:
            # A picture's name may be none that UTF-8 has.
            file.write(content.encode(errors="backslashreplace"))


def require_writable(folder):
    """Checks that a folder is there or can be made, before any work is done.

    Raises:
        OSError: If it cannot; the message is for users.
    """
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        reason = f"{place} is no folder"
    elif not os.access(place, os.W_OK | os.X_OK):
        reason = f"{place} must not be written to"
    else:
        return
    raise OSError(
        "--out must be a folder that can be written and has room. Received: "
        f"{folder} ({reason}). Choose another one."
    )


@contextlib.contextmanager
def writing(folder):
    """Makes a folder for what is written inside of the `with` statement.

    Raises:
        OSError: If that cannot be written; the message is for users.
    """
    made = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        made = True
        yield
    except OSError as error:
        # A sentence of our own, or about another file: what is read, say.
        if error.strerror is None or (made and not _is_about(error, folder)):
            raise
        raise OSError(
            "--out must be a folder that can be written and has room. "
            f"Received: {folder} ({error.strerror}). Choose another one, or "
            "make room."
        ) from error


def _is_about(error, folder):
    """Tells whether an error is about writing below a folder."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return True
    names = (error.filename, error.filename2)
    return any(
        pathlib.Path(name).absolute().is_relative_to(folder.absolute())
        for name in names
        if isinstance(name, (str, os.PathLike))
    )


@contextlib.contextmanager
def locked(folder):
    """Keeps a folder to one training, inside of the `with` statement.

    The system gives the lock back however the process ends, so that a file
    that one left behind, as after `kill -9`, stops nobody.

    Raises:
        OSError: If another one has it; the message is for users.
    """
    lock = filelock.FileLock(folder / "training.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise OSError(
            "A folder must have one training at a time. Received: "
            f"{folder}, into which another one writes. Wait for its end, or "
            "pass another --out."
        ) from error
    try:
        yield
    finally:
        # Before the release: after it the file may be another one's. Windows
        # removes no open file, and filelock does so there.
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()
