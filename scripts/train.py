r"""Trains a network, or fine-tunes one, and writes its weights.

    python scripts/train.py --data cifar10.npz --out runs/cifar10
    python scripts/train.py --data tfds:cifar10 --recipe paper_cifar \
        --groups 8 --width-per-group 64 --out runs/paper
    python scripts/train.py --data flowers/ --recipe finetune --sizes 32 \
        --weights cifar10 --out runs/flowers

--data is an .npz file, a folder of class folders, or a TensorFlow dataset;
scripts/data.py describes them. --recipe is one of scripts/recipes.py, which
also describes its fields, and each field is an option here as well.

Killed at any moment and started again with the same options, a training goes
on from its last state and ends with the weights it would have had.

Writes into --out: model.keras and log.csv after each epoch, tensorboard/, and
at the end weights.safetensors (float16), training.png and result.json.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import re
import sys
import tempfile
import time
import types

import keras
from keras import ops

import keras_resnext
from common import data, files
from keras_resnext import transfer
from keras_resnext.commands import console
from keras_resnext.registry import ARCHITECTURES
from training import batches, distribute, recipes, report, resume

_MOMENTUM = 0.9


def parse_arguments():
    """Returns the command line's options, and the recipe they describe."""
    parser = console.Parser(description=__doc__)
    add = parser.add_argument
    data.add_arguments(parser)
    add("--out", required=True, type=pathlib.Path, help="folder to write to")
    add(
        "--model",
        choices=list(ARCHITECTURES),
        default="resnext29",
        metavar="NAME",
        help="architecture, as `python -m keras_resnext list` names it",
    )
    for name in ("--groups", "--width-per-group"):
        add(
            name,
            type=console.POSITIVE,
            help="of resnext29 (default: the paper's)",
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
        default="mixed_bfloat16",
        help="type of the numbers to compute with, a Keras policy",
    )
    add(
        "--save-every",
        type=console.POSITIVE,
        default=500,
        help="steps between two states on disk",
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
    group = parser.add_argument_group(
        "fields of the recipe, which replace the recipe's own"
    )
    meaning = recipes.descriptions()
    for field in dataclasses.fields(recipes.Recipe)[1:]:
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            help=f"{meaning[field.name]}\n(default: the recipe's)".replace(
                "%", "%%"
            ),
            **_kind(field),
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
    return args, recipe


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
    keras.mixed_precision.set_global_policy(args.dtype)


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


def build(args, recipe, classes):
    """Returns the network, which ends in logits."""
    options = {
        "input_shape": (None, None, 3),
        "weights": args.weights,
        "accept_noncommercial": args.accept_noncommercial,
    }
    if args.model == "resnext29":
        options["groups"] = args.groups
        options["width_per_group"] = args.width_per_group
    elif args.groups or args.width_per_group:
        raise ValueError(
            "--groups and --width-per-group belong to resnext29. Received: "
            f"--model {args.model}. Leave them out."
        )
    options["stochastic_depth"] = recipe.stochastic_depth
    options["zero_gamma"] = recipe.zero_gamma
    construct = getattr(keras_resnext, ARCHITECTURES[args.model].constructor)
    if recipe.new_top:
        base = construct(include_top=False, pooling="avg", **options)
        model = transfer.replace_top(base, classes, recipe.dropout, None)
    else:
        try:
            model = construct(
                classes=classes, classifier_activation=None, **options
            )
        except ValueError as error:
            other = re.search(
                r"(?:`classes` must be |predictions/bias: \()(\d+)", str(error)
            )
            if not other:
                raise
            raise ValueError(
                f"--weights must have the {classes} classes of the data, or "
                f"get a new classifier. Received: {args.weights} with "
                f"{other[1]}. Pass --new-top, or --recipe finetune."
            ) from error
    return model


def freeze(model, stage):
    """Freezes all stages up to one; `"backbone"` stands for the last."""
    if stage == "backbone":
        stages = [layer.name.partition("_")[0] for layer in model.layers]
        stage = max(name for name in stages if name.startswith("conv"))
    if stage:
        transfer.freeze(model, stage)
    else:
        transfer.unfreeze(model)


def make_optimizer(recipe, steps):
    """Returns the recipe's optimizer with its schedule.

    Args:
        recipe: A `recipes.Recipe`.
        steps: Number of steps in the whole training.
    """
    warm_up = round(recipe.warm_up * steps)
    if recipe.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(
            0.0 if warm_up else recipe.learning_rate,
            steps - warm_up,
            warmup_target=recipe.learning_rate if warm_up else None,
            warmup_steps=warm_up,
        )
    elif warm_up:
        raise ValueError(
            "A warm-up goes with --schedule cosine. Received: --warm-up "
            f"{recipe.warm_up} with steps. Leave it out."
        )
    else:
        rate = keras.optimizers.schedules.PiecewiseConstantDecay(
            [round(share * steps) for share in recipe.milestones],
            [
                recipe.learning_rate / 10**i
                for i in range(1 + len(recipe.milestones))
            ],
        )
    options = {
        "weight_decay": recipe.weight_decay or None,
        "use_ema": bool(recipe.ema),
        "ema_momentum": recipe.ema,
        "gradient_accumulation_steps": (
            recipe.accumulate if recipe.accumulate > 1 else None
        ),
    }
    if recipe.optimizer == "lamb":
        # The norm is timm's, which trained by these recipes.
        optimizer = keras.optimizers.Lamb(rate, global_clipnorm=1, **options)
    else:
        if recipe.weight_decay:
            # Papers decay through the momentum, where the decay of one step
            # adds up to this over the next ones; Keras decays beside it.
            options["weight_decay"] /= 1 - _MOMENTUM
        optimizer = keras.optimizers.SGD(
            rate, momentum=_MOMENTUM, nesterov=recipe.nesterov, **options
        )
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return optimizer


def compile_model(model, recipe, steps):
    """Compiles a network; returns all variables that training changes."""
    loss = keras.losses.CategoricalCrossentropy
    if recipe.loss == "sigmoid":
        loss = keras.losses.BinaryCrossentropy
    accuracy = keras.metrics.CategoricalAccuracy(name="accuracy")
    model.compile(
        make_optimizer(recipe, steps),
        loss(from_logits=True, label_smoothing=recipe.label_smoothing),
        metrics=[accuracy],
    )
    model.optimizer.build(model.trainable_variables)
    return [
        *model.variables,
        *model.optimizer.variables,
        *model.metrics[0].variables,  # the mean of the loss
        *accuracy.variables,
    ]


@dataclasses.dataclass
class Phase:
    """Part of a training, with a network and splits of its own.

    Attributes:
        recipe: Its `recipes.Recipe`.
        first: Number of the epoch it begins with.
        network: The whole network.
        model: What is trained: the network, or the layers behind features
            that are computed once.
        train: `data.Split` of pictures, or of features, to train with.
        test: The same to test with.
        features: Seconds that the features to train with took, or `None`.
    """

    recipe: recipes.Recipe
    first: int
    network: keras.Model
    model: keras.Model
    train: data.Split
    test: data.Split
    features: float | None = None

    @property
    def steps(self):
        """Number of steps in an epoch."""
        return len(self.train.labels) // self.recipe.batch_size

    @property
    def last(self):
        """Number of the epoch after the last one."""
        return self.first + self.recipe.epochs


def make_phases(recipe, network, train, test, begin, strategy):
    """Yields the number of each phase from `begin` on, and the phase.

    Each is prepared when the one before has ended.
    """
    if begin == 0:
        freeze(network, recipe.freeze)
        phase = Phase(recipe, 0, network, network, train, test)
        yield 0, with_features(phase, strategy)
    if recipe.unfreeze_epochs:
        freeze(network, None)
        later = dataclasses.replace(
            recipe,
            epochs=recipe.unfreeze_epochs,
            learning_rate=recipe.unfreeze_lr,
            sizes=recipe.sizes[-1:],
        )
        yield 1, Phase(later, recipe.epochs, network, network, train, test)


def with_features(phase, strategy):
    """Computes features once, where they are the same in each epoch.

    They are if only layers after the pooling are trained and nothing in the
    recipe is random. The phase then trains these layers alone.
    """
    recipe, network = phase.recipe, phase.network
    pool = network.get_layer("avg_pool")
    top = network.layers[network.layers.index(pool) + 1 :]
    learning = sum(len(layer.trainable_weights) for layer in top)
    random = recipe.crop != "fit" or recipe.flip or recipe.augment != "none"
    random = random or recipe.mixup or recipe.cutmix or recipe.erasing
    if random or learning != len(network.trainable_weights):
        return phase
    backbone = keras.Model(network.inputs, pool.output)

    def features(split):
        maps = backbone.predict(batches.Unchanged(split, recipe))
        return dataclasses.replace(split, images=maps.astype("float32"))

    start = time.perf_counter()
    train = features(phase.train)
    seconds = time.perf_counter() - start
    test = features(phase.test)
    with strategy.scope():
        x = inputs = keras.Input(pool.output.shape[1:])
        for layer in top:
            x = layer(x)
        model = keras.Model(inputs, x)
    return dataclasses.replace(
        phase,
        model=model,
        train=train,
        test=test,
        features=seconds,
    )


def learn(phase, run, args, progress, strategy):
    """Trains from where the run stands to the end of the phase."""
    model, recipe = phase.model, phase.recipe
    with strategy.scope():
        variables = compile_model(model, recipe, recipe.epochs * phase.steps)
    if run.arrays is not None:
        run.restore(variables)
    for epoch in range(run.epoch, phase.last):
        row = {"epoch": epoch}
        row |= train_epoch(
            phase, epoch, variables, run, args, progress, strategy
        )
        if not math.isfinite(row["loss"]):
            sys.exit(
                "The loss must stay finite. Received: a loss of "
                f"{row['loss']} in epoch {epoch}. Pass a lower "
                "--learning-rate and another --out."
            )
        # With a moving average, `fit` has put it in place of the weights.
        tests = batches.Unchanged(phase.test, recipe)
        scores = strategy.on_one_device(model).evaluate(
            tests, return_dict=True, verbose=0
        )
        row |= {f"val_{name}": value for name, value in scores.items()}
        save_model(phase.network, recipe, args.out / "model.keras")
        run.rows.append(row | {"seconds": round(run.seconds, 3)})
        run.epoch, run.step = epoch + 1, 0
        run.restore(variables)
        # The state comes last: killed before, all of this is done again.
        report.write_log(args.out / "log.csv", run.rows)
        report.write_scalars(args.out / "tensorboard", run.rows[-1])
        run.write()
        progress.bar.write(report.describe(run.rows[-1]))
    model.optimizer.finalize_variable_values(model.trainable_variables)


def train_epoch(phase, epoch, variables, run, args, progress, strategy):
    """Trains for the rest of an epoch; returns its means and the last rate."""
    sizes = phase.recipe.sizes
    size = sizes[min(epoch - phase.first, len(sizes) - 1)]
    plan = batches.Plan(
        *(phase.train, phase.recipe, size, args.seed),
        *(strategy.worker, strategy.workers),
    )
    stream = batches.Stream(plan)
    seconds, waited, start = run.seconds, run.waited, time.perf_counter()

    def clock():
        return {
            "seconds": seconds + time.perf_counter() - start,
            "waited": waited + stream.waited,
        }

    history = strategy.fit(
        phase.model,
        stream.epoch(epoch, run.step),
        initial_epoch=epoch,
        epochs=epoch + 1,
        steps_per_epoch=phase.steps - run.step,
        shuffle=False,
        callbacks=[
            resume.Saver(run, variables, args.save_every, clock),
            progress,
        ],
        verbose=0,
    ).history
    vars(run).update(clock())
    rate = ops.convert_to_numpy(phase.model.optimizer.learning_rate)
    means = {name: values[-1] for name, values in history.items()}
    return means | {"learning_rate": float(rate)}


def save_model(network, recipe, path):
    """Writes a network for use: float32, probabilities in place of logits."""

    def in_float32(layer):
        return type(layer).from_config(
            layer.get_config() | {"dtype": "float32"}
        )

    copy = keras.models.clone_model(network, clone_function=in_float32)
    copy.set_weights(network.get_weights())
    copy.layers[-1].activation = keras.activations.get(recipe.loss)
    part = path.with_suffix(".part.keras")
    copy.save(part)
    os.replace(part, path)


def finish(args, recipe, network, test):
    """Writes the weights; returns the accuracy of what was written."""
    path = args.out / "weights.safetensors"
    keras_resnext.weights.save(network, path)
    save_model(network, recipe, args.out / "model.keras")
    # float16 on disk, float32 here.
    keras.mixed_precision.set_global_policy("float32")
    args = argparse.Namespace(**(vars(args) | {"weights": path}))
    recipe = dataclasses.replace(recipe, new_top=False)
    network = build(args, recipe, len(test.classes))
    compile_model(network, recipe, 1)
    tests = batches.Unchanged(test, recipe)
    return network.evaluate(tests, return_dict=True, verbose=0)["accuracy"]


def describe(args, recipe, train, test):
    """Returns all that the result of a training depends on."""
    options = {
        name: value
        for name, value in vars(args).items()
        if name not in ("out", "save_every", "data_dir")
    }
    options |= dataclasses.asdict(recipe)
    options["pictures"] = [len(train.labels), len(test.labels)]
    options["backend"] = keras.backend.backend()
    return json.loads(json.dumps(options))  # tuples turn into lists


@console.plain_errors()
def main():
    """Trains, measures the test accuracy and writes the results."""
    args, recipe = parse_arguments()
    report.require_packages()
    files.require_writable(args.out)
    configure(args)
    strategy = distribute.choose(args.strategy)
    train, test = data.load(
        *(args.data, args.data_dir, args.holdout, args.seed),
        args.on_corrupt,
    )
    data.require_trainable(train, test)
    if len(train.labels) < recipe.batch_size:
        raise ValueError(
            "A batch must not have more pictures than there are to train "
            f"with. Received: --batch-size {recipe.batch_size} with "
            f"{len(train.labels)} pictures. Make it smaller."
        )
    if recipe.batch_size % strategy.replicas:
        raise ValueError(
            "Each device must get as many pictures of a batch. Received: "
            f"--batch-size {recipe.batch_size} for {strategy.replicas} "
            "devices. Pass a multiple of their number."
        )
    with strategy.scope():
        network = build(args, recipe, len(train.classes))
        # What is wrong with these shows before anything is written.
        freeze(network, recipe.freeze)
        make_optimizer(recipe, len(train.labels))
    run = resume.Run(args.out, describe(args, recipe, train, test))
    if strategy.worker:  # All read the state above, and the chief writes.
        scratch = tempfile.TemporaryDirectory()
        args.out = pathlib.Path(scratch.name)
        run.path = args.out / run.path.name
    args.out.mkdir(parents=True, exist_ok=True)
    board = args.out / "tensorboard"
    if run.arrays is None:
        report.write_graph(board, network)
    steps = len(train.labels) // recipe.batch_size
    epochs = recipe.epochs + recipe.unfreeze_epochs
    done = run.epoch * steps + run.step
    progress = report.Progress(epochs * steps, done, recipe.batch_size)
    phases = make_phases(recipe, network, train, test, run.phase, strategy)
    for number, phase in phases:
        if number > run.phase:  # its variables are others
            run.phase, run.arrays = number, None
        learn(phase, run, args, progress, strategy)
        if phase.features:
            print(report.describe_features(phase.features, run.rows))
    progress.bar.close()

    accuracy = finish(args, recipe, network, test)
    result = {
        "test_accuracy": round(accuracy, 4),
        "minutes": round(run.seconds / 60, 2),
        "images_per_second": round(
            epochs * steps * recipe.batch_size / run.seconds, 1
        ),
        "idle": round(run.waited / run.seconds, 4),
        "parameters": network.count_params(),
        "classes": train.classes,
        "options": run.options,
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("keras", keras.backend.backend(), "numpy")
        },
    }
    files.write(args.out / "result.json", json.dumps(result, indent=2))
    title = f"{args.model}: {accuracy:.2%} of the test pictures"
    report.draw(args.out / "training.png", run.rows, title)
    print(json.dumps(result, indent=2))
    print(f"Waiting for data: {result['idle']:.1%} of the time in training")


if __name__ == "__main__":
    main()
