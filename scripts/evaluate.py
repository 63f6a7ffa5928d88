r"""Measures the accuracy of a network on pictures with known classes.

    python scripts/evaluate.py resnext29 --weights cifar10 --data cifar10.npz
    python scripts/evaluate.py resnext50_32x4d --data imagenette2/
    python scripts/evaluate.py resnext50_32x4d --data pictures/
    python scripts/evaluate.py --artifact net.int8.onnx --data cifar10.npz
    python scripts/evaluate.py my.keras --checkpoint resnext50_32x4d \
        --data flowers/

A .keras file that train.py wrote needs no --checkpoint. An architecture with
a file as --weights gets the preprocessing that is usual for it.

--data is what `train.py` takes, of which the test part is measured, or a folder
of pictures with WordNet ids in their names, as in `n01440764_tench.JPEG`. Class
folders that ids name are ImageNet's classes. Where the data has some of the
network's classes only, as Imagenette has ten of a thousand, accuracy is
measured among all outputs of the network, and among those of these classes.

Writes into --out: evaluation.json, evaluation.md (rows for a table) and
confusion.png; train.py's own files may be there, too.
"""

import dataclasses
import json
import os
import pathlib
import re

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
__keras_later__ = True  # once Ctrl-C is looked after

from keras_resnext.commands import console  # first: for Ctrl-C and oneDNN

# isort: split
import numpy as np

import keras_resnext
from common import data, files, pictures
from keras_resnext import pillow
from keras_resnext.commands import arguments

HEADER = """
| network | weights | data | images | among classes | top-1, % | top-5, % |
|---|---|---|---|---|---|---|
"""

# Options that only a network has.
_OF_NETWORKS = (
    *("weights", "classes", "checkpoint", "accept_noncommercial"),
    *("resize", "crop"),
)


def parse_arguments():
    """Returns the command line's options."""
    parser = console.Parser(description=__doc__)
    add = parser.add_argument
    arguments.add_network(parser, nargs="?")
    add(
        "--artifact",
        type=console.path,
        help="file or folder that an export wrote, in place of a network\n"
        "(default: the network is measured)",
    )
    for name in ("--resize", "--crop"):
        add(
            name,
            type=console.SIDE,
            help="pixels (default: the checkpoint's)",
        )
    data.add_arguments(parser, trained=True)
    add(
        "--batch-size",
        type=console.POSITIVE,
        default=64,
        help="pictures that are computed at once",
    )
    add(
        "--out",
        type=console.path,
        default=pathlib.Path("runs/evaluate"),
        help="folder to write to",
    )
    args = parser.parse_args()
    if (args.model is None) == (args.artifact is None):
        parser.error("A network or --artifact is required, and not both.")
    given = [n for n in _OF_NETWORKS if getattr(args, n) not in (None, False)]
    if args.artifact is not None and given:
        words = " ".join(f"--{name.replace('_', '-')}" for name in given)
        parser.error(
            "--artifact must be alone: it has its own weights, and says which "
            f"preprocessing pictures get. Received: {words}. Leave that out."
        )
    return args


class Artifact:
    """An exported network, in its own runtime.

    Attributes:
        checkpoint: Whose preprocessing pictures get, with its classes' names.
        inputs: As Keras has them.
        output_shape: As Keras has it.
    """

    def __init__(self, path):
        """Loads what an export wrote, and the description beside it.

        Raises:
            ValueError: If there is no artifact, or its description is none.
            OSError: If there is no description.
        """
        import keras

        from keras_resnext.commands import networks
        from keras_resnext.export import formats, serving

        _, self.run = formats.load(path)
        said = networks.exported(path)
        if said is None:
            raise FileNotFoundError(
                "--artifact must be an export with a `checkpoint`, whose "
                f"preprocessing pictures get. Received: {path} without "
                f"{serving.facts_of(path).name}. Export it again with one."
            )
        self.checkpoint, dtype = said
        self.inputs = [keras.KerasTensor((None,), dtype)]
        self.output_shape = (None, self.checkpoint.classes)

    def predict(self, batches, verbose=None):
        """Returns the scores of batches, `(n, classes)`."""
        every = (batches[i] for i in range(len(batches)))
        return np.concatenate([self.run(images) for (images,) in every])


