"""Trains a network, epoch by epoch, in one phase or two.

The first phase may train a new classifier alone, behind frozen layers; the
second one trains everything.
"""

import dataclasses
import math
import sys
import time

import keras
import numpy as np
from keras import ops

from common import data
from training import batches, models, recipes, report, resume

# Batches after which statistics of normalisation, of which each batch replaces
# a tenth, have 1 % left of the earlier ones.
_COUNTED = 44


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


def make(recipe, network, parts, run, strategy):
    """Yields the number of each phase from the run's on, and the phase.

    Each is prepared when the one before has ended.
    """
    if run.phase == 0:
        models.freeze(network, recipe.freeze)
        phase = Phase(recipe, 0, network, network, *parts)
        yield 0, with_features(phase, run, strategy)
    if recipe.unfreeze_epochs:
        models.freeze(network, None)
        later = dataclasses.replace(
            recipe,
            epochs=recipe.unfreeze_epochs,
            learning_rate=recipe.unfreeze_lr,
            sizes=recipe.sizes[-1:],
        )
        yield 1, Phase(later, recipe.epochs, network, network, *parts)


def with_features(phase, run, strategy):
    """Computes features once, where they are the same in each epoch.

    They are if only layers after the pooling are trained, all epochs have one
    size and nothing in the recipe is random. The phase then trains these
    layers alone. A run that goes on finds on disk what it has computed before,
    and one that was at its end computes nothing.
    """
    recipe, network = phase.recipe, phase.network
    pool = network.get_layer("avg_pool")
    top = network.layers[network.layers.index(pool) + 1 :]
    learning = sum(len(layer.trainable_weights) for layer in top)
    random = recipe.crop != "fit" or recipe.flip or recipe.augment != "none"
    random = random or recipe.mixup or recipe.cutmix or recipe.erasing
    differ = random or recipe.stochastic_depth or len(set(recipe.sizes)) > 1
    if differ or learning != len(network.trainable_weights):
        return phase
    backbone = keras.Model(network.inputs, pool.output)

    def features(split, recipe):
        verbose = 1 if sys.stdout.isatty() else 2
        maps = backbone.predict(
            batches.Unchanged(split, recipe), verbose=verbose
        )
        return maps.astype("float32")

    complete = run.epoch >= phase.last  # what is left needs no pictures
    found = run.read_features()
    if complete:
        none = np.zeros((0, *pool.output.shape[1:]), "float32")
        found = {"train": none, "test": none}
    elif found is None:
        start = time.perf_counter()
        # The size to test with may be another one.
        usual = dataclasses.replace(recipe, test_size=None, test_resize=None)
        found = {"train": features(phase.train, usual)}
        found["seconds"] = time.perf_counter() - start
        found["test"] = features(phase.test, recipe)
        if not strategy.worker:
            run.write_features(found)
    with strategy.scope():
        x = inputs = keras.Input(pool.output.shape[1:])
        for layer in top:
            x = layer(x)
        model = keras.Model(inputs, x)
    return dataclasses.replace(
        phase,
        model=model,
        train=dataclasses.replace(phase.train, images=found["train"]),
        test=dataclasses.replace(phase.test, images=found["test"]),
        features=None if complete else float(found["seconds"]),
    )


def learn(phase, run, args, strategy, progress, board):
    """Trains from where the run stands to the end of the phase."""
    model, recipe = phase.model, phase.recipe
    with strategy.scope():
        variables = models.compile_model(
            model, recipe, recipe.epochs * phase.steps
        )
    if run.arrays is not None:
        run.restore(variables)
    if run.epoch == phase.last:  # as an earlier run left it
        take_average(phase, recipe.epochs, args.seed, strategy)
    seldom = Seldom()
    for epoch in range(run.epoch, phase.last):
        done = epoch + 1 - phase.first
        test = done % args.test_every == 0 or done == recipe.epochs
        if run.step < phase.steps:
            row = train_epoch(
                phase, epoch, variables, run, args, strategy, progress
            )
            _require_finite(row["loss"], epoch)
            run.rows.append({"epoch": epoch} | row)
            if test:  # killed in it, that alone is done again
                run.step = phase.steps
                run.write()
                if run.interrupted:
                    raise KeyboardInterrupt
        if test:
            take_average(phase, done, args.seed, strategy)
            run.rows[-1] |= evaluate(phase, strategy)
            seldom(
                lambda: write(phase, run, args.out),
                must=done == recipe.epochs or run.interrupted,
            )
        run.rows[-1]["seconds"] = round(run.seconds, 3)
        run.epoch, run.step = epoch + 1, 0
        if run.epoch < phase.last:
            run.restore(variables)
        # The state comes last: killed before, all of this is done again.
        report.write_log(args.out / "log.csv", run.rows)
        run.write()
        board.add(run.rows[-1])
        progress.bar.write(report.describe(run.rows[-1]))
        if run.interrupted:
            raise KeyboardInterrupt


