"""Trains a network from a command line's options to its files."""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import tempfile

import keras

import keras_resnext
from common import data, files
from keras_resnext import processor
from training import (
    batches,
    board,
    distribute,
    models,
    phases,
    report,
    resume,
)

# Greatest share of a moving average that its first weights may be at the end.
_LEFT = 0.01


def run(args, recipe):
    """Trains, measures the test accuracy and writes the results.

    Args:
        args: What `scripts/train.py` has read.
        recipe: A `recipes.Recipe`.
    """
    configure(args)
    strategy = distribute.choose(args.strategy, recipe.accumulate)
    train, test = load(args, recipe, strategy)
    state = resume.Run(args.out, describe(args, recipe, train, test))
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
        state.path = args.out / state.path.name
    with files.writing(args.out), files.locked(args.out):
        train_all(args, recipe, network, (train, test), state, strategy)
        accuracy = finish(args, recipe, network, test)
        show_result(args, state, network, train.classes, accuracy)
        if not strategy.worker:
            state.features.unlink(missing_ok=True)


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
    options[resume.PICTURES] = data.digest(train, test)
    if args.weights:
        options[resume.WEIGHTS] = models.digest(args)
    options["backend"] = keras.backend.backend()
    return json.loads(json.dumps(options))  # tuples turn into lists


def load(args, recipe, strategy):
    """Returns what to train with and what to test with, as `data.Split`."""
    train, test = data.load(
        *(args.data, args.data_dir, args.holdout, args.seed),
        args.on_corrupt,
    )
    data.require_trainable(train, test)
    print(report.describe_data(train, test))
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


def show_result(args, run, network, classes, accuracy):
    """Writes, draws and prints what came of the training."""
    title = f"{args.model}: {accuracy:.2%} of the test pictures"
    report.draw(args.out / "training.png", run.rows, title)
    path = args.out / "result.json"
    result = report.write_result(path, run, network, classes, accuracy, True)
    print(json.dumps(result, indent=2))
    print(f"Waiting for data: {result['idle']:.1%} of the time in training")
