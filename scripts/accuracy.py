"""Draws the accuracy of checkpoints against what they cost.

    python scripts/accuracy.py docs/logs/accuracy.png

The checkpoints are the best permissive one of each architecture and size of
picture; named are those that are at least half a point better than all that are
cheaper. The numbers are those that `keras-resnext list` prints, but GMACs
are those of the picture's size in the test, not of 224 pixels. Needs
matplotlib: `pip install ".[examples]"`.
"""

__keras_later__ = True  # never here

from keras_resnext.commands import console  # first: for Ctrl-C

# isort: split
from common import pictures
from keras_resnext import registry

_FAMILIES = (
    *("ResNet", "Wide ResNet", "ResNeXt"),
    *("squeeze-and-excitation", "the same, anti-aliased"),
)


def points():
    """Returns the best permissive checkpoint of each architecture and size.

    Returns:
        List of `(family, name, millions of parameters, GMACs, top-1 in %)`.
    """
    best = {}
    for row in registry.CHECKPOINTS.values():
        if row.classes == 1000 and row.commercial:
            key = row.architecture, row.crop
            if key not in best or row.top1 > best[key].top1:
                best[key] = row
    found = []
    for row in best.values():
        net = registry.ARCHITECTURES[row.architecture]
        gmacs = net.gmacs * (row.crop / 224) ** 2
        label = f"{net.constructor} {row.crop}"
        found.append(
            (family(net), label, net.num_params / 1e6, gmacs, row.top1)
        )
    return found


def family(net):
    """Returns the name of the networks that are alike."""
    if net.anti_aliased:
        return "the same, anti-aliased"
    if net.squeeze_excite:
        return "squeeze-and-excitation"
    if net.groups > 1:
        return "ResNeXt"
    return "Wide ResNet" if net.width_per_group > 64 else "ResNet"


def draw(path):
    """Draws both charts into one PNG file."""
    plt, everyone = pictures.pyplot(), points()
    figure, axes = plt.subplots(
        1, 2, figsize=(13, 6), sharey=True, layout="constrained"
    )
    for axis, column, text in (
        (axes[0], 3, "GMACs of a picture, at the test's size"),
        (axes[1], 2, "parameters, millions"),
    ):
        for name in _FAMILIES:
            group = [p for p in everyone if p[0] == name]
            axis.plot(
                [p[column] for p in group],
                [p[4] for p in group],
                "o",
                label=name,
            )
        for p in frontier(everyone, column):
            axis.annotate(
                p[1],
                (p[column], p[4]),
                xytext=(-6, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                color=f"C{_FAMILIES.index(p[0])}",
            )
        axis.set(xlabel=text, xscale="log")
        axis.margins(x=0.4)
        axis.set_xticks([2, 5, 10, 20, 50, 100], [2, 5, 10, 20, 50, 100])
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="top-1 of ImageNet, %")
    axes[0].legend(loc="lower right")
    pictures.save(figure, path)


def frontier(group, column):
    """Returns the points than which no cheaper one is nearly as good."""
    kept = []
    for point in sorted(group, key=lambda p: (p[column], -p[4])):
        if not kept or point[4] > kept[-1][4] + 0.5:
            kept.append(point)
    return kept


@console.plain_errors()
def main():
    """Runs the command."""
    parser = console.Parser(description=__doc__)
    parser.add_argument("path", type=console.path, help="PNG file to write")
    path = parser.parse_args().path
    if path.is_dir():
        parser.error(
            f"path must be a PNG file. Received: {path}, a folder. Name a "
            "file in it."
        )
    console.require_packages("examples", "matplotlib")
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(path)
    print(path)


if __name__ == "__main__":
    main()
