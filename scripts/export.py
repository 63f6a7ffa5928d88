r"""Exports a network to one runtime or all of them, each file proven.

    python scripts/export.py resnext29 --weights cifar10 --out served/cifar10
    python scripts/export.py resnext50_32x4d --out served/resnext50
    python scripts/export.py resnext50_32x4d --out served/resnext50 \
        --format litert --precision int8 --calibration pictures/
    python scripts/export.py my.keras --checkpoint resnext50_32x4d \
        --labels labels.txt --out served/mine
    python scripts/export.py resnext50_32x4d --out served/everything \
        --weights random --format all --precision all --calibration pictures/

Writes OUT/1/ (SavedModel, for TensorFlow Serving), OUT/model.onnx,
OUT/model.tflite (LiteRT) and OUT/openvino/, and prints for each one its size,
its difference from the Keras model on photographs, and its latency; at the
end, all of them as one Markdown table. Names of other precisions than float32
carry it: OUT/bfloat16/1/, OUT/model.float16.onnx, OUT/openvino.float16/.

A network that train.py wrote needs neither --checkpoint nor --labels.
`--weights random` needs no network, and shows sizes, differences and times;
what such a model answers means nothing.
"""

import argparse
import itertools
import pathlib
import sys

from keras_resnext.commands import networks
from keras_resnext.export import export
from keras_resnext.export.formats import FORMATS

FILES = {
    "saved_model": "",
    "onnx": "model.onnx",
    "litert": "model.tflite",
    "openvino": "openvino",
}
PRECISIONS = ("float32", "bfloat16", "float16", "int8")


def parse_arguments():
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    networks.add_arguments(parser)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument(
        "--format",
        nargs="+",
        choices=[*FILES, "all"],
        default=["saved_model"],
    )
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=[*PRECISIONS, "all"],
        default=["float32"],
        help="`all`, here or above, leaves out what a format does not have",
    )
    parser.add_argument(
        "--labels", type=pathlib.Path, help="file of one class name a line"
    )
    parser.add_argument("--top", type=int, default=5, help="classes to return")
    parser.add_argument(
        "--calibration", help="folder of pictures; int8 needs it"
    )
    parser.add_argument(
        "--version", type=int, help="of the SavedModel, by default 1"
    )
    return parser.parse_args()


def read_labels(arguments):
    """Returns the classes' names, or `None` for those of the checkpoint."""
    if arguments.labels is not None:
        return arguments.labels.read_text("utf-8").splitlines()
    file, _ = networks.find(arguments)
    if file is None or arguments.checkpoint is not None:
        return None
    return networks.trained(file)[1]


def artifacts(formats, precisions, calibration):
    """Returns the pairs of format and precision that are asked for.

    Raises:
        ValueError: If int8 is among them, and no calibration.
    """
    some = "all" in formats or "all" in precisions
    formats = FILES if "all" in formats else formats
    precisions = PRECISIONS if "all" in precisions else precisions
    pairs = [
        (format, precision)
        for format, precision in itertools.product(formats, precisions)
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
    path = out / FILES[format]
    if precision == "float32":
        return path
    if format == "saved_model":
        return path / precision
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


def main():
    """Writes every artifact that is asked for."""
    arguments = parse_arguments()
    try:
        pairs = artifacts(
            arguments.format, arguments.precision, arguments.calibration
        )
        labels = read_labels(arguments)
        model, checkpoint = networks.load(arguments)
        reports = [
            export(
                model,
                place(arguments.out, format, precision),
                format,
                precision,
                checkpoint=checkpoint,
                labels=labels,
                top=arguments.top,
                calibration=arguments.calibration,
                version=arguments.version,
            )
            for format, precision in pairs
        ]
    except (ImportError, OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"\n{table(model.name, reports)}")


if __name__ == "__main__":
    main()
