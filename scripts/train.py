r"""Trains a network, or fine-tunes one, and writes its weights.

    python scripts/train.py --data cifar10.npz --out runs/cifar10
    python scripts/train.py --data tfds:cifar10 --recipe paper_cifar \
        --groups 8 --width-per-group 64 --out runs/paper
    python scripts/train.py --data flowers/ --recipe finetune --sizes 32 \
        --weights cifar10 --out runs/flowers

--data is an .npz file, a folder of class folders, or a TensorFlow dataset;
scripts/common/data.py describes them. --recipe is one of
scripts/training/recipes.py, and each of its fields is an option here as well.

Killed at any moment and started again with the same options, a training goes
on from its last state and ends with the weights it would have had. Ctrl-C
first ends the step and writes the state.

Writes into --out: state.npz, and features.npz of frozen networks; after each
epoch log.csv and tensorboard/ (to look at with `tensorboard --logdir
OUT/tensorboard`); after tests, for at most a tenth of the time, model.keras and
result.json, which says how to use it; and at the end training.png and
weights.safetensors (float16).
"""

import argparse
import dataclasses
import os
import types

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
__keras_later__ = True  # once Ctrl-C is looked after

from keras_resnext.commands import console  # first: for Ctrl-C and oneDNN

# isort: split
from common import data, files
from training import recipes


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
    recipe = recipes.change(recipes.RECIPES[args.recipe], given)
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
            "the last ones, or pass more --epochs."
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
        help="a tag, a file or hf://USER/NAME to start from\n"
        "(default: random numbers)",
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
        choices=("none", "mirrored", "multi_worker"),
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


@console.plain_errors()
def main():
    """Trains, measures the test accuracy and writes the results."""
    args, recipe = parse_arguments()
    console.require_packages("train", "tensorboard", "matplotlib")
    files.require_writable(args.out)
    data.require_apart(args.data, args.out)
    from training import job  # imports Keras, for which help need not wait

    job.run(args, recipe)


if __name__ == "__main__":
    main()
