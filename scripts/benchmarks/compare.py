"""Times contenders in turns, and writes what came out.

The process that runs this imports no framework: each contender has a process
of its own, which waits while the others have their turns.
"""

import concurrent.futures
import contextlib
import dataclasses
import datetime
import json
import multiprocessing
import os
import platform
import re
import statistics

import numpy as np
import tqdm

from benchmarks import worker
from benchmarks.tasks import Contender
from common import files, pictures
from common.threads import THREADS
from keras_resnext import processor

# Greatest difference from PyTorch's float32, relative to its greatest output.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15, "int8": 0.5}
# Of the loss, which the steps before it have moved apart.
TRAINING_TOLERANCE = {"float32": 2e-2, "bfloat16": 0.15}


@dataclasses.dataclass(frozen=True)
class Result:
    """What one contender did.

    Attributes:
        contender: Which one, a `Contender`.
        difference: From PyTorch's float32, relative to the greatest output.
        turns: What `worker.turn` returned, one for each round.
        images: Number of images in a call.
        steps: Number of batches one after the other in a call.
    """

    contender: Contender
    difference: float
    turns: list
    images: int
    steps: int

    @property
    def times(self):
        """Milliseconds of a batch, one for each round."""
        return [turn["ms"] / self.steps for turn in self.turns]

    @property
    def ms(self):
        """Their median."""
        return statistics.median(self.times)

    @property
    def images_per_second(self):
        """Images divided by the median time."""
        return 1000 * self.images / self.steps / self.ms

    def median(self, fact):
        """Returns the median of another fact of the turns."""
        return statistics.median(turn[fact] for turn in self.turns)


def process():
    """Returns a new process that runs one function after the other."""
    return concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn")
    )


def measure(chosen, task, rounds, seconds):
    """Gives each contender as many turns as there are rounds.

    Args:
        chosen: `Contender`s, in the order of their turns.
        task: `tasks.Task`.
        rounds: Number of turns of each.
        seconds: Length of a turn; a call that has begun is finished.

    Returns:
        A `Result` for each contender.

    Raises:
        ValueError: If a contender does not compute what PyTorch does.
    """
    expected = np.load(task.expected)
    limits = TRAINING_TOLERANCE if task.train else TOLERANCE
    steps = task.steps if task.train else 1
    with contextlib.ExitStack() as stack:
        processes, results = [], []
        for contender in progress(chosen, "starting"):
            processes.append(stack.enter_context(process()))
            first = processes[-1].submit(worker.start, contender, task)
            limit = limits[contender.precision]
            difference = check(contender, first.result(), expected, limit)
            results.append(
                Result(contender, difference, [], task.images_per_call, steps)
            )
        for _ in progress(range(rounds), f"batch {task.batch}"):
            for runner, result in zip(processes, results, strict=True):
                turn = runner.submit(worker.turn, seconds).result()
                result.turns.append(turn)
    return results


def progress(things, description):
    """Returns the things, with a progress bar on a terminal."""
    return tqdm.tqdm(things, desc=description, leave=False, disable=None)


def check(contender, outputs, expected, limit):
    """Returns the relative difference of the outputs, if it is within limit.

    Args:
        contender: Whose outputs they are.
        outputs: Array of the first images, or of a loss.
        expected: PyTorch's, of as many images or more.
        limit: Greatest difference, relative to the greatest expected one.

    Raises:
        ValueError: If they differ by more.
    """
    expected = expected[: len(outputs)]
    difference = np.abs(outputs - expected).max() / np.abs(expected).max()
    if not difference <= limit:
        raise ValueError(
            f"The outputs of {contender.name} must be within {limit} of "
            "PyTorch's float32, relative to the greatest. Received: "
            f"difference={difference:.2g}. There is nothing to time: mend it, "
            "or choose others with --only."
        )
    return float(difference)


# --- Arithmetic --------------------------------------------------------------


