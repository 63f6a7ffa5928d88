"""Prints what exists: `python -m keras_resnext list`."""

import argparse

from keras_resnext import registry

_HEADER = (
    "architecture",
    "tag",
    "parameters",
    "GMACs",
    "top-1 / top-5",
    "licence",
    "resize/crop",
)
_FOOTER = '* is what weights="imagenet" loads.'


def rows():
    """Returns the table's rows, as tuples of strings below the header's.

    Every checkpoint has one, and every architecture that has none.
    """
    table = []
    for name, net in registry.ARCHITECTURES.items():
        facts = f"{net.num_params:,}", f"{net.gmacs:.2f}"
        checkpoints = [
            row
            for row in registry.CHECKPOINTS.values()
            if row.architecture == name
        ]
        try:
            default = registry.resolve(name, "imagenet")
        except ValueError:
            default = None
        table += [
            (
                name,
                row.tag + " *" * (row == default),
                *facts,
                f"{row.top1:.3f} / {row.top5:.3f}",
                row.licence,
                f"{row.resize}/{row.crop} {row.interpolation}",
            )
            for row in checkpoints
        ] or [(name, "-", *facts, "-", "-", "-")]
    return table


def plain(table):
    """Returns the table in columns of spaces, one string."""
    table = [_HEADER, *table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)
    return "\n".join((*lines, "", _FOOTER))


def markdown(table):
    """Returns the table as docs/weights.md has it, one string."""
    table = [_HEADER, ["---"] * len(_HEADER), *table]
    lines = ("| " + " | ".join(row) + " |" for row in table)
    return "\n".join((*lines, "", _FOOTER)).replace("*", r"\*")


def main(arguments=None):
    """Runs the command line; `arguments` defaults to the process's own."""
    parser = argparse.ArgumentParser(prog="python -m keras_resnext")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser(
        "list", help="print the architectures and their checkpoints"
    )
    command.add_argument(
        "--markdown",
        action="store_true",
        help="print docs/weights.md's table",
    )
    options = parser.parse_args(arguments)
    print((markdown if options.markdown else plain)(rows()))


if __name__ == "__main__":
    main()
