"""Asks a classifier: the scores of pictures, and which output is what."""

import sys
import unicodedata

import keras
import numpy as np

from common.threads import THREADS
from keras_resnext import preprocessing
from keras_resnext.export.preparing import as_input


def outputs_of(classes, outputs, row=None):
    """Returns which output of a network each class is, and all their names.

    Args:
        classes: The data's names of the classes, in the order of its labels.
        outputs: Number of the network's outputs.
        row: The `Checkpoint` of its weights, or `None`.

    Returns:
        The index of the output of each class, `(n,)`, and a name for each
        output: the network's own, or the data's if it has none.

    Raises:
        ValueError: If these classes and outputs do not belong together.
    """
    names = preprocessing.class_names(row, outputs)
    pairs = preprocessing.usual_classes(outputs)
    usual = [name for _, name in pairs]
    if names is None and set(usual) >= set(classes):
        names = usual
    # A network with names of its own has no ids.
    ids = [wnid for wnid, _ in pairs] if names == usual else []
    # ImageNet has two classes of the name "crane", told apart by their ids.
    known = {n: i for i, n in enumerate(names or ()) if names.count(n) == 1}
    known |= {wnid: i for i, wnid in enumerate(ids)}
    alike = {_composed(name): i for name, i in known.items()}
    found = [known.get(name, alike.get(_composed(name))) for name in classes]
    if None not in found:
        return np.array(found), names
    if len(classes) == outputs and not any(i is not None for i in found):
        return _in_order(classes, names), names or list(classes)
    others = [c for c, i in zip(classes, found, strict=True) if i is None]
    raise ValueError(
        "The data must have as many classes as the network has outputs, or "
        f"classes of its names. Received: {len(classes)} classes for "
        f"{outputs} outputs, none of which is called {', '.join(others[:3])}"
        f"{', ...' if others[3:] else ''}. Pass the network that was made for "
        "this data, or rename folders."
    )


def _composed(name):
    """Returns a name with its accents as most systems write them.

    macOS writes them behind their letters, in other bytes.
    """
    return unicodedata.normalize("NFC", name)


def _in_order(classes, names):
    """Returns the output of each class, where no name of a class tells it.

    Args:
        classes: The data's names of the classes.
        names: The network's, or `None` if it has none.
    """
    numbers = {str(i): i for i in range(len(classes))}
    if names and numbers.keys() == set(classes):
        # A folder sorts "10" before "2".
        return np.array([numbers[name] for name in classes])
    if names:
        pairs = zip(classes[:3], names, strict=False)
        taken = ", ".join(f"{one} for {other}" for one, other in pairs)
        print(
            "No class of the data has a name of the network's: they are taken "
            f"in their order, {taken}, ... Rename them if that is wrong.",
            file=sys.stderr,
        )
    return np.arange(len(classes))


class Batches(keras.utils.PyDataset):
    """Batches of preprocessed pictures, made in threads, for any backend.

    Attributes:
        corrupt: Why pictures could not be read, by their index. They are
            black in their batch.
    """

    def __init__(self, images, transform, x, batch_size, on_corrupt):
        """Takes the pictures, what makes an input of one, and that input."""
        super().__init__(workers=THREADS)
        self.images, self.transform, self.x = images, transform, x
        self.batch_size, self.on_corrupt = batch_size, on_corrupt
        self.corrupt = {}

    def __len__(self):
        """Returns the number of batches."""
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, index):
        """Returns the inputs of one batch, `(batch, crop, crop, 3)`."""
        start = index * self.batch_size
        stop = min(start + self.batch_size, len(self.images))
        inputs = np.stack([self.input(i) for i in range(start, stop)])
        return (as_input(self.x, inputs),)

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
        batches = Batches(
            images, transform, model.inputs[0], batch_size, on_corrupt
        )
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
