"""What is refused in a file of any format, and how that is said."""

import collections
import json
import zipfile

# Far above what any network needs, names of 22,000 classes included: bytes of
# JSON, and values in it, each of which takes up to 300 bytes of memory.
MAX_JSON = 2**22
_MAX_VALUES = 200_000


class Unread(ValueError):
    """A file may be sound, but is of a kind that is not read.

    Attributes:
        advice: sentence that says how to make a file that is read.
    """

    def __init__(self, reason, advice):
        """Keeps the reason as the message, without a full stop."""
        super().__init__(reason)
        self.advice = advice


def printable(text, length=100):
    """Shortens a text from a file, and escapes all but ASCII letters.

    Args:
        text: text of any length, perhaps with control characters.
        length: number of characters that stay.

    Returns:
        Text that a message can hold.
    """
    if len(text) > length:
        text = f"{text[: length - 20]}...{text[-20:]}"
    return text.encode("unicode_escape").decode()


def check_stored(archive, size):
    """Refuses a zip file whose entries would take more bytes than it has.

    PyTorch and Keras store without compression, so this refuses no file of
    theirs, and neither compressed nor overlapping entries can inflate.

    Args:
        archive: `zipfile.ZipFile` of a file.
        size: Bytes of that file.

    Raises:
        Unread: if entries are compressed or overlap.
    """
    entries = archive.infolist()
    if sum(entry.file_size for entry in entries) > size or any(
        entry.compress_type != zipfile.ZIP_STORED
        or entry.compress_size != entry.file_size
        for entry in entries
    ):
        raise Unread(
            "its entries are compressed or overlap",
            "Save it again with `torch.save` or `model.save`, or put the "
            "unpacked entries into a zip file without compression.",
        )


def parse(file):
    """Reads JSON that is no longer than a network's.

    Args:
        file: binary file, at its begin.

    Raises:
        ValueError: if it is longer, or no JSON.
        RecursionError: if it is nested too deep.
    """
    data = file.read(MAX_JSON + 1)
    if len(data) > MAX_JSON or sum(map(data.count, b",[{")) > _MAX_VALUES:
        raise ValueError("its JSON is longer than any network's")
    return json.loads(data)


def short_names(paths):
    """Shortens paths of names to the least that no other one ends with.

    Args:
        paths: Set of tuples of names, the outermost first.

    Returns:
        Dictionary from each path to its end, or to all of it where another
        one ends with it.
    """
    ends = {
        path: [path[-n:] for n in range(1, len(path) + 1)] for path in paths
    }
    counts = collections.Counter(
        end for found in ends.values() for end in found
    )
    return {
        path: next((end for end in found if counts[end] == 1), path)
        for path, found in ends.items()
    }


def unique(pairs):
    """Makes a dictionary of (name, array) pairs.

    Raises:
        Unread: if two of them have the same name.
    """
    arrays = {}
    for name, array in pairs:
        if name in arrays:
            raise Unread(
                f"two of its arrays have the name '{printable(name)}', as if "
                "it held two networks",
                "Save the one you want in a file of its own, as by "
                "`model.get_layer(name).save(path)`.",
            )
        arrays[name] = array
    return arrays
