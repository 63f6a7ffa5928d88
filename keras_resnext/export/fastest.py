"""Finds the artifact that is the fastest on this machine."""

import dataclasses
import pathlib
import shutil
import statistics
import time

import numpy as np

from keras_resnext.export import comparing, serving, swap
from keras_resnext.export.formats import FORMATS
from keras_resnext.preprocessing import usual_classes
from keras_resnext.registry import require, require_count

# Sixteen bits are left out where they are only half the file: on CPUs
# float16 is computed in float32.
PRECISIONS = ("float32", "bfloat16", "int8")
_ROUNDS = 5
_RUNS = 3  # in each round, after one that wakes the threads


@dataclasses.dataclass
class Candidate:
    """An artifact that may be kept.

    Attributes:
        format: Of `keras_resnext.export.formats.FORMATS`.
        precision: In which it computes.
        report: What `keras_resnext.export.export` says of it, or `None`.
        reason: Why there is none.
        loss: Percentage points of accuracy lost against the Keras model.
        times: Of a batch, in milliseconds.
        run: Function from images to outputs.
    """

    format: str
    precision: str
    report: object = None
    reason: str = ""
    loss: float = 0.0
    times: list[float] = dataclasses.field(default_factory=list)
    run: object = None

    @property
    def time(self):
        """Returns the median for one picture, in milliseconds."""
        return statistics.median(self.times)


def checked(precisions, batch, max_loss):
    """Checks what is for "fastest" alone.

    Args:
        precisions: One, several, or `None` for the usual ones.
        batch: As for `choose`.
        max_loss: As for `choose`.

    Returns:
        The precisions as a list.

    Raises:
        ValueError: If one is out of its range.
    """
    if isinstance(precisions, str):
        precisions = [precisions]
    precisions = list(precisions or PRECISIONS)
    known = {p for kind in FORMATS.values() for p in kind.precisions}
    require(
        set(precisions) <= known,
        f"`precision` must be some of {', '.join(sorted(known))} for fastest",
        "Leave it out for the usual ones.",
        precision=precisions,
    )
    require_count("Leave it out for 1.", batch=batch)
    require(
        max_loss >= 0,
        "`max_loss` must be a percentage, 0 or more",
        "Leave it out for 0.5.",
        max_loss=max_loss,
    )
    return precisions


def choose(write, path, images, expected, labels, batch, max_loss, precisions):
    """Writes what this machine can run, and keeps the fastest.

    Args:
        write: Function of a path, a format and a precision, that exports and
            returns a `Report`.
        path: Folder for the artifact, `pathlib.Path`.
        images: Inputs to measure, `(pictures, ...)`.
        expected: What the model makes of them.
        labels: Their true classes, or `None`: then the model's count.
        batch: Number of pictures in a batch.
        max_loss: Percent of the pictures that may be lost.
        precisions: Those that are allowed.

    Returns:
        The report of the artifact that was kept.

    Raises:
        ValueError: If none agrees with the model.
    """
    truth = comparing.best(expected) if labels is None else labels
    best = np.mean(comparing.best(expected) == truth)
    candidates = [
        Candidate(format, precision)
        for format, kind in FORMATS.items()
        for precision in kind.precisions
        if precision in precisions
    ]
    with swap.hidden(path / "fastest") as folder:
        for one in candidates:
            place = folder / one.precision / FORMATS[one.format].file
            try:
                one.report = write(place, one.format, one.precision)
            except (ImportError, ValueError) as error:
                one.reason = str(error)
                continue
            _, one.run = FORMATS[one.format].load(one.report.path)
            outputs = comparing.run_all(one.run, images)
            right = np.mean(comparing.best(outputs) == truth)
            one.loss = 100 * float(best - right)
        able = [one for one in candidates if one.report is not None]
        require(
            bool(able),
            "At least one format must be able to hold the model",
            "Nothing was written.",
            reasons=sorted({one.reason for one in candidates}),
        )
        _measure(able, np.resize(images, (batch, *images.shape[1:])))
        good = [one for one in able if one.loss <= max_loss]
        require(
            bool(good),
            f"An artifact must lose at most {max_loss} % of the pictures",
            "Allow more with `max_loss`, or more precisions.",
            losses=[round(one.loss, 2) for one in able],
        )
        fastest = min(good, key=lambda one: one.time)
        print(table(candidates, fastest, batch, labels is not None))
        report = _keep(fastest, path)
    lines = FORMATS[fastest.format].code.format(path=report.path)
    print(f"\nKept: {report.path}\n\n{lines}")
    return report


def _measure(candidates, images):
    """Times all in turns, so that what else the machine does hits all."""
    for _ in range(_ROUNDS):
        for one in candidates:
            one.run(images)
            for _ in range(_RUNS):
                start = time.perf_counter()
                one.run(images)
                elapsed = time.perf_counter() - start
                one.times.append(1000 * elapsed / len(images))


def _keep(one, path):
    """Moves an artifact, and what belongs to it, to its place."""
    made = one.report.path
    final = path / FORMATS[one.format].file
    beside = ()
    if one.format == "saved_model":  # a new version: the old one may serve
        final = final / str(max(serving.versions(final), default=0) + 1)
        beside = [  # what somebody has set stays
            file
            for file in made.parent.glob("*.txt")
            if not final.with_name(file.name).exists()
        ]
    elif made.is_file():
        facts = serving.facts_of(made)  # others' are in the same folder
        beside = [facts] if facts.exists() else []
        if not beside:  # of the artifact that was there
            serving.facts_of(final).unlink(missing_ok=True)
    with swap.moved(final, new=one.format == "saved_model") as part:
        made.rename(part)
    for file in beside:
        with swap.moved(final.with_name(file.name)) as part:
            shutil.copy(file, part)
    return dataclasses.replace(one.report, path=final, latency=one.time)


def table(candidates, fastest, batch, labelled):
    """Returns what was measured as a table in Markdown."""
    measure = "accuracy lost" if labelled else "best class differs"
    lines = [
        f"| engine | precision | MB | ms a picture, batch {batch} "
        f"| {measure} |",
        "|---|---|---:|---:|---:|",
    ]
    notes = []
    for one in candidates:
        if one.report is None:
            notes.append(f"No {one.format}, {one.precision}: {one.reason}")
            continue
        cells = [one.report.runtime, one.precision]
        if one is fastest:
            cells = [f"**{cell}**" for cell in cells]
        lines.append(
            f"| {' | '.join(cells)} | {one.report.size / 1e6:.1f} "
            f"| {one.time:.1f} | {one.loss:.2f} % |"
        )
    return "\n".join(lines + notes)


def labels_of(folder, files, names):
    """Returns the true classes of pictures in folders named after classes.

    Args:
        folder: Which holds the folders, or anything else.
        files: The pictures in it.
        names: Of the model's classes, or `None`; one name is of a score that
            tells two classes apart, and does not say which.

    Returns:
        Indices, `(pictures,)`, or `None` where the folders do not say.
    """
    if not isinstance(folder, (str, pathlib.Path)) or len(names or ()) < 2:
        return None
    known = {name: i for i, name in enumerate(names)}
    usual = usual_classes(len(names))
    known = {wnid: i for i, (wnid, _) in enumerate(usual)} | known
    found = [file.parent.name for file in files]
    if not all(name in known for name in found):
        return None
    return np.array([known[name] for name in found])
