r"""Trains networks of equal size and ever more groups, and draws their errors.

    python scripts/cardinality.py --data cifar10.npz --out runs/cardinality
    python scripts/cardinality.py --data cifar10.npz --out runs/small \
        --planes 16 --sizes 16 --epochs 5

That is the paper's claim: with as many parameters, more groups err less. Each
network is ResNeXt-29 with widths of the paper's table 2, each is trained with
several seeds, and all options that are not below are scripts/train.py's, the
same for all of them.

Writes into --out: cardinality.md, .csv and .png, anew after each training, and
a folder for each, as train.py does. Started again with the same options it
goes on where it was stopped.

Source: Xie et al., https://arxiv.org/abs/1611.05431, sections 3 and 5.1.
"""

import argparse
import concurrent.futures
import csv
import io
import itertools
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys

__keras_later__ = True  # only in the trainings

from keras_resnext.commands import console  # first: for Ctrl-C

# isort: split
from benchmarks.growth import WIDTHS
from common import files, pictures

_TRAIN = pathlib.Path(__file__).with_name("train.py")
_RESULT = ("test_accuracy", "parameters", "minutes")  # of train.py
_NETWORKS = [f"{groups}x{WIDTHS[groups]}" for groups in (1, 2, 4, 8, 16, 32)]


def network(text):
    """Returns cardinality and width; for `add_argument(type=…)`."""
    match = re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})d?", text)
    if not match:
        raise argparse.ArgumentTypeError(
            "must be the number of groups and their width, as 32x4. Received: "
            f"{text[:40]!r}."
        )
    return int(match[1]), int(match[2])


def parse_arguments():
    """Returns this command's options, and those of train.py as they are."""
    parser = console.Parser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--out", required=True, type=console.path, help="folder to write to")
    add(
        "--seeds",
        type=console.POSITIVE,
        default=3,
        help="trainings of each network",
    )
    add(
        "--at-once",
        type=console.POSITIVE,
        default=1,
        help="trainings side by side, for a GPU; each compiles on a processor",
    )
    add(
        "--networks",
        nargs="+",
        type=network,
        metavar="GROUPSxWIDTH",
        help=f"what to train (default: {' '.join(_NETWORKS)})",
    )
    args, options = parser.parse_known_args()
    args.networks = args.networks or [network(text) for text in _NETWORKS]
    args.networks = list(dict.fromkeys(args.networks))  # each has one folder
    fixed = {"--seed", "--groups", "--width-per-group", "--model", "--weights"}
    for option in options:
        if option.partition("=")[0] in fixed:
            parser.error(
                "seeds and networks are --seeds and --networks here, and "
                f"start from random numbers. Received: {option[:40]}. Leave "
                "it out."
            )
    return args, options


def check_options(path, options):
    """Checks that all trainings of a folder have the same options.

    Raises:
        ValueError: If earlier ones, which are in a file, had others.
    """
    if path.exists():
        earlier = read(path, list)
        if earlier != options:
            raise ValueError(
                "All networks are trained with the same options. Received: "
                f"{' '.join(options)} in {path.parent}, where they were "
                f"{' '.join(earlier)}. Pass these, or another --out."
            )


