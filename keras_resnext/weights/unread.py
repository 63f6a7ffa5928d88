"""What is refused in a file of any format, and how that is said."""


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
