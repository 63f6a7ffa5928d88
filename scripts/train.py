r"""Trains a network, or fine-tunes one, and writes its weights.

    python scripts/train.py --data cifar10.npz --out runs/cifar10
    python scripts/train.py --data tfds:cifar10 --recipe paper_cifar \
        --groups 8 --width-per-group 64 --out runs/paper
    python scripts/train.py --data flowers/ --recipe finetune --sizes 32 \
        --weights cifar10 --out runs/flowers

--data is an .npz file, a folder of class folders, or a TensorFlow dataset;
common/data.py describes them. --recipe is one of training/recipes.py, and each
of its fields is an option here as well.

Killed at any moment and started again with the same options, a training goes
on from its last state and ends with the weights it would have had. Ctrl-C
first ends the step and writes the state.

Writes into --out: state.npz; after each epoch log.csv and tensorboard/ (to look
at with `tensorboard --logdir OUT/tensorboard`); with each test model.keras; and
at the end weights.safetensors (float16), training.png and result.json.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import tempfile
import types

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
__keras_later__ = True  # once Ctrl-C is looked after

from keras_resnext.commands import console  # first: for Ctrl-C and oneDNN

# isort: split
import keras

import keras_resnext
from common import data, files, versions
from keras_resnext import processor
from training import (
    batches,
    board,
    distribute,
    models,
    phases,
    recipes,
    report,
    resume,
)

# Greatest share of a moving average that its first weights may be at the end.
_LEFT = 0.01


def parse_arguments():
    """Returns the command line's options, and the recipe they describe."""
    # cardinality.py, which hands options on, knows them by their whole names.
    parser = console.Parser(description=__doc__, allow_abbrev=False)
    data.add_arguments(parser)
    _add_options(parser)
    _add_fields(
        parser.add_argument_group(
            "fields of the recipe, which replace the recipe's own"
        )
    )
    args = parser.parse_args()
    fields = {f.name for f in dataclasses.fields(recipes.Recipe)[1:]}
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(args).items()
        if name in fields and value is not None
    }
    if len(given.get("sizes", ())) > 1:  # one for each epoch
        given.setdefault("epochs", len(given["sizes"]))
    recipe = dataclasses.replace(recipes.RECIPES[args.recipe], **given)
    _check_fields(parser, given, recipe)
    if given.get("zero_gamma") and args.weights:
        parser.error(
            "--zero-gamma is for blocks of random numbers. Received: "
            f"--zero-gamma with --weights {args.weights}, which has numbers "
            "for all of them. Pass one of both."
        )
    if recipe.freeze and not args.weights:
        parser.error(
            "What is frozen must have been trained before. Received: --freeze "
            f"{recipe.freeze} without --weights, as of --recipe {args.recipe}. "
            "Pass a tag or a file, such as --weights imagenet."
        )
    return args, recipe


def _check_fields(parser, given, recipe):
    """Ends the process if a field that was given cannot do what it says."""
    for name in given.keys() & recipes.GO_WITH:
        other, wanted = recipes.GO_WITH[name]
        found = getattr(recipe, other)
        if found != wanted if wanted else not found:
            wanted = f"{_option(other)} {wanted or ''}".strip()
            parser.error(
                f"{_option(name)} has an effect only with {wanted}. Received: "
                f"{_option(name)} without it. Pass both or neither."
            )
    milestones = given.get("milestones", ())
    if list(milestones) != sorted(set(milestones)):
        parser.error(
            "--milestones must be in rising order. Received: "
            f"{' '.join(map(str, milestones))}. Sort them."
        )
    sizes = given.get("sizes", ())
    # What is unfrozen is trained at the last size.
    if len(sizes) > recipe.epochs + bool(recipe.unfreeze_epochs):
        parser.error(
            "--sizes must have one number for each epoch, or fewer. Received: "
            f"{len(sizes)} of them with --epochs {recipe.epochs}. Leave out "
            "the last ones, or --epochs."
        )


