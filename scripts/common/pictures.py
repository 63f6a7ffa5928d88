"""Draws what a network has learnt: mistakes, and where it looked.

Needs matplotlib and scikit-learn: `pip install ".[examples]"`.
"""

from common import files

# Up to so many classes, numbers and names stay readable.
_MOST_NUMBERS, _MOST_NAMES = 20, 60


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
    shares = confusion_shares(labels, predictions, count)
    side = min(4 + 0.55 * count, 16)
    figure, axis = plt.subplots(figsize=(side, side), layout="constrained")
    named = count <= _MOST_NAMES
    ConfusionMatrixDisplay(shares, display_labels=classes).plot(
        ax=axis,
        cmap="Blues",
        include_values=count <= _MOST_NUMBERS,
        values_format=".0%",
        xticks_rotation="vertical",
        im_kw={"vmin": 0, "vmax": 1},
        colorbar=False,
    )
    if not named:
        axis.set(xticks=[], yticks=[])
    axis.set(xlabel="predicted", ylabel="true")
    right = sum(a == b for a, b in zip(labels, predictions, strict=True))
    axis.set_title(f"{right:,} of {len(labels):,} right")
    save(figure, path)


def confusion_shares(labels, predictions, count):
    """Returns the share of each true class that is taken for each class.

    Args:
        labels: The true classes, integers `(n,)`.
        predictions: The predicted ones, integers `(n,)`.
        count: Number of classes.

    Returns:
        Array `(count, count)`, a row for a true class. A row sums up to 1, or
        to 0 where there are no pictures of that class.
    """
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(
        labels, predictions, labels=range(count), normalize="true"
    )


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
    figure = plt.figure(figsize=(14, 0.4 + 2.05 * rows), layout="constrained")
    figure.suptitle(title)
    cells = figure.subfigures(rows, columns, squeeze=False).ravel()
    for cell, (picture, heat, caption) in zip(cells, examples, strict=False):
        cell.suptitle(caption, fontsize="small")
        left, right = cell.subplots(1, 2)
        height, width = picture.shape[:2]
        for axis in (left, right):
            axis.imshow(picture, extent=(0, width, height, 0))
            axis.axis("off")
        right.imshow(
            heat,
            cmap="turbo",
            vmin=0,
            vmax=1,
            alpha=0.45,
            interpolation="bilinear",
            extent=(0, width, height, 0),
        )
    save(figure, path)


def pyplot():
    """Returns `matplotlib.pyplot`, which then opens no window."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure, path, dpi=100):
    """Writes a figure as a PNG file, whole or not at all, and closes it."""
    files.write(path, lambda file: figure.savefig(file, dpi=dpi, format="png"))
    pyplot().close(figure)
