"""Trains a ResNeXt-29 on small images and writes its weights.

    python scripts/train.py --data cifar10.npz --out runs/cifar10

The file holds x_train, y_train, x_test, y_test: uint8 images (count, height,
width, 3) and integer labels. The defaults suit two CPU cores: bfloat16, few
epochs, and most of them on shrunken images, which cost less (progressive
resizing, https://arxiv.org/abs/2104.00298). README has the commands that made
the weights of `ResNeXt29(weights="cifar10")`.

Writes into --out: model.keras after each epoch, and at the end
weights.safetensors (float16), log.csv and result.json.
"""

import argparse
import json
import pathlib
import sys
import time
import zipfile

import keras
import numpy as np

import keras_resnext


def parse_arguments():
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", required=True, help="the .npz file")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--width-per-group", type=int, default=4)
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[20] * 5 + [24] * 5 + [32] * 4,
        help="side of the images in each epoch, pixels",
    )
    parser.add_argument("--weights", help="a file to start from")
    parser.add_argument("--batch-size", type=int, default=128)
    # 0.1 for 128 images is the rate of the paper's CIFAR recipe.
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--warm-up", type=float, default=0.15, help="share")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument("--dtype", default="mixed_bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def load(path):
    """Returns (x_train, y_train), (x_test, y_test) of an .npz file."""
    names = ["x_train", "y_train", "x_test", "y_test"]
    if not zipfile.is_zipfile(path):  # which is what an .npz is
        sys.exit(
            f"--data must be an .npz file. Received: {path}. Check the path, "
            "or write one with numpy.savez."
        )
    with np.load(path) as file:
        missing = set(names) - set(file)
        if missing:
            sys.exit(
                f"--data must hold {names}. Received: {path} without "
                f"{sorted(missing)}. Write them with numpy.savez."
            )
        x_train, y_train, x_test, y_test = (file[name] for name in names)
    return (x_train, y_train.ravel()), (x_test, y_test.ravel())


def training_data(images, labels, size, classes, args, epoch):
    """Returns a tf.data set of augmented, normalised batches.

    Augmentation is the paper's: four more pixels on each side, a random crop
    of the old size, and half of the images mirrored.
    """
    import tensorflow as tf

    side = images.shape[1:3]

    def augment(example, seed):
        image, label = example
        image = tf.pad(image, [[4, 4], [4, 4], [0, 0]], mode="REFLECT")
        image = tf.image.stateless_random_crop(image, (*side, 3), seed)
        return tf.image.stateless_random_flip_left_right(image, seed), label

    def prepare(images, labels):
        if size != side[0]:
            images = tf.image.resize(images, (size, size), antialias=True)
        images = keras_resnext.preprocess_input(tf.cast(images, "float32"))
        return images, tf.one_hot(labels, classes)

    # A seed for every epoch makes each of them the same in every run.
    seed = args.seed + 1000 * epoch
    examples = tf.data.Dataset.from_tensor_slices((images, labels))
    examples = examples.shuffle(len(images), seed=seed)
    seeds = tf.data.Dataset.random(seed).map(lambda s: tf.cast(s, "int32"))
    return (
        tf.data.Dataset.zip(examples, seeds.batch(2))
        .map(augment, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(args.batch_size, drop_remainder=True)
        .map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(2)
    )


def optimizer(args, steps):
    """Returns SGD with Nesterov momentum, warm-up and a cosine to zero."""
    warm_up = int(args.warm_up * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        steps - warm_up,
        warmup_target=args.learning_rate,
        warmup_steps=warm_up,
    )
    sgd = keras.optimizers.SGD(
        schedule, momentum=0.9, nesterov=True, weight_decay=args.weight_decay
    )
    sgd.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return sgd


def main():
    """Trains, measures the test accuracy and writes the results."""
    args = parse_arguments()
    (x_train, y_train), (x_test, y_test) = load(args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    classes = int(y_train.max()) + 1

    keras.mixed_precision.set_global_policy(args.dtype)
    model = keras_resnext.ResNeXt29(
        weights=args.weights,
        input_shape=(None, None, 3),
        classes=classes,
        groups=args.groups,
        width_per_group=args.width_per_group,
        zero_gamma=True,
    )
    model.compile(
        optimizer(args, len(args.sizes) * (len(x_train) // args.batch_size)),
        keras.losses.CategoricalCrossentropy(
            label_smoothing=args.label_smoothing
        ),
        metrics=["accuracy"],
    )
    log = args.out / "log.csv"
    log.unlink(missing_ok=True)  # of an earlier run; each epoch below appends
    callbacks = [
        keras.callbacks.CSVLogger(log, append=True),
        keras.callbacks.ModelCheckpoint(args.out / "model.keras"),
    ]
    start = time.time()
    for epoch, size in enumerate(args.sizes):
        model.fit(
            training_data(x_train, y_train, size, classes, args, epoch),
            initial_epoch=epoch,
            epochs=epoch + 1,
            callbacks=callbacks,
            verbose="auto" if sys.stdout.isatty() else 2,
        )
    minutes = (time.time() - start) / 60

    path = args.out / "weights.safetensors"
    keras_resnext.weights.save(model, path)
    # What is measured is what was written: float16 on disk, float32 here.
    keras.mixed_precision.set_global_policy("float32")
    model = keras_resnext.ResNeXt29(
        weights=path, classes=classes, input_shape=x_test.shape[1:]
    )
    model.compile(metrics=["accuracy"], loss="sparse_categorical_crossentropy")
    x_test = keras_resnext.preprocess_input(x_test)
    _, accuracy = model.evaluate(x_test, y_test, batch_size=250, verbose=0)
    result = {
        "test_accuracy": round(accuracy, 4),
        "minutes": round(minutes, 1),
        "parameters": model.count_params(),
        "options": {k: str(v) for k, v in vars(args).items()},
    }
    (args.out / "result.json").write_text(json.dumps(result, indent=2))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
