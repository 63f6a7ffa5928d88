"""Writes files, whole or not at all."""

import os
import pathlib


def write(path, content):
    """Writes a file that appears only when it is complete.

    Args:
        path: Path of the file.
        content: Text, or a function that writes into an open binary file.
    """
    part = pathlib.Path(f"{path}.part")
    try:
        with open(part, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
