r"""Shows what a network has learnt, on the pictures it was not trained with.

    python scripts/explain.py runs/flowers/model.keras \
        --data flowers/ --out runs/flowers/explained
    python scripts/explain.py resnext29 --weights cifar10 \
        --data cifar10.npz --out runs/explain
    python scripts/explain.py resnext50_32x4d --data imagenette2/ \
        --out runs/imagenette

The network, its weights and --data are what evaluate.py takes. Pictures get
the preprocessing of the checkpoint, or what train.py's result.json beside a
file says, else that of `preprocess_input`; --size is for other sizes. Needs
TensorFlow, and `pip install ".[examples]"`.

Writes explain.html into --out, a page with all pictures in it, which helps to
find mislabelled files, and the same as PNG files: worst.png and best.png, the
predictions with the least and the most probability for the true class, over
which Grad-CAM shows what spoke for the predicted class; confusion.png; and
training.png if train.py's log.csv lies beside the network. predictions.csv has
all predictions, the least probable truths first.
"""

import base64
import collections
import csv
import dataclasses
import html
import io
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
__keras_later__ = True  # once Ctrl-C is looked after

from keras_resnext.commands import console  # first: for Ctrl-C and oneDNN

# isort: split
import numpy as np

import keras_resnext
from common import data, files, pictures
from keras_resnext.commands import arguments

CAPTIONS = {
    "worst": "Least probable truths: mislabelled, or hard",
    "best": "Most probable truths",
    "confusion": "What is taken for what",
    "training": "Training",
}
_SIDE = 160  # pixels, at least, of the pictures on a page
_HELP = """<p>The class that the data gives a picture is its truth. Where that
is least probable, and another class nearly sure, look first whether the file
lies in the wrong folder. <a href="predictions.csv">predictions.csv</a> has all
pictures in that order.</p>"""
_HEAD = "<tr><th>class</th><th>taken for</th><th>pictures</th></tr>\n"
_STYLE = """
body {font-family: sans-serif; margin: 2em auto; max-width: 80em;
  padding: 0 1em; color-scheme: light dark}
img {max-width: 100%}
.cards {display: grid; gap: 1.2em;
  grid-template-columns: repeat(auto-fill, minmax(19em, 1fr))}
figure {margin: 0; overflow-wrap: anywhere}
figure div {display: flex; gap: 2px}
figure img {width: 50%; object-fit: cover}
.key span {display: inline-block; width: 12em; height: .8em; margin: 0 .4em}
table {border-collapse: collapse}
td, th {padding: .2em 1em .2em 0; text-align: left}
"""


def parse_arguments():
    """Returns the command line's options."""
    parser = console.Parser(description=__doc__)
    add = parser.add_argument
    arguments.add_network(parser)
    data.add_arguments(parser, trained=True)
    add("--out", required=True, type=console.path, help="folder to write to")
    add(
        "--size",
        type=console.SIDE,
        help="of the pictures, in pixels (default: the network's)",
    )
    add(
        "--count",
        type=console.POSITIVE,
        default=12,
        help="pictures on a page",
    )
    add(
        "--batch-size",
        type=console.POSITIVE,
        default=64,
        help="pictures that are computed at once",
    )
    return parser.parse_args()


def load_model(args):
    """Returns the network and what makes an input of a picture.

    Raises:
        ValueError: If neither the network nor --size tell the pictures' size.
    """
    from keras_resnext.commands import networks

    _, known = networks.find(args)
    model, row = networks.load(args, args.size, args.size, assume=True)
    networks.require_classifier(model, row, "--size")
    if known is None and args.size is None and model.input_shape[1] is None:
        raise ValueError(
            "--size must be given for a network that takes pictures of any "
            "size. Received: --size=None. Pass the side, in pixels, that it "
            "was trained for, or --checkpoint; or put result.json beside it, "
            "which train.py writes."
        )
    return model, keras_resnext.eval_transform(row)


def predict(model, images, transform, args):
    """Returns probabilities, `(n, classes)`, and the pictures' indices."""
    import keras

    from common import classifier
    from common.grad_cam import activation

    scores, kept = classifier.predict(
        model, images, transform, args.batch_size, args.on_corrupt
    )
    if activation(model) is keras.activations.linear:
        scores = keras.ops.convert_to_numpy(keras.ops.softmax(scores))
    return scores, kept