def paired_ratio(slow, fast):
    """Returns the median of the ratios of neighbouring turns' times.

    A machine's speed drifts; that of two turns in one round hardly.
    """
    pairs = zip(slow.times, fast.times, strict=True)
    return statistics.median(a / b for a, b in pairs)


def ratios(results):
    """Returns for each result how many times ours is as fast, or None.

    A peer is compared with the one that it names, with the fastest of ours in
    its precision, or in float32 where there is none. Who computes in fewer
    bits than the one it is compared with is compared the other way round: how
    many times it is as fast. So are those of ours, with our fastest in
    float32.
    """
    named = {result.contender.key: result for result in results}
    best = {}
    for result in sorted(results, key=lambda result: -result.ms):
        if result.contender.ours:
            best[result.contender.precision] = result
    whole = best.get("float32")
    found = []
    for result in results:
        who = result.contender
        slow, fast = result, best.get(who.precision, whole)
        if who.ours:
            slow, fast = whole, result if who.precision != "float32" else None
        other = named.get(who.against)
        if other:
            fewer = who.precision != other.contender.precision
            slow, fast = (other, result) if fewer else (result, other)
        found.append(paired_ratio(slow, fast) if slow and fast else None)
    return found


# --- What is written ---------------------------------------------------------

COLUMNS = (
    "precision",
    "ms",
    "images/s",
    "ratio",
    "goal",
    "loaded MB",
    "peak MB",
    "processors",
    "difference",
)
EXPLANATION = """\
All had their turns one after the other, round by round, each in a process of
its own with as many threads as it may use processors, and the same images and
random weights. `ms` is the median of the turns' medians for one batch;
`ratio` the median of the rounds' ratios: how many times our fastest path of
that precision is as fast as a peer, and how many times one of our paths with
fewer bits is as fast as our fastest in float32. Some are compared with one
row alone: PyTorch's file in a runtime with ours there, our int8 there with our
float32, our folded network with our SavedModel. `loaded MB` is the memory of
the process before its first call, libraries and weights, and `peak MB` the
most that it ever had; `processors` how many it kept busy; `difference` the
greatest one from PyTorch's float32, relative to the greatest output, measured
before the times. Ours are in bold."""


