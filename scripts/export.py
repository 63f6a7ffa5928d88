r"""Exports a network to one runtime or all of them, each file proven.

    python scripts/export.py resnext50_32x4d --out served/resnext50
    python scripts/export.py resnext50_32x4d --out served/resnext50 \
        --format litert --precision int8 --calibration pictures/
    python scripts/export.py my.keras --checkpoint resnext50_32x4d \
        --labels labels.txt --out served/mine

Writes OUT/1/ (SavedModel, for TensorFlow Serving), OUT/model.onnx,
OUT/model.tflite (LiteRT) and OUT/openvino/, and prints for each one its size,
its difference from the Keras model on photographs, and its latency.
"""

import argparse
import pathlib
import sys

import keras

import keras_resnext
from keras_resnext.export import export
from keras_resnext.registry import ARCHITECTURES, resolve

FILES = {
    "saved_model": "",
    "onnx": "model.onnx",
    "litert": "model.tflite",
    "openvino": "openvino",
}


def parse_arguments():
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="an architecture, or a .keras file")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--weights", default="imagenet", help="its tag")
    parser.add_argument("--accept-noncommercial", action="store_true")
    parser.add_argument(
        "--format", nargs="+", choices=FILES, default=["saved_model"]
    )
    parser.add_argument("--precision", default="float32")
    parser.add_argument(
        "--checkpoint",
        help="of a .keras file: whose preprocessing pictures get",
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


def load(arguments):
    """Returns the model and its checkpoint, or None."""
    if arguments.model.endswith(".keras"):
        return keras.models.load_model(arguments.model), arguments.checkpoint
    row = resolve(
        arguments.model, arguments.weights, arguments.accept_noncommercial
    )
    construct = getattr(
        keras_resnext, ARCHITECTURES[arguments.model].constructor
    )
    # ResNeXt29 has no weights with another licence, hence no such argument.
    options = {} if row.commercial else {"accept_noncommercial": True}
    shape = (row.crop, row.crop, 3)
    return construct(weights=row.tag, input_shape=shape, **options), row


def main():
    """Writes every format that is asked for."""
    arguments = parse_arguments()
    labels = arguments.labels
    if labels is not None:
        labels = labels.read_text("utf-8").splitlines()
    try:
        model, checkpoint = load(arguments)
        for format in arguments.format:
            export(
                model,
                arguments.out / FILES[format],
                format,
                arguments.precision,
                checkpoint=checkpoint,
                labels=labels,
                top=arguments.top,
                calibration=arguments.calibration,
                version=arguments.version,
            )
    except (ImportError, OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
