"""What all commands have in common: help, numbers, and how they end.

    parser = console.Parser(description=__doc__)
    parser.add_argument("--batch-size", type=console.POSITIVE, default=8)

    @console.plain_errors()
    def main(): ...

Standard library only, so that a command's help comes at once. A script that
says `__keras_later__ = True` and imports this module first can be ended by
Ctrl-C while it imports Keras, too.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import math
import os
import pathlib
import re
import signal
import sys

from keras_resnext import processor, registry

_INTERRUPTED = "Interrupted."
_IS_SCRIPT = hasattr(sys.modules["__main__"], "__keras_later__")


class _Help(argparse.RawTextHelpFormatter):
    """Keeps the description's lines, and tells every option's default."""

    def _get_help_string(self, action):
        text = action.help or ""
        named = action.option_strings and action.nargs != 0
        if isinstance(action, argparse.BooleanOptionalAction):
            named = True
        if not named or action.default in (None, [], (), argparse.SUPPRESS):
            return text
        return f"{text} (default: {_spelt(action.default)})"


def _spelt(default):
    """Returns a default as it would be typed."""
    if default is True or default is False:
        return "yes" if default else "no"
    if isinstance(default, (list, tuple)):
        default = " ".join(map(str, default))
    return str(default).replace("%", "%%")


class Parser(argparse.ArgumentParser):
    """Reads a command line; what is wrong with it is said in one sentence."""

    def __init__(self, **options):
        """Takes what `argparse.ArgumentParser` takes."""
        super().__init__(formatter_class=_Help, **options)

    def error(self, message):
        """Ends the process with status 2."""
        end = "" if message.endswith(".") else "."
        self.exit(
            2, f"{self.prog}: error: {message}{end} See {self.prog} --help.\n"
        )


@dataclasses.dataclass(frozen=True)
class Number:
    """Type of an option that takes a number, for `add_argument(type=…)`.

    Attributes:
        kind: `int` or `float`.
        least: The least number that is allowed.
        most: The greatest one.
        open: Which of these two is itself excluded, `"least"` or `"most"`.
    """

    kind: type = int
    least: float = 1
    most: float = math.inf
    open: str = ""

    def __call__(self, text):
        """Returns the number that a text stands for.

        Raises:
            argparse.ArgumentTypeError: If it stands for none of these.
        """
        try:
            value = self.kind(text)
            inside = self.least <= value <= self.most and math.isfinite(value)
        except (ValueError, OverflowError):
            inside = False
        if inside and self.open == "least":
            inside = value > self.least
        if inside and self.open == "most":
            inside = value < self.most
        if not inside:
            raise argparse.ArgumentTypeError(
                f"must be {self}. Received: {text[:40]!r}."
            )
        return value

    def __str__(self):
        """Returns what is allowed, in words."""
        words = ["an integer" if self.kind is int else "a number"]
        above = self.open == "least"
        words.append(f"{'above' if above else 'from'} {self.least:,}")
        if self.most < math.inf:
            below = self.open == "most"
            words.append(f"{'to below' if below else 'to'} {self.most:,}")
        return " ".join(words)


POSITIVE = Number(int, 1, 2**31 - 1)
COUNT = Number(int, 0, 2**31 - 1)
SEED = Number(int, 0, 2**32 - 1)
SIDE = Number(int, 1, 8192)  # of a picture, in pixels
SECONDS = Number(float, 0, 1e6, open="least")
SHARE = Number(float, 0, 1)


def path(text):
    """Returns a path; for `add_argument(type=…)`.

    An empty one, as of a variable of the shell that is not set, would stand
    for the folder one is in.
    """
    if not text:
        raise argparse.ArgumentTypeError("must be a path. Received: ''.")
    return pathlib.Path(text)


def architecture(text):
    """Returns the key of an architecture; for `add_argument(type=…)`."""
    try:
        return registry.find_architecture(text).name
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def require_packages(extra, *names):
    """Checks that packages are there, before any work is done.

    Args:
        extra: Of this package's extras, the one that brings them.
        *names: As they are imported.

    Raises:
        ImportError: If one is not.
    """
    missing = [n for n in names if importlib.util.find_spec(n) is None]
    if missing:
        several = len(names) > 1
        raise ImportError(
            f"The package{'s' * several} {', '.join(names)} "
            f"{'are' if several else 'is'} required. Received: no "
            f'{", no ".join(missing)}. Run `pip install ".[{extra}]"` in a '
            "checkout."
        )


@contextlib.contextmanager
def plain_errors(status=1, whole=_IS_SCRIPT):
    """Ends a command in one sentence where a person can mend what is wrong.

    That is bad input, files that cannot be read or written, a package that is
    missing, too little memory, Ctrl-C, whose status is 130, and a pipe that
    closes, of 141. All else is a fault of the program and keeps its traceback.
    `python -X dev` shows every traceback.

    Args:
        status: Exit status of all others.
        whole: Whether the process is this command's own, which a notebook's
            is not; a second Ctrl-C then ends it at once.
    """
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # in notebooks it is none
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except KeyboardInterrupt:
        if whole:
            signal.signal(signal.SIGINT, _quit)
        _end(_INTERRUPTED, 130)
    except BrokenPipeError:  # as with `| head`
        # Python flushes at its end, which would complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # what shells say of a program that SIGPIPE ends
    except Exception as error:
        text = sentence(error)
        if text is None:
            raise
        _end(text, status)


def sentence(error):
    """Returns what an error says to a person, or `None` for program faults."""
    tf = sys.modules.get("tensorflow")
    if isinstance(error, MemoryError) or _is_full(error):
        # A GPU's, behind the first line, has a table of what is where.
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        return (
            "Memory is required for all that was asked for. Received: "
            f"{reason or 'too little of it'}. Ask for smaller pictures or "
            "batches (a smaller --batch-size; in training --accumulate makes "
            "up for it), or take a larger machine."
        )
    if isinstance(error, OSError) and error.strerror:
        return (
            "Files must be there, with the rights to use them, and room on "
            f"the disk. Received: {error.filename or 'a file'} "
            f"({error.strerror}). Check these."
        )
    backend = processor.chosen_backend()
    missing = isinstance(error, ImportError) and error.name == backend
    missing = missing and backend not in sys.modules
    # What Keras says of a name that it does not know.
    if missing or str(error).startswith("Unable to import backend"):
        return _no_backend(backend, error)
    if isinstance(error, (ImportError, OSError, ValueError)):
        return str(error) or type(error).__name__
    if tf is not None and isinstance(error, tf.errors.OpError):
        # A Python function's, with all its traceback behind the first line.
        text = str(error.message).partition("\n")[0]
        return re.sub(r"^(?:\{\{.*?\}\} )?(?:\w+Error: )?", "", text)
    return None


def _is_full(error):
    """Tells whether an error is a backend's, whose device has no memory left.

    By names, as no backend is imported here: `torch.OutOfMemoryError`, JAX's
    `JaxRuntimeError` with a code of gRPC, `tf.errors.ResourceExhaustedError`.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"OutOfMemoryError", "ResourceExhaustedError"}) or (
        isinstance(error, RuntimeError)
        and str(error).startswith("RESOURCE_EXHAUSTED")
    )


def _no_backend(backend, error):
    """Returns what to do where the backend that was asked for is not there."""
    known = ("tensorflow", "jax", "torch")
    others = [n for n in known if n != backend and importlib.util.find_spec(n)]
    ways = [f"set KERAS_BACKEND={name}, which is installed" for name in others]
    if backend in known or not others:
        name = backend if backend in known else "tensorflow"
        ways.insert(0, f"run `pip install {name}`")
    advice = ", or ".join(ways)
    return (
        "A backend of Keras that is installed is required. Received: "
        f"{backend} ({error}). {advice[0].upper()}{advice[1:]}; where "
        "KERAS_BACKEND is not set, ~/.keras/keras.json counts."
    )


def _quit(*_):
    """Ends a program that has only imported modules so far, or ends anyway.

    Not by an exception: that is a traceback, or a module that is being
    imported takes it for a package that is missing.
    """
    os.write(2, f"{_INTERRUPTED}\n".encode())
    os._exit(130)


if _IS_SCRIPT and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _quit)  # until `plain_errors`


def _end(text, status):
    if sys.flags.dev_mode:
        raise
    if status == 1:
        sys.exit(text)  # which prints it
    print(text, file=sys.stderr)
    sys.exit(status)