def write(phase, run, out):
    """Writes the network as it is, and how to use it."""
    models.save(phase.network, phase.recipe, out / "model.keras")
    accuracy = run.rows[-1]["val_accuracy"]
    path, classes = out / "result.json", phase.test.classes
    report.write_result(path, run, phase.network, classes, accuracy, False)


class Seldom:
    """Does work again and again, but for at most a tenth of the time.

    An epoch of a classifier on features takes a part of a second, and writing
    the network behind it more than that.
    """

    def __init__(self, clock=time.monotonic):
        """Takes what tells the seconds; the work is due at once."""
        self._clock, self._due = clock, -math.inf

    def __call__(self, work, must=False):
        """Does the work, if it is due or must be done now."""
        start = self._clock()
        if must or start >= self._due:
            work()
            end = self._clock()
            self._due = end + 9 * (end - start)


def _require_finite(loss, epoch):
    """Checks that a training has not gone beyond all bounds."""
    if not math.isfinite(loss):
        raise ValueError(
            f"The loss must stay finite. Received: a loss of {loss} in epoch "
            f"{epoch}. Pass a lower --learning-rate and another --out."
        )


def take_average(phase, done, seed, strategy):
    """Puts the weights' moving average in their place, if there is one.

    It gets statistics of normalisation of its own, from what the network would
    be trained with next: the network's own are those of other weights.

    Source: Izmailov et al., https://arxiv.org/abs/1803.05407.

    Args:
        phase: A `Phase`.
        done: Number of its epochs that are complete.
        seed: Of the training.
        strategy: Of `distribute`.
    """
    phase.model.optimizer.finalize_variable_values(
        phase.model.trainable_variables
    )
    counting = [
        layer
        for layer in phase.model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
    ]
    if not phase.recipe.ema or not counting:
        return
    model = strategy.on_one_device(phase.model)
    learning = _Learning(model)
    stream = batches.Stream(_plan(phase, done - 1, seed))
    for epoch in range(-(-_COUNTED // phase.steps)):
        learning.predict(
            stream.epoch(phase.first + done + epoch),
            steps=min(_COUNTED - epoch * phase.steps, phase.steps),
            verbose=0,
        )
    for layer in counting:
        for name in ("moving_mean", "moving_variance"):
            new = getattr(model.get_layer(layer.name), name)
            getattr(layer, name).assign(ops.convert_to_numpy(new))


class _Learning(keras.Model):
    """A network that `predict` runs as `fit` does, but for its gradients."""

    def __init__(self, network):
        super().__init__(name="learning")
        self.network = network

    def call(self, inputs):
        # `predict` keeps the outputs, of which one is enough.
        return self.network(inputs, training=True)[:, :1]


def _plan(phase, epoch, seed, *worker):
    """Returns the batches of an epoch, which the phase counts from 0."""
    sizes = phase.recipe.sizes
    size = sizes[min(epoch, len(sizes) - 1)]
    return batches.Plan(phase.train, phase.recipe, size, seed, *worker)


def evaluate(phase, strategy):
    """Returns the loss and the accuracy of the test pictures, as `val_…`."""
    scores = strategy.on_one_device(phase.model).evaluate(
        batches.Unchanged(phase.test, phase.recipe),
        return_dict=True,
        verbose=0,
    )
    return {f"val_{name}": value for name, value in scores.items()}


def train_epoch(phase, epoch, variables, run, args, strategy, progress):
    """Trains for the rest of an epoch; returns its row of the log."""
    plan = _plan(
        *(phase, epoch - phase.first, args.seed),
        *(strategy.worker, strategy.workers),
    )
    stream = batches.Stream(plan)
    seconds, waited, start = run.seconds, run.waited, time.perf_counter()

    def clock():
        return {
            "seconds": seconds + time.perf_counter() - start,
            "waited": waited + stream.waited,
        }

    saver = resume.Saver(run, variables, args.save_every, clock)
    with run.interruptible():
        history = strategy.fit(
            phase.model,
            stream.epoch(epoch, run.step),
            initial_epoch=epoch,
            epochs=epoch + 1,
            steps_per_epoch=phase.steps - run.step,
            shuffle=False,
            callbacks=[saver, progress],
            verbose=0,
        ).history
    vars(run).update(clock())
    rate = ops.convert_to_numpy(phase.model.optimizer.learning_rate)
    means = {name: values[-1] for name, values in history.items()}
    return means | {"learning_rate": float(rate), "size": plan.size}
