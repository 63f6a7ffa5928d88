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

Writes explain.html into --out, a page with all pictures in it, and the same as
PNG files: worst.png and best.png, the predictions with the least and the most
probability for the true class, over which Grad-CAM shows what spoke for the
predicted class; confusion.png; and training.png if train.py's log.csv lies
beside the network.
"""

import base64
import contextlib
import csv
import dataclasses
import html
import os
import pathlib
import re
import sys
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import evaluate
import keras_resnext
from common import data, files, pictures
from keras_resnext.commands import arguments, console, networks
from training import report

CAPTIONS = {
    "worst": "Least probable truths",
    "best": "Most probable truths",
    "confusion": "What is taken for what",
    "training": "Training",
}


def parse_arguments():
    """Returns the command line's options."""
    parser = console.Parser(description=__doc__)
    add = parser.add_argument
    arguments.add_network(parser)
    data.add_arguments(parser)
    add("--out", required=True, type=pathlib.Path, help="folder to write to")
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
    model, row = networks.load(args, args.size, args.size)
    networks.require_classifier(model, row)
    if row is None:
        size = args.size or model.input_shape[1]
        if size is None:
            raise ValueError(
                "--size must be given for a network that takes pictures of "
                "any size. Received: --size=None. Pass the side, in pixels, "
                "that it was trained for, or --checkpoint."
            )
        row = dataclasses.replace(networks.USUAL, resize=size, crop=size)
    return model, keras_resnext.eval_transform(row)


def activation(model):
    """Returns the activation at the end of a network."""
    return getattr(model.layers[-1], "activation", keras.activations.linear)


def predict(model, images, transform, args):
    """Returns probabilities, `(n, classes)`, and the pictures' indices."""
    scores, kept = networks.predict(
        model, images, transform, args.batch_size, args.on_corrupt
    )
    if activation(model) is keras.activations.linear:
        scores = keras.ops.convert_to_numpy(keras.ops.softmax(scores))
    return scores, kept


def last_features(model):
    """Returns the layer of the last feature maps, of a model inside, too."""
    found = None
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            layer = last_features(layer)
        if layer and re.fullmatch(r"conv\d+_block\d+_out", layer.name):
            found = layer
    return found


def grad_cam(model, images, classes):
    """Computes which places in the pictures speak for a class.

    Channels of the last feature maps are added up, weighted with the mean
    gradient of the class's score before the softmax; what speaks against it
    is left out.

    Args:
        model: Network made by this package, or one that has it inside.
        images: Normalised pictures, `(n, height, width, 3)`.
        classes: A class for each, integers `(n,)`.

    Returns:
        Heat maps in 0..1, `(n, rows, columns)`.

    Raises:
        ValueError: If the network has no such feature maps.

    Source: Selvaraju et al., https://arxiv.org/abs/1610.02391.
    """
    import tensorflow as tf

    layer = last_features(model)
    if layer is None:
        raise ValueError(
            "The network must have feature maps as conv4_block3_out. "
            f"Received: {model.name} without any. Pass a network made by "
            "this package."
        )
    call, maps = layer.call, []

    def watched(x):
        maps.append(call(x))
        tape.watch(maps[0])
        return maps[0]

    with contextlib.ExitStack() as stack:
        tape = tf.GradientTape(watch_accessed_variables=False)
        stack.enter_context(tape)
        # A network that is one layer of the model has its maps in another
        # graph: no `keras.Model` leads from the model's inputs to them.
        stack.enter_context(mock.patch.object(layer, "call", watched))
        linear = keras.activations.linear
        if activation(model) is not linear:
            stack.enter_context(
                mock.patch.object(model.layers[-1], "activation", linear)
            )
        scores = model(images, training=False)
        chosen = tf.gather(scores, classes, batch_dims=1)
    weights = tf.reduce_mean(tape.gradient(chosen, maps[0]), (1, 2), True)
    heat = tf.reduce_sum(weights * maps[0], -1)
    heat = tf.cast(tf.nn.relu(heat), "float32").numpy()
    most = heat.max((1, 2), keepdims=True)
    return heat / np.maximum(most, np.finfo("float32").tiny)


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


def draw_predictions(model, images, transform, captions, best, path):
    """Draws predictions, each with what speaks for the predicted class.

    Args:
        model: The network.
        images: Pictures, as those of a `data.Split`.
        transform: What makes an input of a picture.
        captions: A text for each.
        best: The predicted classes, integers `(n,)`.
        path: PNG file to write, named after its page.
    """
    images = np.stack([transform(image) for image in images])
    row = transform.checkpoint
    shown = np.clip(images * row.std + row.mean, 0, 1)
    heat = grad_cam(model, images, best)
    examples = list(zip(shown, heat, captions, strict=True))
    pictures.overlays(examples, CAPTIONS[path.stem], path)


def draw_training(log, path):
    """Draws the curves of a log, if there is one in train.py's form."""
    if not log.is_file():
        return
    with open(log, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        rows = [{k: float(v) for k, v in row.items()} for row in rows]
        report.draw(path, rows, str(log))
    except (KeyError, TypeError, ValueError) as error:
        print(f"No curves: {log} is not train.py's ({error}).", file=sys.stderr)


def write_page(out, title):
    """Writes explain.html with all pictures in it."""
    parts = []
    for name, caption in CAPTIONS.items():
        path = out / f"{name}.png"
        if path.exists():
            png = base64.b64encode(path.read_bytes()).decode()
            parts.append(
                f"<h2>{caption}</h2>\n"
                f'<img alt="{caption}" src="data:image/png;base64,{png}">'
            )
    title, body = html.escape(title), "\n".join(parts)
    text = (
        f'<!doctype html>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        "<style>body {font-family: sans-serif; margin: 2em} "
        "img {max-width: 100%}</style>\n"
        f"<h1>{title}</h1>\n{body}\n"
    )
    files.write(out / "explain.html", text)


def explain(args, test):
    """Predicts, draws and writes the page; returns its title."""
    model, transform = load_model(args)
    outputs = evaluate.outputs_of(test.classes, model.output_shape[-1])
    names = networks.names_of(args, test.classes, model.output_shape[-1])
    scores, kept = predict(model, test.images, transform, args)
    labels, best = outputs[test.labels[kept]], scores.argmax(-1)
    with files.writing(args.out):
        for page, chosen in pages(labels, scores, args.count).items():
            draw_predictions(
                model,
                [test.images[i] for i in kept[chosen]],
                transform,
                [caption(labels[i], scores[i], names) for i in chosen],
                best[chosen],
                args.out / f"{page}.png",
            )
        # Of more classes than the data has, their rows would be empty.
        pictures.confusion(
            test.labels[kept],
            scores[:, outputs].argmax(-1),
            [names[i] for i in outputs],
            args.out / "confusion.png",
        )
        log = pathlib.Path(args.model).with_name("log.csv")
        (args.out / "training.png").unlink(missing_ok=True)  # of another run
        draw_training(log, args.out / "training.png")
        right = (best == labels).mean()
        title = f"{args.model} on {args.data}: {right:.2%} of the test pictures"
        write_page(args.out, title)
    return title


@console.plain_errors()
def main():
    """Writes the page, and prints where it is."""
    args = parse_arguments()
    _, test = data.load(
        args.data, args.data_dir, args.holdout, args.seed, args.on_corrupt
    )
    title = explain(args, test)
    print(title)
    print(f"Page: {args.out / 'explain.html'}")


if __name__ == "__main__":
    main()