def read(path, kind, names=()):
    """Returns what is in a file of JSON.

    Args:
        path: Of the file.
        kind: Which type that must have.
        names: What must be in it.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, kind) or any(name not in found for name in names):
        raise ValueError(
            "What earlier trainings wrote must be there unchanged. Received: "
            f"{path}, which is damaged. Delete it; a training whose state is "
            "beside it goes on from there."
        )
    return found


class Processes:
    """Runs commands side by side, until one fails or this one is stopped.

    Attributes:
        status: That of the first one that failed, or of the signal that
            stopped this one, as a shell says them, or 0.
        stopped: Whether nothing more is to be run.
    """

    def __init__(self):
        """Has none running."""
        self.status, self._running, self.stopped = 0, [], False

    def __enter__(self):
        """Looks after signals."""
        # A terminal sends Ctrl-C to all, and train.py then writes its state.
        handlers = {signal.SIGINT: self._note, signal.SIGTERM: self._stop}
        self._usual = {n: signal.signal(n, h) for n, h in handlers.items()}
        return self

    def __exit__(self, *_):
        """Stops what still runs, as after a full disk."""
        self._stop()
        for number, handler in self._usual.items():
            signal.signal(number, handler)

    def _note(self, number=0, frame=None):
        self.stopped = True
        if number:
            self.status = self.status or 128 + number

    def _stop(self, *caught):
        self._note(*caught)
        for child in list(self._running):  # which threads change
            child.terminate()

    def run(self, words):
        """Runs a command to its end, unless one has failed.

        Returns:
            Whether it has done what it was to do.
        """
        if self.stopped:
            return False
        # What it prints is in its files as well.
        child = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        self._running.append(child)
        if self.stopped:  # meanwhile
            child.terminate()
        status = child.wait()
        self._running.remove(child)
        if status:
            self.status = self.status or (
                status if status > 0 else 128 - status
            )
            self._stop()
        return not status


def train(processes, folder, groups, width, seed, options):
    """Trains one network, unless that has been done.

    Returns:
        What train.py has written, or `None` if it has failed and said why.
    """
    path = folder / f"{groups}x{width}d_{seed}" / "result.json"
    found = {"finished": False}
    if path.exists():
        found = read(path, dict, _RESULT)
    # Before train.py said it, it wrote the file at the end alone.
    if not found.get("finished", True):
        words = ["--groups", groups, "--width-per-group", width]
        words += ["--seed", seed, "--out", path.parent, *options]
        if not processes.run([sys.executable, str(_TRAIN), *map(str, words)]):
            return None
    return read(path, dict, _RESULT)


def train_all(args, options):
    """Trains all networks; yields cardinality and width, and the result.

    Raises:
        SystemExit: With the status of train.py, which has said why.
    """
    if args.at_once > 1:  # else the first takes all of a GPU's memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    count = args.seeds * len(args.networks)

    def work(job):
        number, (seed, network) = job
        groups, width = network
        if processes.stopped:  # and has said why
            return network, None
        print(
            f"{number} of {count}: {groups} x {width}d, seed {seed}\n",
            end="",
            flush=True,
        )
        return network, train(processes, args.out, *network, seed, options)

    # Seed by seed: stopped early, there is a whole curve.
    jobs = enumerate(itertools.product(range(args.seeds), args.networks), 1)
    with (
        concurrent.futures.ThreadPoolExecutor(args.at_once) as pool,
        Processes() as processes,
    ):
        for network, result in pool.map(work, jobs):
            if result is None:
                break
            yield network, result
    if processes.status:
        sys.exit(processes.status)


def summarise(results):
    """Returns a row for each network.

    Args:
        results: Dictionary from `(groups, width)` to what train.py has written
            for each seed, in order.

    Returns:
        List of dictionaries: `cardinality`, `width`, `parameters`, `errors`
        (%, of each seed), their `mean` and `deviation` (of the sample, `None`
        for one seed), and the `minutes` of all.
    """
    rows = []
    for (groups, width), found in results.items():
        errors = [round(100 * (1 - r["test_accuracy"]), 2) for r in found]
        rows.append(
            {
                "cardinality": groups,
                "width": width,
                "parameters": found[0]["parameters"],
                "errors": errors,
                "mean": statistics.mean(errors),
                "deviation": (
                    statistics.stdev(errors) if len(errors) > 1 else None
                ),
                "minutes": sum(r["minutes"] for r in found),
            }
        )
    return rows


def table(rows):
    """Returns the rows as a table in Markdown, and what they say."""
    lines = [
        "| cardinality x width | parameters | test error, % | mean | "
        "standard deviation | minutes |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        spread = "" if row["deviation"] is None else f"{row['deviation']:.2f}"
        lines.append(
            f"| {row['cardinality']} x {row['width']}d "
            f"| {row['parameters']:,} "
            f"| {', '.join(f'{error:.2f}' for error in row['errors'])} "
            f"| {row['mean']:.2f} | {spread} | {row['minutes']:.1f} |"
        )
    return "\n".join(lines) + "\n\n" + conclude(rows)


def conclude(rows):
    """Returns a sentence that compares the first network with the last."""
    first, last = rows[0], rows[-1]
    if len(rows) == 1:
        return "There is one network so far.\n"
    names = [f"{row['cardinality']} x {row['width']}d" for row in (last, first)]
    gain = first["mean"] - last["mean"]
    which = "less" if gain > 0 else "more"
    text = (
        f"{names[0]} has {abs(gain):.2f} points {which} error than {names[1]}"
    )
    if None in (first["deviation"], last["deviation"]):
        return f"{text}, by one seed.\n"
    # Of the difference of two means.
    error = sum(r["deviation"] ** 2 / len(r["errors"]) for r in (first, last))
    return (
        f"{text}; the standard error of that difference is {error**0.5:.2f}.\n"
    )


def draw(path, rows):
    """Draws error against cardinality: each training, mean and deviation."""
    figure, axis = pictures.pyplot().subplots(
        figsize=(7, 4), layout="constrained"
    )
    places = range(len(rows))
    for place, row in zip(places, rows, strict=True):
        errors = row["errors"]
        axis.plot([place] * len(errors), errors, "o", color="C0", alpha=0.4)
    axis.errorbar(
        places,
        [row["mean"] for row in rows],
        [row["deviation"] or 0 for row in rows],
        color="C0",
        capsize=4,
        label="mean and standard deviation",
    )
    axis.set_xticks(
        places,
        [
            f"{row['cardinality']} x {row['width']}d\n"
            f"{row['parameters'] / 1e6:.2f} M"
            for row in rows
        ],
    )
    axis.set(
        xlabel="cardinality x width, parameters",
        ylabel="test error, %",
        title="ResNeXt-29 of equal size",
    )
    axis.grid(axis="y", alpha=0.3)
    axis.legend()
    pictures.save(figure, path)


def write(folder, rows):
    """Writes the table as Markdown and CSV, and the picture."""
    files.write(folder / "cardinality.md", table(rows))
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["cardinality", "width", "parameters", "seed", "error"])
    for row in rows:
        facts = [row[name] for name in ("cardinality", "width", "parameters")]
        lines.writerows(
            [*facts, seed, error] for seed, error in enumerate(row["errors"])
        )
    files.write(folder / "cardinality.csv", text.getvalue())
    draw(folder / "cardinality.png", rows)


@console.plain_errors()
def main():
    """Trains what has not been trained, and writes what came out."""
    args, options = parse_arguments()
    console.require_packages("train", "matplotlib")
    files.require_writable(args.out)
    results, path = {}, args.out / "options.json"
    check_options(path, options)
    with files.writing(args.out):
        for network, result in train_all(args, options):
            results.setdefault(network, []).append(result)
            files.write(path, json.dumps(options))  # they were good
            write(args.out, summarise(results))
    print(table(summarise(results)))
    print(f"Picture: {args.out / 'cardinality.png'}")


if __name__ == "__main__":
    main()