def pages(labels, scores, count):
    """Returns the worst and the best predictions, by the page's name.

    Args:
        labels: The true classes, integers `(n,)`.
        scores: Probabilities, `(n, classes)`.
        count: Number of predictions on a page.

    Returns:
        A dict of `"worst"` and `"best"`: indices, the least and the most
        probable truth first.
    """
    truth = scores[np.arange(len(labels)), labels]
    order = np.argsort(truth, kind="stable")
    return {"worst": order[:count], "best": order[::-1][:count]}


def caption(label, scores, names):
    """Returns what is said of one picture."""
    text, best = f"{names[label]} {scores[label]:.0%}", scores.argmax()
    if best == label:
        return text
    return f"{text}, taken for {names[best]} {scores[best]:.0%}"


def name_of(image, index, folder):
    """Returns the path below the data's folder, or else a picture's number."""
    if not isinstance(image, str):
        return f"picture {index}"
    path = pathlib.Path(image)
    return str(
        path.relative_to(folder) if path.is_relative_to(folder) else path
    )


@dataclasses.dataclass(frozen=True)
class Shown:
    """One picture on a page.

    Attributes:
        name: Its path below the data's folder, or its number.
        path: Its path, or `None`.
        caption: What the network says of it.
        picture: `(height, width, 3)` in 0..1: the part that the network sees,
            as sharp as the file has it.
        heat: What spoke for the predicted class, `(rows, columns)` in 0..1.
    """

    name: str
    path: str | None
    caption: str
    picture: np.ndarray
    heat: np.ndarray


