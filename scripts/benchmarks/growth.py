"""How the time of inference grows with the work."""

import pathlib
import statistics
import tempfile
import time

import numpy as np

from benchmarks import compare
from benchmarks.tasks import versions
from common import files, pictures

# What varies, one at a time, around the first values below.
BASE = {"batches": 8, "sides": 224, "cardinalities": 32, "switches": "none"}
SERIES = {
    "batches": [1, 2, 4, 8, 16, 32, 64],
    "sides": [128, 160, 192, 224, 256, 288, 320],
    "cardinalities": [1, 2, 4, 8, 16, 32, 64],
    "switches": ["none", "squeeze_excite", "anti_aliased"],
}
# Bottleneck widths at about equal cost. Source: Xie et al.,
# https://arxiv.org/abs/1611.05431, table 2; those of 16 and 64 are its
# formula's, `256 w + 9 w^2 / c + 256 w` with `w = width * c`, rounded.
WIDTHS = {1: 64, 2: 40, 4: 24, 8: 14, 16: 8, 32: 4, 64: 2}
MATRIX = 4096  # rows and columns of the product that measures the peak


def macs(model):
    """Counts the multiplications of one image in a Keras model.

    Those of convolutions and dense layers; what else there is hardly counts.
    """
    total = 0
    for layer in model.layers:
        if hasattr(layer, "kernel"):
            positions = layer.output.shape[1:-1]  # none of a dense layer
            total += np.prod(layer.kernel.shape) * np.prod(positions)
    return int(total)


def build(side, cardinality, switch="none"):
    """Returns ResNeXt-50 of another cardinality at about equal cost.

    Args:
        side: Of the images, in pixels.
        cardinality: Number of groups, a key of `WIDTHS`.
        switch: Of the family's, "squeeze_excite" or "anti_aliased".
    """
    import keras_resnext

    return keras_resnext.ResNeXt(
        (3, 4, 6, 3),
        cardinality,
        WIDTHS[cardinality],
        input_shape=(side, side, 3),
        **{} if switch == "none" else {switch: True},
    )


def serve(model, folder):
    """Exports a model as a SavedModel; returns a function of images."""
    from keras_resnext.export import export
    from keras_resnext.export.formats import FORMATS

    report = export(model, folder)
    return FORMATS["saved_model"].load(report.path)[1]


def peak_functions():
    """Returns ways to multiply two large matrices of float32."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, MATRIX, MATRIX), dtype="float32")
    x, y = tf.constant(a), tf.constant(b)
    return lambda: a @ b, lambda: tf.matmul(x, y).numpy()


def gigaflops(function, multiplications):
    """Returns the speed of a call; a multiplication comes with an addition."""
    start = time.perf_counter()
    function()
    return 2e-9 * multiplications / (time.perf_counter() - start)


def measure(run, work, peaks, rounds):
    """Times a function in turns with the matrix products.

    Returns:
        The median GFLOP/s of the function, and the median of its shares of
        the faster matrix product's.
    """
    run()
    speeds, shares = [], []
    for _ in range(rounds):
        peak = max(gigaflops(product, MATRIX**3) for product in peaks)
        run()  # the product has taken its caches
        speeds.append(gigaflops(run, work))
        shares.append(speeds[-1] / peak)
    return statistics.median(speeds), statistics.median(shares)


def points(series):
    """Yields what varies, and each point of its series: a copy of `BASE`.

    `BASE` itself is in all of them, and measured in each: what its rows differ
    by is the noise.
    """
    for what, values in series.items():
        for value in values:
            yield what, BASE | {what: value}


def growth(arguments):
    """Measures inference over batches, image sizes and cardinalities."""
    series = {what: getattr(arguments, what) for what in SERIES}
    unknown = set(series["cardinalities"]) - set(WIDTHS)
    if unknown:
        raise ValueError(
            f"`--cardinalities` must be of {list(WIDTHS)}. Received: "
            f"{sorted(unknown)}. There are no widths of equal cost for others."
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    peaks = peak_functions()
    rows = []
    served = None
    for what, point in compare.progress(list(points(series)), "growth"):
        side = point["sides"]
        network = (side, point["cardinalities"], point["switches"])
        if served != network:
            with tempfile.TemporaryDirectory() as folder:
                model = build(*network)
                run = serve(model, pathlib.Path(folder))
            served, one = network, macs(model)
        images = np.random.default_rng(0).standard_normal(
            (point["batches"], side, side, 3), dtype="float32"
        )
        speed, share = measure(
            lambda run=run, images=images: run(images),
            one * len(images),
            peaks,
            arguments.rounds,
        )
        rows.append((what, point, one, speed, share))
    write(arguments.out, compare.machine() | versions(), rows)


def write(out, facts, rows):
    """Writes growth.md and growth.png, and prints the table.

    Args:
        out: Folder, `pathlib.Path`.
        facts: Dictionary about the machine and the versions.
        rows: Tuples of what varies, the point, the multiplications of an
            image, GFLOP/s, and the share of the peak.
    """
    lines = [
        "| varied | batch | image | cardinality x width | switch | "
        "GMACs an image | ms an image | images/s | GFLOP/s | of the peak |",
        "|---|---:|---:|---:|---|" + "---:|" * 5,
    ]
    for what, point, one, speed, share in rows:
        seconds = 2e-9 * one / speed
        groups = point["cardinalities"]
        lines.append(
            f"| {what} | {point['batches']} | {point['sides']} | "
            f"{groups} x {WIDTHS[groups]}d | {point['switches']} | "
            f"{one / 1e9:.2f} | "
            f"{1000 * seconds:.1f} | {1 / seconds:.1f} | {speed:.0f} | "
            f"{share:.0%} |"
        )
    text = (
        f"{compare.describe(facts)}\n\nResNeXt-50's SavedModel in float32. The "
        f"peak is that of a matrix product, {MATRIX}x{MATRIX}, measured in "
        "turns with each row: the faster of NumPy's and TensorFlow's.\n\n"
        + "\n".join(lines)
        + "\n\n![Share of the peak](growth.png)\n"
    )
    files.write(out / "growth.md", text)
    draw(out / "growth.png", rows)
    print(text)


def draw(path, rows):
    """Draws the share of the peak, a panel for each series."""
    plt = pictures.pyplot()
    series = list(dict.fromkeys(what for what, *_ in rows))
    figure, axes = plt.subplots(
        1,
        len(series),
        figsize=(4 * len(series), 3.2),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    figure.suptitle("ResNeXt-50: share of the machine's arithmetic peak")
    titles = {
        "batches": "images in a batch",
        "sides": "side of an image, pixels",
        "cardinalities": "cardinality, at equal cost",
        "switches": "switch of the family",
    }
    for axis, what in zip(axes.ravel(), series, strict=True):
        values = [(p[what], share) for w, p, _, _, share in rows if w == what]
        x, y = zip(*values, strict=True)
        axis.plot(range(len(x)), np.multiply(y, 100), marker="o")
        axis.set_xticks(range(len(x)), x)
        axis.set_xlim(-0.5, len(x) - 0.5)
        axis.set_xlabel(titles[what])
        axis.grid(axis="y", alpha=0.3)
    axes[0, 0].set_ylim(0, 100)
    axes[0, 0].set_ylabel("%")
    pictures.save(figure, path)
