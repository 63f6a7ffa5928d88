r"""Shows what a network has learnt, on the pictures it was not trained with.

    python scripts/explain.py resnext29 --data cifar10.npz --out runs/explain
    python scripts/explain.py runs/flowers/model.keras --size 64 \
        --data flowers/ --out runs/flowers/explained

The network is a .keras file that takes what `preprocess_input` returns, as
`train.py` writes it, or resnext29 with the weights that ship. --data is what
train.py takes. Needs TensorFlow, and `pip install ".[examples]"`.

Writes explain.html into --out, a page with all pictures in it, and the same as
PNG files: worst.png and best.png, the predictions with the least and the most
probability for the true class, over which Grad-CAM shows what spoke for the
predicted class; confusion.png; and training.png if train.py's log.csv lies
beside the network.
"""

import argparse
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

import data
import keras
import numpy as np
import pictures
import report
import resume
from tqdm import tqdm

import keras_resnext

CAPTIONS = {
    "worst": "Least probable truths",
    "best": "Most probable truths",
    "confusion": "What is taken for what",
    "training": "Training",
}


def parse_arguments():
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", help="a .keras file, or resnext29")
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir", help="where TFDS data are prepared")
    parser.add_argument("--holdout", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0, help="of the holdout")
    parser.add_argument("--on-corrupt", choices=["skip", "fail"])
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--size", type=int, help="of the pictures, in pixels")
    parser.add_argument("--count", type=int, default=12, help="on a page")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.set_defaults(on_corrupt="skip")
    return parser.parse_args()


def load_model(name, classes):
    """Returns the network and the names of its classes.

    Raises:
        ValueError: If it does not classify into so many classes.
    """
    if name == "resnext29":
        model = keras_resnext.ResNeXt29(input_shape=(None, None, 3))
        names = keras_resnext.decode_predictions(np.zeros((1, 10)), 10)[0]
        names = [name for _, name, _ in names]
    elif name.endswith(".keras"):
        model = keras.models.load_model(name, compile=False)
        names = classes
    else:
        raise ValueError(
            "The network must be a .keras file or resnext29. Received: "
            f"{name}. Check the path."
        )
    outputs = model.output_shape[-1]
    if outputs != len(classes):
        raise ValueError(
            "The data must have as many classes as the network. Received: "
            f"{len(classes)} classes for {outputs} outputs. Pass the data "
            "that the network was trained with."
        )
    return model, names


def make_transform(model, size):
    """Returns what makes an input of a picture, as in train.py's tests."""
    size = size or model.input_shape[1]
    if size is None:
        raise ValueError(
            "--size must be given for a network that takes pictures of any "
            "size. Received: --size=None. Pass the side, in pixels, that it "
            "was trained for."
        )
    row = keras_resnext.eval_transform("resnext50_32x4d").checkpoint
    row = dataclasses.replace(row, resize=size, crop=size)
    return keras_resnext.eval_transform(row)


def activation(model):
    """Returns the activation at the end of a network."""
    return getattr(model.layers[-1], "activation", keras.activations.linear)


def predict(model, images, transform, batch_size):
    """Returns probabilities, `(n, classes)`."""
    if not len(images):
        raise ValueError(
            "There must be pictures to test with. Received: 0 pictures. Add "
            "some, or pass a greater --holdout."
        )
    starts = range(0, len(images), batch_size)
    scores = []
    for i in tqdm(starts, "Predicting", unit=" batches", disable=None):
        batch = [transform(image) for image in images[i : i + batch_size]]
        scores.append(model.predict_on_batch(np.stack(batch)))
    scores = np.concatenate(scores).astype("float32")
    if activation(model) is keras.activations.linear:
        scores = keras.ops.convert_to_numpy(keras.ops.softmax(scores))
    return scores


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
        # What the tape has to watch may be deep inside of the model.
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


def draw_predictions(model, split, transform, scores, names, args):
    """Draws the worst and the best predictions."""
    labels = split.labels
    truth = scores[np.arange(len(labels)), labels]
    order = np.argsort(truth, kind="stable")
    row = transform.checkpoint
    for page, chosen in (("worst", order), ("best", order[::-1])):
        chosen = chosen[: args.count]
        best = scores[chosen].argmax(-1)
        images = np.stack([transform(split.images[i]) for i in chosen])
        heat = grad_cam(model, images, best)
        examples = [
            (
                np.clip(images[k] * row.std + row.mean, 0, 1),
                heat[k],
                f"{names[labels[i]]} {truth[i]:.0%}"
                + (
                    f", taken for {names[best[k]]} {scores[i, best[k]]:.0%}"
                    if best[k] != labels[i]
                    else ""
                ),
            )
            for k, i in enumerate(chosen)
        ]
        path = args.out / f"{page}.png"
        pictures.overlays(examples, CAPTIONS[page], path)


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
    resume.write(out / "explain.html", text)


def main():
    """Predicts, draws and writes the page."""
    args = parse_arguments()
    try:
        _, test = data.load(
            args.data, args.data_dir, args.holdout, args.seed, args.on_corrupt
        )
        model, names = load_model(args.model, test.classes)
        transform = make_transform(model, args.size)
        scores = predict(model, test.images, transform, args.batch_size)
        args.out.mkdir(parents=True, exist_ok=True)
        draw_predictions(model, test, transform, scores, names, args)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(str(error))
    best = scores.argmax(-1)
    pictures.confusion(test.labels, best, names, args.out / "confusion.png")
    log = pathlib.Path(args.model).with_name("log.csv")
    (args.out / "training.png").unlink(missing_ok=True)  # of another run
    draw_training(log, args.out / "training.png")
    right = (best == test.labels).mean()
    title = f"{args.model} on {args.data}: {right:.2%} of the test pictures"
    write_page(args.out, title)
    print(title)
    print(f"Page: {args.out / 'explain.html'}")


if __name__ == "__main__":
    main()
