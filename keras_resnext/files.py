"""Writes files, whole or not at all."""

import contextlib
import os
import pathlib
import tempfile


@contextlib.contextmanager
def replacing(path):
    """Yields a path to write to, which then takes the place of another.

    What a `with` statement that fails has written is removed. Where several
    processes write one file, each has a place of its own.

    Args:
        path: Path of the file that is to appear; the other is named alike.
    """
    path = pathlib.Path(path)
    # A folder of one's own, and not `mkstemp`, whose files others can't read.
    try:
        folder = tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent)
    except OSError as error:  # of a place that nobody has named
        raise type(error)(error.errno, error.strerror, str(path)) from error
    with folder as own:
        part = pathlib.Path(own, path.name)
        yield part
        os.replace(part, path)
