"""Writes files, whole or not at all."""

import contextlib
import os
import pathlib


@contextlib.contextmanager
def replacing(path):
    """Yields a path to write to, which then takes the place of another.

    What a `with` statement that fails has written is removed.

    Args:
        path: Path of the file that is to appear; the other ends alike.
    """
    path = pathlib.Path(path)
    part = path.with_name(f"{path.stem}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
