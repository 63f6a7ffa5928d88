"""Exports a network to one runtime or all of them, each file proven."""

import itertools

from keras_resnext.commands import networks
from keras_resnext.commands.arguments import PRECISIONS
from keras_resnext.export import export
from keras_resnext.export.checking import (
    check_ending,
    check_format,
    destination,
)
from keras_resnext.export.formats import FORMATS


def run(args):
    """Writes every artifact that is asked for, and prints them as a table.

    Raises:
        ValueError: If there is no such network, or it cannot be written so.
        OSError: If a file cannot be read or written.
        ImportError: If a format needs a package that is not installed.
    """
    if "fastest" in args.format:
        return run_fastest(args)
    check_no_fastest(args)
    precisions = args.precision or ["float32"]
    pairs = artifacts(args.format, precisions, args.calibration)
    endings = [FORMATS[f].ending for f, _ in pairs if FORMATS[f].ending]
    if len(pairs) > 1 and args.out.suffix in endings:
        raise ValueError(
            "--out must be a folder for several artifacts. Received: --out "
            f"{args.out}. Leave out its ending, or write one at a time."
        )
    # `export` does so, too, but not before the others are written.
    for format, precision in pairs:
        check_format(format, precision)
        check_ending(args.out, format)
        destination(place(args.out, format, precision), format, args.version)
    labels = networks.read_labels(args.labels)
    model, checkpoint = networks.load(args)
    reports = [
        export(
            model,
            place(args.out, format, precision),
            format,
            precision,
            checkpoint=checkpoint,
            labels=labels,
            top=args.top,
            calibration=args.calibration,
            version=args.version,
        )
        for format, precision in pairs
    ]
    print(f"\n{table(model.name, reports)}")


def check_no_fastest(args):
    """Checks that no option is given that only `fastest` heeds.

    Raises:
        ValueError: If one is.
    """
    for name in ("batch", "max_loss"):
        value, option = getattr(args, name), f"--{name.replace('_', '-')}"
        if value != args.reader.get_default(name):
            raise ValueError(
                f"{option} must be left out without `fastest`, which alone "
                f"heeds it. Received: {option} {value}. Leave it out, or pass "
                "--format fastest."
            )


def run_fastest(args):
    """Writes the one artifact that is the fastest here."""
    if len(args.format) > 1:
        raise ValueError(
            "`fastest` must be the only format, as it tries all. Received: "
            f"--format {' '.join(args.format)}. Leave out the others."
        )
    if args.version is not None:
        raise ValueError(
            "--version must be left out for `fastest`, which takes the next "
            f"one. Received: --version {args.version}. Leave it out."
        )
    if "all" in (precisions := args.precision or ()):
        precisions = PRECISIONS
    labels = networks.read_labels(args.labels)
    model, checkpoint = networks.load(args)
    export(
        model,
        args.out,
        "fastest",
        precisions or None,
        checkpoint=checkpoint,
        labels=labels,
        top=args.top,
        calibration=args.calibration,
        batch=args.batch,
        max_loss=args.max_loss,
    )


def artifacts(formats, precisions, calibration):
    """Returns each pair of format and precision that is asked for, once.

    Raises:
        ValueError: If int8 is among them, and no calibration.
    """
    some = "all" in formats or "all" in precisions
    formats = FORMATS if "all" in formats else formats
    precisions = PRECISIONS if "all" in precisions else precisions
    pairs = [
        (format, precision)
        for format, precision in dict.fromkeys(
            itertools.product(formats, precisions)
        )
        if not some or precision in FORMATS[format].precisions
    ]
    # `export` says so, too, but not before the others are written.
    if calibration is None and any(p == "int8" for _, p in pairs):
        raise ValueError(
            "int8 needs pictures that show the range of every feature map. "
            "Received: --calibration None. Pass a folder of a hundred "
            "pictures or more, or name the other precisions."
        )
    return pairs


def place(out, format, precision):
    """Returns where an artifact goes; names of float32 do not say so."""
    if format == "saved_model":
        return out if precision == "float32" else out / precision
    kind = FORMATS[format]
    if kind.ending and out.suffix == kind.ending:
        return out
    path = out / kind.file
    if precision == "float32":
        return path
    return path.with_name(f"{path.stem}.{precision}{path.suffix}")


def table(network, reports):
    """Returns one Markdown table of `keras_resnext.export.Report`s."""
    lines = [
        "| network | runtime | precision | MB | difference | "
        "same best class | ms a picture |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {network} | {report.runtime} | {report.precision} | "
        f"{report.size / 1e6:.1f} | {report.max_difference:.1e} | "
        f"{report.agreement:.1%} | {report.latency:.1f} |"
        for report in reports
    ]
    return "\n".join(lines)
