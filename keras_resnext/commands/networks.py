"""Finds the network that a command line names, and runs it on pictures."""

import dataclasses
import functools
import json
import os
import pathlib
import sys

import keras
import numpy as np

from keras_resnext import preprocessing, resnext, weights
from keras_resnext.commands import random_weights
from keras_resnext.export.formats import PICTURES
from keras_resnext.registry import (
    ARCHITECTURES,
    CHECKPOINTS,
    Checkpoint,
    find_architecture,
    resolve,
)

# Its mean and deviation are those of `preprocess_input`.
USUAL = CHECKPOINTS["resnext50_32x4d", "imagenet1k_v1"]


def load(args, resize=None, crop=None):
    """Returns a network and the preprocessing of its pictures.

    Args:
        args: What `arguments.add_network` has read.
        resize: Length of the shorter side, or `None` for the checkpoint's.
        crop: Side of what is cut out, or `None` for the checkpoint's.

    Returns:
        `(model, checkpoint)`. The checkpoint is a row of the registry with
        these sizes, or `None` for a file of which nothing is known.

    Raises:
        ValueError: If there is no such network, or no such weights.
        OSError: If a file cannot be read.
    """
    file, row = find(args)
    if row is not None:
        sizes = {"resize": resize, "crop": crop}
        row = dataclasses.replace(row, **{k: v for k, v in sizes.items() if v})
    if file is not None and file.suffix == ".keras":
        return load_keras(file), row
    architecture = find_architecture(args.model)
    random = args.weights == "random"
    if random:
        keras.utils.set_random_seed(0)
    if architecture.constructor is None:  # registered by somebody
        construct = functools.partial(resnext.build, architecture.name)
    else:
        construct = getattr(resnext, architecture.constructor)
    model = construct(
        weights=None if random else args.weights,
        input_shape=(row.crop, row.crop, 3) if row else None,
        classes=args.classes
        or (architecture if random or file or not row else row).classes,
        accept_noncommercial=args.accept_noncommercial,
    )
    if random:
        transform = preprocessing.eval_transform(row)
        images = np.stack([transform(picture) for picture in PICTURES])
        random_weights.fill(model, images)
    return model, row


def load_keras(file):
    """Returns the network of a .keras file, which may be anybody's.

    Raises:
        ValueError: If it cannot be read.
        OSError: If there is no such file.
    """
    with open(file, "rb"):  # says why, if it cannot be
        pass
    try:
        return keras.models.load_model(file, compile=False)
    except MemoryError:
        raise
    except Exception as error:  # Keras raises a dozen different ones.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            "A .keras file that Keras can load is required. Received: "
            f"{file} ({reason}). Write it again, or pass another one."
        ) from error


def require_classifier(model, row):
    """Checks that a network takes RGB pictures and gives a score a class.

    Args:
        model: What was loaded, which may be anybody's.
        row: The `Checkpoint` whose preprocessing its pictures get, or `None`.

    Raises:
        ValueError: If it does not, or takes pictures of another size.
    """
    inputs = getattr(model, "input_shape", None)
    outputs = getattr(model, "output_shape", None)
    if not all(isinstance(shape, tuple) for shape in (inputs, outputs)) or (
        (len(inputs), inputs[-1], len(outputs)) != (4, 3, 2)
        or outputs[1] is None
    ):
        raise ValueError(
            "A network that takes RGB pictures and gives one score for each "
            f"class is required. Received: {model.name} with inputs of "
            f"{inputs} and outputs of {outputs}. Pass another one."
        )
    sides = inputs[1:3]
    if row is not None and any(s not in (None, row.crop) for s in sides):
        raise ValueError(
            "Pictures must have the size that the network takes. Received: "
            f"{row.crop} pixels for {sides[0]}x{sides[1]}. Pass --crop "
            f"{sides[0]} (--size in explain.py), or another --checkpoint."
        )


def find(args):
    """Returns the file of the network or its weights, and the checkpoint.

    Either may be `None`: weights with a tag have no file here, and of a file
    there may be no more to know. Without `args.weights`, it gets those that
    ship with the architecture, or `"imagenet"`.
    """
    name = args.model
    if not name.endswith(".keras"):
        try:
            name = find_architecture(name).name
        except ValueError as error:
            raise ValueError(
                "The network must be a .keras file or an architecture. "
                f"Received: {name}. Pass one of {', '.join(ARCHITECTURES)}."
            ) from error
    if args.weights is None:
        shipped = (
            row.tag
            for row in CHECKPOINTS.values()
            if row.architecture == name and row.file
        )
        args.weights = next(shipped, "imagenet")
    if name.endswith(".keras"):
        source = pathlib.Path(name)
    elif args.weights == "random":
        rows = [row for row in CHECKPOINTS.values() if row.architecture == name]
        source = rows[0] if rows else USUAL
    else:
        source = weights.choose(name, args.weights, args.accept_noncommercial)
    file = None if isinstance(source, Checkpoint) else source
    if args.checkpoint is not None:
        row = preprocessing.eval_transform(args.checkpoint).checkpoint
    else:
        row = trained(file)[0] if file else source
    return file, row


