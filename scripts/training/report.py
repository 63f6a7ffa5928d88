"""Shows how a training goes: progress bar, log, results, curves."""

import csv
import io
import itertools
import json
import statistics
import time

import keras
from tqdm import tqdm

from common import files, pictures, versions


class Progress(keras.callbacks.Callback):
    """A bar over the whole training, with images/s and the time left.

    Attributes:
        total: Number of steps in the whole training.
        done: How many of them an earlier run has had.
        batch_size: Number of images in a step.
    """

    def __init__(self, total, done, batch_size):
        """Takes the attributes."""
        super().__init__()
        self.batch_size, self._shown = batch_size, 0.0
        self.bar = tqdm(
            total=total * batch_size,
            initial=done * batch_size,
            unit=" images",
            unit_scale=True,
            disable=None,  # where nobody looks
        )

    def on_train_batch_end(self, batch, logs=None):
        """Moves the bar; asks the device for numbers once a second only."""
        self.bar.update(self.batch_size)
        if not self.bar.disable and time.monotonic() > self._shown + 1:
            self._shown = time.monotonic()
            self.bar.set_postfix({k: float(v) for k, v in logs.items()})


def describe_data(train, test):
    """Returns a sentence about what was found, to be seen if that is wrong."""
    more = ", ..." if train.classes[5:] else "."
    return (
        f"Trains with {len(train.labels):,} pictures and tests with "
        f"{len(test.labels):,}, of {len(train.classes):,} classes: "
        f"{', '.join(train.classes[:5])}{more}"
    )


def describe(row):
    """Returns a line about an epoch."""
    text = (
        f"epoch {row['epoch'] + 1}, {row['size']}x{row['size']} pixels: loss "
        f"{row['loss']:.4f}, accuracy {row['accuracy']:.2%}"
    )
    if "val_accuracy" in row:
        text += f", of the test pictures {row['val_accuracy']:.2%}"
    return text


def describe_features(features, rows):
    """Returns a sentence about what computing the features once has saved.

    Args:
        features: Seconds that those of the training pictures took.
        rows: Of the log, with the `seconds` since the beginning.
    """
    # The first epoch is also the one in which the backend compiles.
    ends = [row["seconds"] for row in rows]
    epoch = statistics.median(b - a for a, b in itertools.pairwise([0, *ends]))
    return (
        f"Features: {features:.2f} s once, then {epoch:.3f} s for an epoch on "
        f"them, a ratio of {features / epoch:.1f}. Without them each epoch "
        f"would take at least {features:.2f} s"
    )


def write_log(path, rows):
    """Writes a table, `log.csv`, with a row for each epoch.

    An epoch without a test leaves its columns empty.
    """
    text = io.StringIO()
    # The longest first, for the order; one of an older version may have less.
    names = dict.fromkeys(itertools.chain(*sorted(rows, key=len, reverse=True)))
    table = csv.DictWriter(text, list(names), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    files.write(path, text.getvalue())


def write_result(path, run, network, classes, accuracy, finished):
    """Writes what has come of a training so far, `result.json`; returns it.

    Args:
        path: File to write.
        run: A `resume.Run`.
        network: The network.
        classes: Names of its classes.
        accuracy: Its share of right answers for the test pictures.
        finished: Whether the training has come to its end.
    """
    size, pictures = run.options["batch_size"], run.options["pictures"][0]
    seen = (run.epoch * (pictures // size) + run.step) * size
    result = {
        "test_accuracy": round(accuracy, 4),
        "finished": finished,
        "minutes": round(run.seconds / 60, 2),
        "images_per_second": round(seen / run.seconds, 1),
        "idle": round(run.waited / run.seconds, 4),
        "parameters": network.count_params(),
        "classes": classes,
        "options": run.options,
        "versions": versions.loaded(),
    }
    files.write(path, json.dumps(result, indent=2))
    return result


def draw(path, rows, title):
    """Draws loss, accuracy and learning rate over the epochs."""
    figure, axes = pictures.pyplot().subplots(
        1, 3, figsize=(12, 3.5), layout="constrained"
    )
    panels = (("loss", "val_loss"), ("accuracy", "val_accuracy"))
    for axis, names in zip(axes, (*panels, ("learning_rate",)), strict=True):
        for name, label in zip(names, ("training", "test"), strict=False):
            points = [(r["epoch"] + 1, r[name]) for r in rows if name in r]
            if not points:
                raise KeyError(name)
            axis.plot(*zip(*points, strict=True), marker=".", label=label)
        axis.set_title(names[0].replace("_", " "))
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(pictures.plain(title))
    pictures.save(figure, path)
