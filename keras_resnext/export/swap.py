"""Moves artifacts in, whole or not at all.

An artifact is written into a hidden folder beside its place, which its
process keeps locked. A process that is killed loses the lock, and the next
export in that folder puts back what it had taken away, and removes the rest.
"""

import contextlib
import os
import pathlib
import re
import shutil
import sys
import tempfile

_MARK = ".keras_resnext-"
_HIDDEN = re.compile(rf"\.(.+){re.escape(_MARK)}\w{{8}}")


@contextlib.contextmanager
def writing(path):
    """Turns an error of the file system into one sentence."""
    try:
        yield
    except errors() as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            "`path` must be in a folder that can be written and has room. "
            f"Received: path='{path}' ({reason}). Choose another one, or "
            "make room."
        ) from error


def errors():
    """Returns what a file system's errors come as, also from TensorFlow."""
    tf = sys.modules.get("tensorflow")
    if tf is None:
        return (OSError,)
    return (
        OSError,
        tf.errors.PermissionDeniedError,
        tf.errors.ResourceExhaustedError,  # the disk is full
        tf.errors.NotFoundError,
        tf.errors.AlreadyExistsError,
        tf.errors.UnknownError,
    )


@contextlib.contextmanager
def moved(final, new=False):
    """Yields a place beside `final`, and moves what is there to `final`.

    A file is replaced at once. A folder cannot be: between its two renames
    the old one is missing, until `recover`, if the process is killed there.

    Args:
        final: Path of a file or folder.
        new: Whether nothing may be there, not even since it was called.

    Raises:
        FileExistsError: If something is, though it must be new.
        OSError: If it cannot be written.
    """
    with hidden(final) as folder:
        part = folder / final.name
        yield part
        with writing(final), _locked(final.parent, wait=True):
            taken = new and final.exists()
            if not taken:
                _replace(part, final, folder / "old")
        if taken:
            raise FileExistsError(
                "Only one export at a time must write to a path. Received: "
                f"path='{final}', which another one has written meanwhile. "
                "Call again."
            )


@contextlib.contextmanager
def hidden(final):
    """Yields a folder beside `final`, which is removed at the end."""
    with writing(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        # In turns: another export must not take a folder for abandoned
        # that is not locked yet.
        with _locked(final.parent, wait=True):
            recover(final.parent)
            # No number: TensorFlow Serving must not take it for a version.
            name = f".{final.name}{_MARK}"
            folder = tempfile.mkdtemp(prefix=name, dir=final.parent)
            lock = contextlib.ExitStack()
            lock.enter_context(_locked(folder))
    try:
        yield pathlib.Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def _replace(part, final, old):
    if final.is_dir():  # can be renamed, but not replaced
        final.rename(old)
    try:
        part.replace(final)
    except BaseException:
        if old.exists():
            old.rename(final)
        raise


def recover(folder):
    """Puts back and removes what killed exports have left in a folder."""
    for path in list(folder.iterdir()):
        match = _HIDDEN.fullmatch(path.name)
        if not match or not path.is_dir():
            continue
        with _locked(path) as abandoned:
            if abandoned:
                final, old = folder / match[1], path / "old"
                if old.exists() and not final.exists():
                    old.rename(final)
                shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder, wait=False):
    """Locks a folder while its process lives; yields whether it could."""
    try:
        import fcntl
    except ImportError:  # Windows: nothing is known of other processes
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        done = True
    except OSError:  # locked by another; or no locks on this file system
        done = False
    try:
        yield done
    finally:
        os.close(descriptor)
