"""Builds the network that is trained, and compiles and saves it."""

import hashlib
import re

import keras
from keras import ops

import keras_resnext
from common import files
from keras_resnext import copies, nested, transfer
from keras_resnext.registry import ARCHITECTURES

_MOMENTUM = 0.9


def build(args, recipe, classes):
    """Returns the network, which ends in logits."""
    options = {
        "input_shape": (None, None, 3),
        "weights": args.weights,
        "accept_noncommercial": args.accept_noncommercial,
    }
    shape = {
        name: getattr(args, name)
        for name in ("groups", "width_per_group", "planes")
    }
    if args.model == "resnext29":
        options |= shape
    elif any(shape.values()):
        raise ValueError(
            "--groups, --width-per-group and --planes belong to resnext29. "
            f"Received: --model {args.model}. Leave them out."
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


def digest(args):
    """Returns what tells the file of --weights from another one."""
    source = keras_resnext.weights.choose(
        args.model, args.weights, args.accept_noncommercial
    )
    with open(keras_resnext.weights.locate(source), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def freeze(model, stage):
    """Freezes all stages up to one; `"backbone"` stands for the last."""
    if stage == "backbone":
        *_, stage = nested.stages(model)
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
    # The rate still has to fall: Keras takes no fall of no steps.
    warm_up = min(round(recipe.warm_up * steps), steps - 1)
    if recipe.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(
            0.0 if warm_up else recipe.learning_rate,
            steps - warm_up,
            warmup_target=recipe.learning_rate if warm_up else None,
            warmup_steps=warm_up,
        )
    elif recipe.warm_up:
        raise ValueError(
            "A warm-up goes with --schedule cosine. Received: --warm-up "
            f"{recipe.warm_up} with steps. Pass --warm-up 0."
        )
    elif not recipe.milestones:
        rate = recipe.learning_rate
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
        # The numbers are timm's, which trained by these recipes.
        optimizer = Lamb(rate, epsilon=1e-6, global_clipnorm=1, **options)
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


@keras.saving.register_keras_serializable("keras_resnext")
class Lamb(keras.optimizers.Lamb):
    """Lamb as it has trained ResNets: `timm.optim.Lamb`.

    Keras's own gives every variable a step in proportion to its norm: those
    that begin as zeros, as the last gamma of a block with `zero_gamma`, would
    hardly leave zero. Here that holds only for those that decay, whose decay
    is part of the step; the others have Adam's.

    Source: https://github.com/huggingface/pytorch-image-models.
    """

    def _apply_weight_decay(self, variables):
        """Leaves it to the step."""

    def update_step(self, gradient, variable, learning_rate):
        """Moves a variable by a step of its gradient."""
        number = self._get_variable_index(variable)
        mean, square = self._momentums[number], self._velocities[number]
        gradient, rate, count = (
            ops.cast(value, variable.dtype)
            for value in (gradient, learning_rate, self.iterations + 1)
        )
        self.assign_add(mean, (gradient - mean) * (1 - self.beta_1))
        self.assign_add(
            square, (ops.square(gradient) - square) * (1 - self.beta_2)
        )
        size = ops.sqrt(square / (1 - self.beta_2**count)) + self.epsilon
        step = mean / (1 - self.beta_1**count) / size
        if self.weight_decay and self._use_weight_decay(variable):
            step = step + self.weight_decay * variable
            norm, length = (
                ops.sqrt(ops.sum(ops.square(values)))
                for values in (variable, step)
            )
            known = ops.logical_and(norm > 0, length > 0)
            step = step * ops.where(known, norm / length, 1)
        self.assign_sub(variable, rate * step)


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


def save(network, recipe, path):
    """Writes a network for use: float32, probabilities in place of logits."""
    copy = copies.rebuild(
        network,
        lambda op: (
            copies.copy(op, dtype="float32") if copies.is_plain(op) else op
        ),
    )
    copy.layers[-1].activation = keras.activations.get(recipe.loss)
    with files.replacing(path) as part:
        copy.save(part)
