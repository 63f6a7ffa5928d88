"""Shows the library's main job on real pictures, in about a minute.

    python scripts/quickstart.py

Classifies pictures with the weights that ship with the package, trains a
new head on the frozen network to read handwritten digits, exports that as a
SavedModel, loads it in another process, which knows nothing of this package,
and compares. Writes runs/quickstart/quickstart.png and .../digits/. The
pictures come with scikit-image and scikit-learn; no internet access is needed.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
__keras_later__ = True  # once Ctrl-C is looked after

from keras_resnext.commands import console  # first: for Ctrl-C and oneDNN

# isort: split
import numpy as np

import keras_resnext
from common import pictures
from keras_resnext import processor

OUT = pathlib.Path("runs/quickstart")
# Loads the export as a stranger would: with TensorFlow alone.
STRANGER = """
import sys, numpy, tensorflow
served = tensorflow.saved_model.load(sys.argv[1])
images = numpy.load(sys.argv[2])
run = served.signatures["serving_default"]
outputs = run(tensorflow.constant(images))["outputs"]
numpy.save(sys.argv[3], outputs.numpy())
assert "keras_resnext" not in set(sys.modules)
"""


def classify():
    """Returns pictures and the network's three best guesses for each."""
    from skimage import data

    examples = {
        "cat": data.chelsea(),
        "horse": np.where(data.horse(), 255, 0).astype("uint8"),
        # Of none of its ten classes. It names one all the same, and its
        # greatest score is no sign of that.
        "rocket (none of its classes)": data.rocket(),
    }
    model = keras_resnext.ResNeXt29(weights="cifar10")
    transform = keras_resnext.eval_transform("resnext29/cifar10")
    scores = model.predict(transform(list(examples.values())), verbose=0)
    return examples, keras_resnext.decode_predictions(scores, top=3)


def load_digits():
    """Returns 400 handwritten digits as (count, 32, 32, 3), 0..255."""
    import keras
    from sklearn import datasets

    digits = datasets.load_digits()
    images = digits.images[:400, ..., None].repeat(3, -1) / 16 * 255
    images = keras.ops.image.resize(images, (32, 32))
    images = keras.ops.convert_to_numpy(images).astype("float32")
    return images, digits.target[:400]


def fine_tune(images, labels):
    """Trains a head on the frozen network.

    Returns:
        The model, what `fit` says of each epoch, and the digits to test with
        and their labels.
    """
    import keras
    from sklearn.model_selection import train_test_split

    base = keras_resnext.ResNeXt29(include_top=False, pooling="avg")
    base.trainable = False
    x = keras_resnext.preprocess_input(images)
    # The network is frozen: what it says of a digit is the same in each epoch.
    features = base.predict(x, batch_size=100, verbose=0)
    train, test, y_train, y_test, _, x_test = train_test_split(
        *(features, labels, x), test_size=0.25, stratify=labels, random_state=0
    )
    head = keras.Sequential(
        [
            keras.Input(base.output_shape[1:]),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    head.compile(
        keras.optimizers.Adam(3e-2),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    history = head.fit(
        *(train, y_train),
        validation_data=(test, y_test),
        epochs=20,
        verbose=0,
    )
    model = keras.Sequential([base, *head.layers], name="digits")
    return model, history.history, x_test, y_test


def serve(model, images, answer):
    """Exports; returns the largest difference of another process's answer."""
    from keras_resnext.export import export

    shutil.rmtree(OUT / "digits", ignore_errors=True)  # of an earlier run
    export(
        model,
        OUT / "digits",
        checkpoint="resnext29/cifar10",
        labels=list("0123456789"),
    )
    np.save(OUT / "images.npy", images)
    files = [OUT / "digits" / "1", OUT / "images.npy", OUT / "answer.npy"]
    subprocess.run([sys.executable, "-c", STRANGER, *files], check=True)
    difference = np.abs(np.load(files[2]) - answer).max()
    files[1].unlink(), files[2].unlink()
    return difference


def draw(examples, guesses, history, images, labels, answer):
    """Draws pictures, guesses, the training and some digits read."""
    plt = pictures.pyplot()
    figure = plt.figure(figsize=(12, 7), layout="constrained")
    top, bottom = figure.subfigures(2, height_ratios=[3, 2])
    top.suptitle("Pictures, by ResNeXt29(weights='cifar10')")
    axes = top.subplots(2, len(examples), height_ratios=[3, 1])
    for column, (title, image), guess in zip(
        axes.T, examples.items(), guesses, strict=True
    ):
        column[0].set_title(title)
        column[0].imshow(image, cmap="gray")
        column[0].axis("off")
        column[0].set_anchor("N")  # the titles in one line
        _, names, scores = zip(*guess[::-1], strict=True)
        column[1].barh(names, scores)
        column[1].set_xlim(0, 1)
    bottom.suptitle("Digits, by a new head on the same network, frozen")
    left, right = bottom.subfigures(1, 2, width_ratios=[1, 2])
    plot = left.subplots()
    for name, part in (("accuracy", "training"), ("val_accuracy", "test")):
        epochs = range(1, 1 + len(history[name]))
        plot.plot(epochs, history[name], label=part)
    plot.set(xlabel="epoch", ylabel="accuracy")
    plot.legend()
    for axis, image, digit, label in zip(
        right.subplots(2, 6).ravel(),
        images[..., 0],
        answer.argmax(-1),
        labels,
        strict=False,
    ):
        axis.imshow(image, cmap="gray")
        axis.set_title(f"read as {digit}")
        axis.set_xlabel(f"is {label}", color="k" if digit == label else "r")
        axis.set(xticks=[], yticks=[])
    pictures.save(figure, OUT / "quickstart.png")


def cpu_seconds():
    """Returns what this process and those that it has run have computed."""
    return sum(os.times()[:4])


@console.plain_errors()
def main():
    """Runs the four parts and prints a table."""
    console.Parser(description=__doc__).parse_args()
    console.require_packages("tensorflow", "tensorflow")  # for the export
    console.require_packages("examples", "skimage", "sklearn", "matplotlib")
    import keras  # help need not wait for it

    start = time.time()
    OUT.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    examples, guesses = classify()
    model, history, x_test, y_test = fine_tune(*load_digits())
    answer = model.predict(x_test[:32], verbose=0)
    difference = serve(model, x_test[:32], answer)
    draw(examples, guesses, history, x_test, y_test, answer)

    print(f"\n{'picture':30}best guesses")
    for name, guess in zip(examples, guesses, strict=True):
        text = ", ".join(f"{label} {score:.0%}" for _, label, score in guess)
        print(f"{name:30}{text}")
    print(f"{'digits':30}{history['val_accuracy'][-1]:.1%} of the test set")
    print(f"{'SavedModel':30}differs by {difference:.1g} in another process")
    print(
        f"{'time':30}{time.time() - start:.0f} s after the imports, "
        f"{cpu_seconds():.0f} s of computing "
        f"({os.cpu_count()} processors, {processor.name()})"
    )
    print(f"\nPicture: {OUT / 'quickstart.png'}")
    if guesses[0][0][1] != "cat":
        sys.exit("The cat must come out a cat.")


if __name__ == "__main__":
    main()
