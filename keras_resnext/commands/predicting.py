"""Says what pictures show: the best classes of each one."""

import csv
import os
import sys
from concurrent import futures

import numpy as np
from tqdm import tqdm

from keras_resnext import pillow, preprocessing
from keras_resnext.commands import networks
from keras_resnext.export.preparing import as_input
from keras_resnext.files import replacing


def run(args):
    """Prints a row for each picture, and writes them all as CSV if asked to.

    Returns:
        Exit status: 2 if a picture that is named could not be read, else 0.

    Raises:
        ValueError: If there is no such network, or no picture can be read.
        OSError: If a file cannot be read or written.
    """
    pictures = find(args.pictures)
    model, row = networks.load(args, assume=True)
    networks.require_classifier(model, row)
    names = _names(args.labels, row, model.output_shape[-1])
    transform = preprocessing.eval_transform(row)
    width = max(map(len, ["picture", *map(_printable, pictures)]))
    table = []
    for path, scores in classify(model, transform, pictures, args.batch_size):
        best = np.argsort(-scores, kind="stable")[: args.top]
        if not table:
            tqdm.write(f"{'picture':{width}}  best guesses")
        table.append((path, [(names[i], scores[i]) for i in best]))
        # Logits stay as they are.
        form = ".1%" if min(scores) >= 0 and max(scores) <= 1 else ".2f"
        guesses = ", ".join(f"{n} {s:{form}}" for n, s in table[-1][1])
        tqdm.write(f"{_printable(path):{width}}  {guesses}")
    if not table:
        raise ValueError(
            "One picture or more that can be read is required. Received: none "
            f"in {' '.join(map(str, args.pictures))}. Check the paths."
        )
    if args.csv:
        _write(args.csv, table)
    read = {path for path, _ in table}
    # What else is in a folder may be anything.
    return 2 if set(pictures) & set(args.pictures) - read else 0


def find(paths):
    """Returns the files that are named, and those in folders, in order."""
    found = []
    for path in paths:
        if path.is_dir():
            found += pillow.files_in(path)
        else:
            found.append(path)
    return found


def classify(model, transform, pictures, batch_size):
    """Yields each picture that can be read, and the scores of its classes.

    Those that cannot be read are named on the error stream.
    """
    with (
        futures.ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(pictures), unit="picture", disable=None) as bar,
    ):
        for start in range(0, len(pictures), batch_size):
            batch = pictures[start : start + batch_size]
            inputs = list(pool.map(_reader(transform), batch))
            bar.update(len(batch))
            read = [i for i, array in enumerate(inputs) if array is not None]
            if read:
                stack = np.stack([inputs[i] for i in read])
                stack = as_input(model.inputs[0], stack)
                scores = np.asarray(model.predict_on_batch(stack), "float32")
                yield from zip([batch[i] for i in read], scores, strict=True)


def _reader(transform):
    """Returns a function from a path to an input, `None` where it fails."""

    def read(path):
        try:
            return transform(path)
        except (OSError, ValueError) as error:
            tqdm.write(f"Skipped: {error}", file=sys.stderr)
            return None

    return read


def _names(file, row, outputs):
    """Returns the name of each output, of a stranger's network its number."""
    names = networks.read_labels(file)
    if names is None:
        names = preprocessing.class_names(row, outputs)
        return names or [f"class {i}" for i in range(outputs)]
    if len(names) != outputs:
        raise ValueError(
            "--labels must name each class on a line of its own. Received: "
            f"{len(names)} names for {outputs} classes. Check {file}."
        )
    return names


def _printable(path):
    """Returns a path as one line of text, whatever is in its name."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in str(path)
    )


def _write(path, table):
    """Writes the table as CSV, whole or not at all."""
    top = range(1, 1 + len(table[0][1]))
    # A name of a file need not be UTF-8: it goes back as the bytes it was.
    form = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with replacing(path) as part, open(part, "w", **form) as file:
        rows = csv.writer(file)
        rows.writerow(
            ["picture"]
            + [f"{what}_{i}" for i in top for what in ("class", "score")]
        )
        for picture, best in table:
            cells = [cell for n, s in best for cell in (n, f"{s:.6f}")]
            rows.writerow([picture, *cells])
