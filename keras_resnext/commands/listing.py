"""Prints what exists: architectures and their checkpoints."""

import dataclasses
import fnmatch
import json

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


def run(args):
    """Prints the rows that are asked for, in the form that is asked for.

    Raises:
        ValueError: If `args.filter` leaves no row.
    """
    pairs = [
        pair
        for pair in checkpoints()
        if all(_matches(pair, text) for text in args.filter)
    ]
    if not pairs:
        raise ValueError(
            "--filter must leave an architecture or a checkpoint. Received: "
            f"{' '.join(args.filter)}. Pass a part of a name, a tag or a "
            "licence, or leave it out."
        )
    if args.json:
        print(json.dumps([facts(*pair) for pair in pairs], indent=2))
    else:
        print((markdown if args.markdown else plain)(map(cells, pairs)))


def checkpoints():
    """Returns pairs of an architecture and a checkpoint.

    The cheapest networks come first, and of each its most accurate checkpoint.
    An architecture without any comes once, with `None`.
    """
    rows = sorted(registry.CHECKPOINTS.values(), key=lambda row: row.top1 or 0)[
        ::-1
    ]
    return [
        (net, row)
        for net in sorted(registry.ARCHITECTURES.values(), key=_cost)
        for row in [r for r in rows if r.architecture == net.name] or [None]
    ]


def _cost(net):
    # A row of somebody's own need not say it.
    return net.gmacs or float("inf"), net.num_params or 0


def _number(value, form):
    return "-" if value is None else format(value, form)


def is_default(net, row):
    """Tells whether `weights="imagenet"` stands for this checkpoint."""
    try:
        return row is registry.resolve(net.name, "imagenet")
    except ValueError:
        return False


def _matches(pair, text):
    """Tells whether a name, a tag or a licence has a text in it."""
    net, row = pair
    names = [net.name] + ([row.tag, row.licence] if row else [])
    return any(fnmatch.fnmatch(name, f"*{text.lower()}*") for name in names)


def cells(pair):
    """Returns a row of the table, strings below the header's."""
    net, row = pair
    size = _number(net.num_params, ","), _number(net.gmacs, ".2f")
    if row is None:
        return (net.name, "-", *size, "-", "-", "-")
    return (
        net.name,
        row.tag + " *" * is_default(net, row),
        *size,
        f"{_number(row.top1, '.3f')} / {_number(row.top5, '.3f')}",
        row.licence,
        f"{row.resize}/{row.crop} {row.interpolation}",
    )


def facts(net, row):
    """Returns all that is known of a checkpoint, as JSON has it."""
    known = {
        "constructor": net.constructor,
        "num_params": net.num_params,
        "gmacs": net.gmacs,
        "architecture": net.name,
    }
    if row is None:
        return known | {"tag": None}
    known |= dataclasses.asdict(row)
    return known | {
        "default": is_default(net, row),
        "commercial": row.commercial,
    }


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