def table(results):
    """Returns the Markdown of one section."""
    lines = [
        f"| | {' | '.join(COLUMNS)} |",
        "|---|---|" + "---:|" * (len(COLUMNS) - 1),
    ]
    for result, ratio in zip(results, ratios(results), strict=True):
        who = result.contender
        cells = (
            f"**{who.name}**" if who.ours else who.name,
            who.precision,
            f"{result.ms:,.1f}",
            f"{result.images_per_second:,.1f}",
            "" if ratio is None else f"{ratio:.2f}",
            "" if who.goal is None else f"{who.goal:.2f}",
            f"{result.median('loaded_mb'):,.0f}",
            f"{result.median('peak_mb'):,.0f}",
            f"{result.median('processors'):.1f}",
            f"{result.difference:.0e}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(sections):
    """Returns the Markdown of all sections' times, with their ratios.

    Sections in which the same contenders took part share a table.
    """
    groups = {}
    for name, results in sections.items():
        names = tuple(result.contender.name for result in results)
        groups.setdefault(names, {})[name] = results
    tables = []
    for group in groups.values():
        lines = [
            f"| ms (ratio) | precision | {' | '.join(group)} | goal |",
            "|---|---|" + "---:|" * (len(group) + 1),
        ]
        found = [ratios(results) for results in group.values()]
        for row, ratio in zip(
            zip(*group.values(), strict=True),
            zip(*found, strict=True),
            strict=True,
        ):
            who = row[0].contender
            cells = [
                f"{result.ms:,.1f}" + (f" ({r:.2f})" if r else "")
                for result, r in zip(row, ratio, strict=True)
            ]
            lines.append(
                f"| {f'**{who.name}**' if who.ours else who.name} | "
                f"{who.precision} | {' | '.join(cells)} | {who.goal or ''} |"
            )
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def machine():
    """Returns what the numbers depend on beside the versions."""
    facts = {
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "threads": THREADS,
        "cpu": processor.name(),
        "instructions": processor.instruction_set(),
        "bfloat16": "native" if processor.computes_bfloat16() else "emulated",
        "python": platform.python_version(),
        "TF_ENABLE_ONEDNN_OPTS": os.environ.get("TF_ENABLE_ONEDNN_OPTS"),
        "ONEDNN_MAX_CPU_ISA": os.environ.get("ONEDNN_MAX_CPU_ISA"),
    }
    text = " ".join(processor.facts().values())
    flags = re.findall(r"\b(?:avx|amx|fma|sve|asimd|bf16|i8mm)\w*", text)
    if flags:
        facts["flags"] = sorted(set(flags))
    return facts


def describe(facts):
    """Returns one line of Markdown on the machine and the versions."""
    words = {k: " ".join(v) if k == "flags" else v for k, v in facts.items()}
    return ", ".join(f"{k} {v}" for k, v in words.items() if v is not None)


def write(out, title, facts, sections):
    """Writes `out`.md, .json and .png; replaces older ones.

    Args:
        out: `pathlib.Path` without the ending.
        title: Of all of them.
        facts: Dictionary about the machine and the versions.
        sections: Dictionary from a section's title to its `Result`s.
    """
    text = [f"# {title}", describe(facts), EXPLANATION, summary(sections)]
    for name, results in sections.items():
        text += [f"## {name}", table(results)]
    text.append(f"![Milliseconds of an image]({out.name}.png)")
    files.write(out.with_suffix(".md"), "\n\n".join(text) + "\n")
    stored = {"title": title, **facts, "sections": {}}
    for name, results in sections.items():
        stored["sections"][name] = [
            {
                "key": result.contender.key,
                "precision": result.contender.precision,
                "ms": result.ms,
                "images_per_second": result.images_per_second,
                "ratio": ratio,
                "goal": result.contender.goal,
                "difference": result.difference,
                "turns": result.turns,
            }
            for result, ratio in zip(results, ratios(results), strict=True)
        ]
    files.write(out.with_suffix(".json"), json.dumps(stored, indent=1) + "\n")
    draw(out.with_suffix(".png"), title, sections)


def draw(path, title, sections):
    """Draws milliseconds of an image, a panel for each section.

    The stock layers are so slow that nothing could be read beside them: their
    bar ends where the picture does.
    """
    plt = pictures.pyplot()
    columns = min(2, len(sections))
    rows = -(-len(sections) // columns)
    bars = max(map(len, sections.values()))
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(6.5 * columns, (1.2 + 0.3 * bars) * rows),
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.ravel()[len(sections) :]:
        axis.remove()  # where the number of sections is odd
    figure.suptitle(
        f"{title}: milliseconds of an image, shorter is better\n"
        "blue: this package and its exports, grey: others, →: longer than drawn"
    )
    for axis, (name, results) in zip(
        axes.ravel(), sections.items(), strict=False
    ):
        _draw_bars(axis, name, sorted(results, key=lambda r: r.ms))
    pictures.save(figure, path)


def _draw_bars(axis, name, results):
    times = [1000 / r.images_per_second for r in results]
    shown = [
        time
        for time, r in zip(times, results, strict=True)
        if r.contender.key != "stock"
    ]
    longest = 1.1 * max(shown or times)
    labels = [f"{r.contender.name}, {r.contender.precision}" for r in results]
    ours = [
        r.contender.ours or "our export" in r.contender.name for r in results
    ]
    colours = ["tab:blue" if own else "0.7" for own in ours]
    bars = axis.barh(labels, np.minimum(times, longest), color=colours)
    marks = ["→ " if time > longest else "" for time in times]
    texts = [f"{m}{t:,.1f}" for m, t in zip(marks, times, strict=True)]
    axis.bar_label(bars, texts, padding=3)
    axis.set_xlim(0, 1.15 * longest)
    axis.invert_yaxis()
    axis.set_title(name)
    axis.spines[["top", "right"]].set_visible(False)
