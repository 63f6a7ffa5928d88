"""Says what each command takes. Standard library only, as help is for now."""

import argparse
import os
import pathlib

from keras_resnext.commands import console
from keras_resnext.registry import find_architecture

# Of `keras_resnext.export.formats.FORMATS`, which imports Keras.
FORMATS = ("saved_model", "onnx", "litert", "openvino")
PRECISIONS = ("float32", "bfloat16", "float16", "int8")


def add_network(parser, name="network", **options):
    """Adds the options that `networks.load` needs, and the network itself."""
    add = parser.add_argument
    text = "an architecture, a .keras file, or hf://USER/NAME"
    if name.startswith("-"):
        add(name, dest="model", metavar="NETWORK", help=text, **options)
    else:
        add("model", metavar=name.upper(), help=text, **options)
    add(
        "--weights",
        help="a tag of `keras-resnext list`, a file, hf://USER/NAME,\n"
        "or `random` (default: those that ship with the network, else\n"
        "`imagenet`)",
    )
    add(
        "--accept-noncommercial",
        action="store_true",
        help="take weights whose licence forbids commercial use",
    )
    add(
        "--classes",
        type=console.POSITIVE,
        help="number of classes of a file of weights\n"
        "(default: the architecture's)",
    )
    add(
        "--checkpoint",
        help="whose preprocessing a file's network gets, as\n"
        "resnext50_32x4d/imagenet1k_v2\n"
        "(default: what train.py's result.json beside the file says)",
    )


def _there(text):
    """Returns the path of a file or folder; for `add_argument(type=…)`."""
    path = console.path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(
            "must be a file or folder that is there. Received: "
            f"{text}. Check the path."
        )
    return path


def _pictures(text):
    """Returns the path of pictures; for `add_argument(type=…)`."""
    try:
        is_network = bool(find_architecture(text))
    except ValueError:
        is_network = text.startswith("hf://") or text.endswith(".keras")
    if is_network and not os.path.isdir(text):
        raise argparse.ArgumentTypeError(
            f"must be a picture, or a folder of such. Received: {text}, a "
            f"network. Pass that as --network {text}."
        )
    return _there(text)


def _csv(text):
    """Returns the path of a table to write; for `add_argument(type=…)`."""
    path = pathlib.Path(text)
    # Else `--csv cat.jpg dog.jpg` would write over a picture.
    named = path.suffix.lower() == ".csv" and not path.is_dir()
    if not named or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(
            "must name a file that ends in .csv, in a folder to write to. "
            f"Received: {text}. Pass, for instance, --csv table.csv."
        )
    return path


def _add_list(parser):
    add = parser.add_argument
    add(
        "--filter",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="only rows with each of these, as 101 apache or 'resnext*64x4d'",
    )
    form = parser.add_mutually_exclusive_group()
    add = form.add_argument
    add("--json", action="store_true", help="print all that is known, as JSON")
    add("--markdown", action="store_true", help="print docs/weights.md's table")


def _add_predict(parser):
    add = parser.add_argument
    add(
        "pictures",
        nargs="+",
        type=_pictures,
        metavar="PICTURE",
        help="a file, or a folder of such, at any depth",
    )
    add_network(parser, "--network", default="resnext29")
    _add_labels(parser)
    add(
        "--top",
        type=console.POSITIVE,
        default=5,
        help="classes to print of each picture",
    )
    add(
        "--batch-size",
        type=console.POSITIVE,
        default=8,
        help="pictures that are computed at once",
    )
    add("--csv", type=_csv, metavar="FILE", help="table to write, too")


def _add_export(parser):
    add = parser.add_argument
    add_network(parser)
    add(
        "--out",
        required=True,
        type=console.path,
        help="folder to write to: OUT/1/ (SavedModel, for TensorFlow Serving),"
        "\nOUT/model.onnx, OUT/model.tflite (LiteRT), OUT/openvino/; names of"
        "\nother precisions than float32 have it, as OUT/bfloat16/1/. For one"
        "\nONNX or LiteRT file also its name, which ends in .onnx or .tflite",
    )
    add(
        "--format",
        nargs="+",
        choices=[*FORMATS, "all", "fastest"],
        default=["saved_model"],
        help="what to write; `fastest` times all on this machine, prints a\n"
        "table, and keeps only that one",
    )
    add(
        "--precision",
        nargs="+",
        choices=[*PRECISIONS, "all"],
        help="`all`, here or above, leaves out what a format does not have\n"
        "(default: float32; `fastest` tries float32, bfloat16 and int8)",
    )
    _add_labels(parser)
    add(
        "--top",
        type=console.POSITIVE,
        default=5,
        help="classes that the SavedModel returns of a picture",
    )
    add("--calibration", type=_there, help="folder of pictures; int8 needs it")
    add(
        "--batch",
        type=console.POSITIVE,
        default=1,
        help="pictures at once, for which `fastest` is the fastest",
    )
    add(
        "--max-loss",
        type=console.Number(float, 0),
        default=0.5,
        help="percent of the pictures of --calibration that `fastest` may lose",
    )
    add(
        "--version",
        type=console.POSITIVE,
        help="number of the SavedModel's version (default: 1)",
    )


def _add_labels(parser):
    parser.add_argument(
        "--labels",
        type=_there,
        help="text file, one class name on each line\n"
        "(default: the checkpoint's)",
    )


# Of each command: its module, what adds its options, what it does, examples.
COMMANDS = {
    "list": (
        "listing",
        _add_list,
        "print the architectures and their checkpoints",
        """\
    keras-resnext list
    keras-resnext list --filter 101 apache
    keras-resnext list --json > checkpoints.json""",
    ),
    "predict": (
        "predicting",
        _add_predict,
        "print the best classes of each picture",
        """\
    keras-resnext predict cat.jpg holidays/
    keras-resnext predict holidays/ --network resnext50_32x4d --csv table.csv
    keras-resnext predict flower.jpg --network runs/flowers/model.keras

Without --network it is the net that ships: CIFAR-10's ten classes, no
download. A network that train.py wrote needs neither --checkpoint nor
--labels.""",
    ),
    "export": (
        "exporting",
        _add_export,
        "write a network for other runtimes, and check each file",
        """\
    keras-resnext export resnext29 --out served/cifar10
    keras-resnext export resnext50_32x4d --out served/resnext50 \\
        --format litert --precision int8 --calibration pictures/
    keras-resnext export my.keras --checkpoint resnext50_32x4d \\
        --labels labels.txt --out served/mine
    keras-resnext export resnext50_32x4d --out served/everything \\
        --weights random --format all --precision all --calibration pictures/

Prints for each file its size, its difference from the Keras model on
photographs, and its latency; at the end, all of them as one Markdown table. A
network that train.py wrote needs neither --checkpoint nor --labels. Random
weights need no download; the answers of such a model mean nothing.""",
    ),
}