def load_model(args):
    """Returns the network and the checkpoint whose preprocessing it gets."""
    from keras_resnext.commands import networks

    if args.artifact is not None:
        model = Artifact(args.artifact)
        return model, model.checkpoint
    file, row = networks.find(args)
    if row is None and file.suffix == ".keras":
        raise ValueError(
            "--checkpoint must say which preprocessing the network of a file "
            f"gets. Received: {args.model} without it. Pass the architecture, "
            "and tag, after whose preprocessing it was trained, such as "
            "resnext50_32x4d/imagenet1k_v1 or resnext29/cifar10; or put "
            "result.json beside it, which train.py writes."
        )
    model, row = networks.load(args, args.resize, args.crop, assume=True)
    networks.require_classifier(model, row, "--crop")
    return model, row


def load_pictures(args):
    """Returns the `data.Split` to measure on."""
    folder = pathlib.Path(args.data)
    # Of no path, as of a variable of the shell that is not set, `Path` makes
    # the folder one is in.
    flat = args.data and folder.is_dir()
    if flat and not any(map(data.is_class, folder.iterdir())):
        return named_pictures(folder)
    return data.load_test(args)


def named_pictures(folder):
    """Returns the pictures of a folder whose names have a WordNet id."""
    ids = {
        str(path): match[0]
        for path in sorted(folder.iterdir())
        if path.is_file()
        and not pillow.is_hidden(path.name)
        and (match := re.search(r"n\d{8}", path.name))
    }
    if not ids:
        raise ValueError(
            "A folder must hold class folders, or pictures with WordNet ids in "
            f"their names. Received: --data={folder} with neither. Check the "
            "path."
        )
    classes, labels = np.unique(list(ids.values()), return_inverse=True)
    return data.Split(list(ids), labels, classes.tolist())


def accuracy(scores, labels):
    """Returns the number of classes, and top-1 and top-5 accuracy in percent.

    Of equal scores the first counts as the higher one, so that a network
    which says the same of all classes gets no credit for it.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    right = best == labels[:, None]
    return {
        "classes": scores.shape[1],
        # More digits than are shown, so that these are rounded once.
        "top1": round(100 * float(right[:, 0].mean()), 6),
        "top5": round(100 * float(right.any(axis=1).mean()), 6),
    }


def evaluate(model, split, transform, batch_size=64, on_corrupt="skip"):
    """Measures a network on a `data.Split`.

    Returns:
        A dict of the number of `"images"` and the `"accuracy"`, which is a
        list: among all outputs of the network and, if it has more classes
        than the data, among those present. Then the labels, and the best one
        of the classes present for each picture, both as the data counts, and
        the classes' names.
    """
    from common import classifier

    outputs, names = classifier.outputs_of(
        split.classes, model.output_shape[-1], transform.checkpoint
    )
    scores, kept = classifier.predict(
        model, split.images, transform, batch_size, on_corrupt
    )
    labels = split.labels[kept]
    result = {
        "images": len(labels),
        "accuracy": [accuracy(scores, outputs[labels])],
    }
    present = scores[:, outputs]
    if present.shape != scores.shape:
        result["accuracy"].append(accuracy(present, labels))
    best = present.argmax(axis=1)
    return result, labels, best, [names[i] for i in outputs]


def table(args, result):
    """Returns the result as rows of a table in Markdown."""
    model = args.model or str(args.artifact)
    weights = args.weights or "-"  # none of what has its own
    names = [
        (pathlib.Path(n).name or n).replace("|", r"\|")
        for n in (model, weights, args.data)
    ]
    return "".join(
        f"| {' | '.join(names)} | {result['images']:,} | {among['classes']:,} "
        f"| {among['top1']:.2f} | {among['top5']:.2f} |\n"
        for among in result["accuracy"]
    )


def write(args, result, labels, predictions, classes):
    """Writes the result's files."""
    with files.writing(args.out):
        text = json.dumps(result, indent=2)
        files.write(args.out / "evaluation.json", text)
        files.write(args.out / "evaluation.md", table(args, result))
        try:
            path = args.out / "confusion.png"
            pictures.confusion(labels, predictions, classes, path)
        except ImportError as error:  # the numbers count without it, too
            print(f'No confusion.png: {error}. Run `pip install ".[train]"`.')


@console.plain_errors()
def main():
    """Measures, prints a table and writes the files."""
    args = parse_arguments()
    files.require_writable(args.out)
    data.require_apart(args.data, args.out)
    from common import versions  # imports Keras, for which help need not wait

    split = load_pictures(args)
    model, row = load_model(args)
    result, *drawn = evaluate(
        model,
        split,
        keras_resnext.eval_transform(row),
        args.batch_size,
        args.on_corrupt,
    )
    result |= {
        "options": {k: str(v) for k, v in vars(args).items()},
        "preprocessing": dataclasses.asdict(row),
        "versions": versions.loaded(),
    }
    print(HEADER + table(args, result), end="")
    write(args, result, *drawn)


if __name__ == "__main__":
    main()