def usual(name):
    """Returns the checkpoint after which an architecture is mostly trained.

    Args:
        name: Of the architecture.

    Returns:
        What `"imagenet"` stands for, else its first row, else a plain one.
    """
    name = find_architecture(name).name
    rows = [row for row in CHECKPOINTS.values() if row.architecture == name]
    try:
        return resolve(name, "imagenet", accept_noncommercial=True)
    except ValueError:
        return rows[0] if rows else USUAL


def trained(file):
    """Returns how `train.py` tested the network that it wrote into a file.

    It says so in result.json, beside the file.

    Returns:
        `(checkpoint, classes)`, with the classes' names; both `None` where
        there is no such file.
    """
    try:
        text = file.with_name("result.json").read_text("utf-8")
        result = json.loads(text)
        options, classes = result["options"], result["classes"]
        crop = options["test_size"] or options["sizes"][-1]
        resize = options["test_resize"] or crop
    except (OSError, ValueError, KeyError, TypeError):
        return None, None
    row = dataclasses.replace(
        USUAL, resize=resize, crop=crop, classes=len(classes)
    )
    return row, classes


def names_of(args, classes, outputs):
    """Returns the name of each output: the data's, or the checkpoint's."""
    own = args.classes or args.model.endswith(".keras")
    if own and len(classes) == outputs:
        return classes
    rows = preprocessing.decode_predictions(np.eye(outputs), top=1)
    return [name for ((_, name, _),) in rows]


class Batches(keras.utils.PyDataset):
    """Batches of preprocessed pictures, made in threads, for any backend.

    Attributes:
        corrupt: Why pictures could not be read, by their index. They are
            black in their batch.
    """

    def __init__(self, images, transform, batch_size, on_corrupt):
        """Takes the pictures, and what makes an input of one of them."""
        super().__init__(workers=os.cpu_count())
        self.images, self.transform = images, transform
        self.batch_size, self.on_corrupt = batch_size, on_corrupt
        self.corrupt = {}

    def __len__(self):
        """Returns the number of batches."""
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, index):
        """Returns the inputs of one batch, `(batch, crop, crop, 3)`."""
        start = index * self.batch_size
        stop = min(start + self.batch_size, len(self.images))
        return (np.stack([self.input(i) for i in range(start, stop)]),)

    def input(self, i):
        """Returns the input of one picture, `(crop, crop, 3)`."""
        try:
            return self.transform(self.images[i])
        except (OSError, ValueError) as error:
            if self.on_corrupt == "fail":
                raise
            self.corrupt[i] = str(error)
            side = self.transform.checkpoint.crop
            return np.zeros((side, side, 3), "float32")


def predict(model, images, transform, batch_size=64, on_corrupt="skip"):
    """Returns the scores of all pictures that can be read.

    Args:
        model: A classifier.
        images: As those of a `data.Split`.
        transform: What makes an input of a picture: `EvalTransform`.
        batch_size: Number of pictures in a batch.
        on_corrupt: `"skip"` reports pictures that cannot be read and leaves
            them out; `"fail"` raises.

    Returns:
        The scores, float32 `(n, classes)`, and the pictures' indices, `(n,)`.

    Raises:
        ValueError: If there is no picture, or if scores are not finite.
    """
    corrupt = {}
    scores = np.zeros((0, model.output_shape[-1]), "float32")
    if len(images):
        batches = Batches(images, transform, batch_size, on_corrupt)
        verbose = 1 if sys.stdout.isatty() else 2
        scores = model.predict(batches, verbose=verbose).astype("float32")
        corrupt = batches.corrupt
    for reason in corrupt.values():
        print(f"Skipped: {reason}", file=sys.stderr)
    kept = np.setdiff1d(np.arange(len(images)), list(corrupt))
    scores = scores[kept]
    if not len(kept) or not np.isfinite(scores).all():
        raise ValueError(
            "Pictures to test with that can be read, and finite scores of "
            f"them, are required. Received: {len(kept)} pictures. Add some, "
            "pass a greater --holdout, or check the weights."
        )
    return scores, kept