def _add_options(parser):
    """Adds the options that no recipe has."""
    add = parser.add_argument
    add("--out", required=True, type=console.path, help="folder to write to")
    add(
        "--model",
        type=console.architecture,
        default="resnext29",
        metavar="NAME",
        help="architecture, as `python -m keras_resnext list` names it",
    )
    usual = {"--groups": 32, "--width-per-group": 4, "--planes": 64}
    for name, number in usual.items():
        add(
            name,
            type=console.POSITIVE,
            help="of resnext29, as its constructor has it (default: that of "
            f"--weights, or {number})",
        )
    add(
        "--weights",
        help="a tag or a file to start from (default: random numbers)",
    )
    add(
        "--accept-noncommercial",
        action="store_true",
        help="take weights whose licence forbids commercial use",
    )
    add(
        "--recipe",
        choices=list(recipes.RECIPES),
        default="quick",
        help="how to train",
    )
    add(
        "--dtype",
        help="type of the numbers to compute with, a Keras policy (default: "
        "mixed_bfloat16 where the machine itself computes in bfloat16, else "
        "float32)",
    )
    add(
        "--save-every",
        type=console.POSITIVE,
        default=500,
        help="steps between two states on disk",
    )
    add(
        "--test-every",
        type=console.POSITIVE,
        default=1,
        help="epochs between two tests; the last one ends with one. On a GPU "
        "a test of small pictures can take half as long as an epoch",
    )
    add(
        "--strategy",
        choices=distribute.STRATEGIES,
        default="none",
        help="all devices of this machine, or of TF_CONFIG's machines",
    )
    add(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the same weights in each run, which costs time on a GPU",
    )


def _add_fields(group):
    """Adds an option for each field of a recipe."""
    meaning = recipes.descriptions()
    for field in dataclasses.fields(recipes.Recipe)[1:]:
        group.add_argument(
            _option(field.name),
            help=f"{meaning[field.name]}\n(default: the recipe's)".replace(
                "%", "%%"
            ),
            **_kind(field),
        )


def _option(name):
    """Returns the option of a recipe's field."""
    return f"--{name.replace('_', '-')}"


def _kind(field):
    """Returns what argparse has to know of a recipe's field."""
    if field.type is bool:
        return {"action": argparse.BooleanOptionalAction, "default": None}
    if field.name in recipes.CHOICES:
        return {"choices": recipes.CHOICES[field.name]}
    kind = {"type": recipes.NUMBERS.get(field.name, str)}
    several = isinstance(field.type, types.GenericAlias)  # a tuple
    return kind | ({"nargs": "+"} if several else {})


def configure(args):
    """Sets what holds for the whole process."""
    if args.deterministic:
        _make_deterministic(keras.backend.backend())
    keras.utils.set_random_seed(args.seed)
    # What ~/.keras/keras.json may say otherwise: pictures come like this.
    keras.config.set_image_data_format("channels_last")
    if args.dtype is None:
        args.dtype, reason = choose_dtype()
        print(f"Computes in {args.dtype}: {reason}.")
    keras.mixed_precision.set_global_policy(args.dtype)


def choose_dtype():
    """Returns the policy that is the fastest here, and why."""
    if distribute.has_gpu():
        return "mixed_bfloat16", "a GPU computes in bfloat16"
    kind = processor.instruction_set()
    if processor.computes_bfloat16():
        return "mixed_bfloat16", f"this processor does, {kind}"
    return "float32", f"bfloat16 would be emulated here ({kind})"


def _make_deterministic(backend):
    """Takes the algorithms that give the same result in each run."""
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif backend == "jax":
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true"
    elif backend == "torch":
        import torch

        # What cuBLAS needs for it, before its first call.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def describe(args, recipe, train, test):
    """Returns all that the result of a training depends on."""
    options = {
        name: value
        for name, value in vars(args).items()
        if name not in ("out", "save_every", "test_every", "data_dir")
    }
    options |= dataclasses.asdict(recipe)
    options["pictures"] = [len(train.labels), len(test.labels)]
    options[resume.DIGEST] = data.digest(train, test)
    options["backend"] = keras.backend.backend()
    return json.loads(json.dumps(options))  # tuples turn into lists


def load(args, recipe, strategy):
    """Returns what to train with and what to test with, as `data.Split`."""
    train, test = data.load(
        *(args.data, args.data_dir, args.holdout, args.seed),
        args.on_corrupt,
    )
    data.require_trainable(train, test)
    _require_steps(args, recipe, len(train.labels), strategy.replicas)
    return train, test