def show(model, images, names, transform, captions, best, batch_size):
    """Returns what is `Shown` of some pictures.

    Args:
        model: The network.
        images: Pictures, as those of a `data.Split`.
        names: A name for each.
        transform: What makes an input of a picture.
        captions: A text for each.
        best: The predicted classes, integers `(n,)`.
        batch_size: Number of pictures that are computed at once.
    """
    from common.grad_cam import grad_cam
    from keras_resnext.export.preparing import as_input

    row = transform.checkpoint
    # The same part of each picture as the network's input, but larger.
    larger = max(1, -(-_SIDE // row.crop))
    sharp = keras_resnext.eval_transform(
        dataclasses.replace(
            row, resize=larger * row.resize, crop=larger * row.crop
        )
    )
    seen = np.clip(sharp(images) * row.std + row.mean, 0, 1)
    inputs = as_input(model.inputs[0], transform(images))
    heat = np.concatenate(
        [
            grad_cam(
                model, inputs[i : i + batch_size], best[i : i + batch_size]
            )
            for i in range(0, len(inputs), batch_size)
        ]
    )
    paths = [image if isinstance(image, str) else None for image in images]
    return [
        Shown(*of)
        for of in zip(names, paths, captions, seen, heat, strict=True)
    ]


def predictions(names, labels, scores, classes):
    """Returns all predictions as a table, CSV, least probable truths first."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ("picture", "class", "probability", "predicted", "its_probability")
    )
    best = scores.argmax(-1)
    truth = scores[np.arange(len(labels)), labels]
    for i in np.argsort(truth, kind="stable"):
        table.writerow(
            (
                *(names[i], classes[labels[i]], f"{truth[i]:.4f}"),
                *(classes[best[i]], f"{scores[i, best[i]]:.4f}"),
            )
        )
    return text.getvalue()


def draw_training(log, path):
    """Draws the curves of a log, if there is one in train.py's form."""
    from training import report

    if not log.is_file():
        return
    with open(log, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        rows = [{k: float(v) for k, v in r.items() if v} for r in rows]
        report.draw(path, rows, str(log))
    except (KeyError, TypeError, ValueError) as error:
        print(f"No curves: {log} is not train.py's ({error}).", file=sys.stderr)


def write_page(out, title, shown, confused):
    """Writes explain.html with all pictures in it.

    Args:
        out: Folder to write to.
        title: Text of the first heading.
        shown: A dict from a page's name to a list of `Shown`.
        confused: Lines of the table of what is taken for what most often.
    """
    parts = [f"<h1>{html.escape(title)}</h1>", _HELP]
    key = (
        f'<p class="key">nothing <span style="background: {pictures.key()}">'
        "</span> the most of what speaks for the predicted class</p>"
    )
    for name, caption in CAPTIONS.items():
        if name in shown:
            cards = "\n".join(map(_card, shown[name]))
            body = f'{key}\n<div class="cards">\n{cards}\n</div>'
        elif (out / f"{name}.png").exists():
            body = _image((out / f"{name}.png").read_bytes(), "png", caption)
        else:
            continue
        if name == "confusion" and confused:
            rows = "".join(f"<tr>{row}</tr>\n" for row in confused)
            body += f"\n<table>\n{_HEAD}{rows}</table>"
        parts.append(f"<h2>{caption}</h2>\n{body}")
    text = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<meta '
        'name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n"
        + "\n".join(parts)
        + "\n</html>\n"
    )
    files.write(out / "explain.html", text)


def _card(shown):
    """Returns a picture, itself under its heat map, and where it is."""
    name = html.escape(shown.name)
    if shown.path:
        link = html.escape(pathlib.Path(shown.path).resolve().as_uri())
        name = f'<a href="{link}">{name}</a>'
    caption = html.escape(shown.caption)
    heated = pictures.heated(shown.picture, shown.heat)
    sides = "".join(
        _image(pictures.jpeg(side), "jpeg", caption)
        for side in (shown.picture, heated)
    )
    return (
        f"<figure><div>{sides}</div><figcaption><b>{caption}</b><br>{name}"
        "</figcaption></figure>"
    )


def _image(content, kind, text):
    data = base64.b64encode(content).decode()
    return f'<img alt="{text}" src="data:image/{kind};base64,{data}">'


def most_confused(labels, best, classes):
    """Returns lines for a table of what is taken for what most often."""
    pairs = collections.Counter(
        (a, b) for a, b in zip(labels, best, strict=True) if a != b
    )
    return [
        "".join(
            f"<td>{html.escape(str(cell))}</td>"
            for cell in (classes[label], classes[taken], number)
        )
        for (label, taken), number in pairs.most_common(10)
    ]


def explain(args, test):
    """Predicts, draws and writes the page; returns its title."""
    from common import classifier

    model, transform = load_model(args)
    outputs, classes = classifier.outputs_of(
        test.classes, model.output_shape[-1], transform.checkpoint
    )
    scores, kept = predict(model, test.images, transform, args)
    labels, best = outputs[test.labels[kept]], scores.argmax(-1)
    names = [name_of(test.images[i], i, args.data) for i in kept]
    shown = {
        page: show(
            model,
            [test.images[i] for i in kept[chosen]],
            [names[i] for i in chosen],
            transform,
            [caption(labels[i], scores[i], classes) for i in chosen],
            best[chosen],
            args.batch_size,
        )
        for page, chosen in pages(labels, scores, args.count).items()
    }
    right = (best == labels).mean()
    title = f"{args.model} on {args.data}: {right:.2%} of the test pictures"
    with files.writing(args.out):
        table = predictions(names, labels, scores, classes)
        files.write(args.out / "predictions.csv", table)
        for page, some in shown.items():
            pictures.overlays(
                [
                    (one.picture, one.heat, f"{one.caption}\n{one.name[-44:]}")
                    for one in some
                ],
                CAPTIONS[page],
                args.out / f"{page}.png",
            )
        # Of more classes than the data has, their rows would be empty.
        pictures.confusion(
            test.labels[kept],
            scores[:, outputs].argmax(-1),
            [classes[i] for i in outputs],
            args.out / "confusion.png",
        )
        log = pathlib.Path(args.model).with_name("log.csv")
        (args.out / "training.png").unlink(missing_ok=True)  # of another run
        draw_training(log, args.out / "training.png")
        confused = most_confused(labels, best, classes)
        write_page(args.out, title, shown, confused)
    return title


@console.plain_errors()
def main():
    """Writes the page, and prints where it is."""
    args = parse_arguments()
    console.require_packages("examples", "matplotlib", "sklearn")
    import keras  # help need not wait for it

    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "TensorFlow is required as the backend, for Grad-CAM. Received: "
            f"{keras.backend.backend()}. Set KERAS_BACKEND=tensorflow."
        )
    files.require_writable(args.out)
    data.require_apart(args.data, args.out)
    test = data.load_test(args)
    title = explain(args, test)
    print(title)
    print(f"Page: {args.out / 'explain.html'}")


if __name__ == "__main__":
    main()
