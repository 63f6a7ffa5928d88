"""Draws what a network has learnt: mistakes, and where it looked.

Needs matplotlib and scikit-learn: `pip install ".[examples]"`.
"""

import io

import numpy as np
from PIL import Image

from common import files

# Up to so many classes, numbers and names stay readable.
_MOST_NUMBERS, _MOST_NAMES = 20, 60
_COLOURS, _STRENGTH = "turbo", 0.45  # of heat maps


def confusion(labels, predictions, classes, path):
    """Draws how often each class is taken for which.

    Args:
        labels: The true classes, integers `(n,)`.
        predictions: The predicted ones, integers `(n,)`.
        classes: Names of all classes, in the order of these integers.
        path: PNG file to write. A row has the shares of a true class.
    """
    plt = pyplot()
    from sklearn.metrics import ConfusionMatrixDisplay

    count = len(classes)
    side = min(4 + 0.55 * count, 16)
    figure, axis = plt.subplots(figsize=(side, side), layout="constrained")
    named = count <= _MOST_NAMES
    display = ConfusionMatrixDisplay.from_predictions(
        labels,
        predictions,
        labels=range(count),
        normalize="true",
        display_labels=[plain(name) for name in classes],
        ax=axis,
        cmap="Blues",
        include_values=count <= _MOST_NUMBERS,
        values_format=".0%",
        xticks_rotation="vertical",
        im_kw={"vmin": 0, "vmax": 1},
        colorbar=False,
    )
    for text in () if display.text_ is None else display.text_.ravel():
        if text.get_text() == "0%":  # these would hide the others
            text.set_text("")
    if not named:
        axis.set(xticks=[], yticks=[])
    axis.set(xlabel="predicted", ylabel="true")
    right = np.count_nonzero(np.equal(labels, predictions))
    axis.set_title(f"{right:,} of {len(labels):,} right")
    save(figure, path)


def overlays(examples, title, path):
    """Draws pictures, each beside itself under its heat map.

    Args:
        examples: List of tuples: a picture `(height, width, 3)` in 0..1, its
            heat map `(rows, columns)` in 0..1, and a caption.
        title: Title of the page.
        path: PNG file to write.
    """
    plt = pyplot()
    columns = 4
    rows = -(-len(examples) // columns)
    figure = plt.figure(figsize=(14, 1 + 2.25 * rows), layout="constrained")
    figure.suptitle(plain(title))
    page, key = figure.subfigures(2, height_ratios=[2.25 * rows, 0.6])
    cells = page.subfigures(rows, columns, squeeze=False).ravel()
    for cell, (picture, heat, caption) in zip(cells, examples, strict=False):
        cell.suptitle(plain(caption), fontsize="small")
        left, right = cell.subplots(1, 2)
        left.imshow(picture)
        right.imshow(heated(picture, heat))
        left.axis("off"), right.axis("off")
    axis = key.subplots()
    axis.axis("off")
    colours = plt.cm.ScalarMappable(cmap=_COLOURS)
    bar = figure.colorbar(
        colours, ax=axis, orientation="horizontal", fraction=1, aspect=110
    )
    bar.set_ticks([0, 1], labels=["nothing", "the most"])
    for text, side in zip(
        bar.ax.get_xticklabels(), ("left", "right"), strict=True
    ):
        text.set_horizontalalignment(side)
    bar.set_label("what speaks for the predicted class", labelpad=-8)
    save(figure, path)


def plain(text):
    """Returns anybody's text, as of a file's name, as matplotlib draws it.

    It would take what is between two dollars for a formula, and cannot draw
    a name that is not UTF-8.
    """
    text = text.encode(errors="backslashreplace").decode()
    return text.replace("$", r"\$")


def heated(picture, heat):
    """Returns a picture under its heat map, `(height, width, 3)` in 0..1."""
    height, width = picture.shape[:2]
    heat = Image.fromarray(heat.astype("float32"))
    heat = heat.resize((width, height), Image.Resampling.BILINEAR)
    colours = pyplot().get_cmap(_COLOURS)(np.asarray(heat))[..., :3]
    return (1 - _STRENGTH) * picture + _STRENGTH * colours


def key():
    """Returns the colours of heat maps as a gradient in CSS."""
    colours = pyplot().get_cmap(_COLOURS)(np.linspace(0, 1, 9))[:, :3]
    stops = ", ".join(f"rgb({r} {g} {b})" for r, g, b in _bytes(colours))
    return f"linear-gradient(to right, {stops})"


def jpeg(picture):
    """Returns a picture, `(height, width, 3)` in 0..1, as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(_bytes(picture)).save(file, "JPEG", quality=85)
    return file.getvalue()


def _bytes(values):
    return np.clip(np.round(255 * values), 0, 255).astype("uint8")


def pyplot():
    """Returns `matplotlib.pyplot`, which then opens no window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure, path):
    """Writes a figure as a PNG file, whole or not at all, and closes it."""
    files.write(path, lambda file: figure.savefig(file, dpi=100, format="png"))
    pyplot().close(figure)