def _require_steps(args, recipe, pictures, replicas):
    """Checks that a recipe goes with so many pictures and devices."""
    if pictures < recipe.batch_size:
        raise ValueError(
            "A batch must not have more pictures than there are to train "
            f"with. Received: --batch-size {recipe.batch_size} with "
            f"{pictures} pictures. Make it smaller."
        )
    epochs = min(filter(None, (recipe.epochs, recipe.unfreeze_epochs)))
    steps = epochs * (pictures // recipe.batch_size)
    if recipe.accumulate > steps:
        raise ValueError(
            "A training, and each phase of it, must have at least one update. "
            f"Received: --accumulate {recipe.accumulate} with {steps} steps in "
            "all. Make it smaller."
        )
    left = recipe.ema**steps
    if left > _LEFT and args.weights is None:  # which are worth averaging
        most = math.floor(1e4 * _LEFT ** (1 / steps)) / 1e4
        raise ValueError(
            "The moving average must have left the weights behind that it "
            f"begins with. Received: --ema {recipe.ema:.7g} with {steps} steps "
            f"in a phase, after which {left:.0%} of it are still these. Pass "
            f"--ema {most}, or less, or 0 for none."
        )
    if recipe.repeats > recipe.batch_size:
        raise ValueError(
            "A batch must hold all copies of a picture. Received: --repeats "
            f"{recipe.repeats} with --batch-size {recipe.batch_size}. Make "
            "the first smaller."
        )
    if recipe.batch_size % replicas:
        raise ValueError(
            "Each device must get as many pictures of a batch. Received: "
            f"--batch-size {recipe.batch_size} for {replicas} devices. Pass a "
            "multiple of their number."
        )


def train_all(args, recipe, network, parts, run, strategy):
    """Trains in all phases, from where the run stands."""
    curves = board.Board(args.out / "tensorboard", run, network)
    steps = len(parts[0].labels) // recipe.batch_size
    epochs = recipe.epochs + recipe.unfreeze_epochs
    done = run.epoch * steps + run.step
    progress = report.Progress(epochs * steps, done, recipe.batch_size)
    for number, phase in phases.make(recipe, network, parts, run, strategy):
        if number > run.phase:  # its variables are others
            run.phase, run.arrays = number, None
        phases.learn(phase, run, args, strategy, progress, curves)
        if phase.features:
            print(report.describe_features(phase.features, run.rows))
    progress.bar.close()


def finish(args, recipe, network, test):
    """Writes the weights; returns the accuracy of what was written."""
    path = args.out / "weights.safetensors"
    keras_resnext.weights.save(network, path)
    models.save(network, recipe, args.out / "model.keras")
    # float16 on disk, float32 here.
    keras.mixed_precision.set_global_policy("float32")
    args = argparse.Namespace(**(vars(args) | {"weights": path}))
    recipe = dataclasses.replace(recipe, new_top=False)
    network = models.build(args, recipe, len(test.classes))
    models.compile_model(network, recipe, 1)
    tests = batches.Unchanged(test, recipe)
    return network.evaluate(tests, return_dict=True, verbose=0)["accuracy"]


def write_result(args, run, network, classes, accuracy):
    """Writes and prints what came of the training."""
    options = run.options
    epochs = options["epochs"] + options["unfreeze_epochs"]
    size = options["batch_size"]
    pictures = epochs * (options["pictures"][0] // size) * size
    result = {
        "test_accuracy": round(accuracy, 4),
        "minutes": round(run.seconds / 60, 2),
        "images_per_second": round(pictures / run.seconds, 1),
        "idle": round(run.waited / run.seconds, 4),
        "parameters": network.count_params(),
        "classes": classes,
        "options": options,
        "versions": versions.loaded(),
    }
    files.write(args.out / "result.json", json.dumps(result, indent=2))
    title = f"{args.model}: {accuracy:.2%} of the test pictures"
    report.draw(args.out / "training.png", run.rows, title)
    print(json.dumps(result, indent=2))
    print(f"Waiting for data: {result['idle']:.1%} of the time in training")


@console.plain_errors()
def main():
    """Trains, measures the test accuracy and writes the results."""
    args, recipe = parse_arguments()
    console.require_packages("train", "tensorboard", "matplotlib")
    files.require_writable(args.out)
    configure(args)
    strategy = distribute.choose(args.strategy)
    train, test = load(args, recipe, strategy)
    run = resume.Run(args.out, describe(args, recipe, train, test))
    with strategy.scope():
        network = models.build(args, recipe, len(train.classes))
        # What is wrong with these shows before anything is written.
        models.freeze(network, recipe.freeze)
        steps = len(train.labels) // recipe.batch_size
        for epochs in filter(None, (recipe.epochs, recipe.unfreeze_epochs)):
            models.make_optimizer(recipe, epochs * steps)
    if strategy.worker:  # All read the state above, and the chief writes.
        scratch = tempfile.TemporaryDirectory()
        args.out = pathlib.Path(scratch.name)
        run.path = args.out / run.path.name
    with files.writing(args.out), files.locked(args.out):
        train_all(args, recipe, network, (train, test), run, strategy)
        accuracy = finish(args, recipe, network, test)
        write_result(args, run, network, train.classes, accuracy)
        if not strategy.worker:
            run.features.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
