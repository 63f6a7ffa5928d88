"""Recipes to train by: one row each, with its source.

    python scripts/train.py --recipe paper_cifar --data tfds:cifar10 --out RUN

Each field is also an option of scripts/train.py, which replaces the recipe's
value: `--epochs 30`, `--no-flip`, `--sizes 160`.
"""

import dataclasses
import inspect
import re

from keras_resnext.commands.console import COUNT, POSITIVE, SHARE, SIDE, Number

_PAPER = "https://arxiv.org/abs/1611.05431"
_PAPER_CODE = "https://github.com/facebookresearch/ResNeXt"
_TORCHVISION = "https://github.com/pytorch/vision"
_RSB = "https://arxiv.org/abs/2110.00476"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train: data, augmentation, optimizer and schedule.

    Attributes:
        source: Where the recipe is published.
        epochs: Number of passes over the training pictures.
        batch_size: Pictures in a step; an update sees `accumulate` steps.
        repeats: How often a picture comes in a batch, changed anew each time
            (repeated augmentation); an epoch then has as many pictures as
            ever, and so fewer different ones.
        accumulate: Steps whose gradients are averaged for one update.
        optimizer: `"sgd"`, with momentum 0.9, or `"lamb"`.
        nesterov: Whether that momentum is Nesterov's.
        learning_rate: The largest one, for the batch of an update.
        schedule: `"cosine"` to zero, or `"steps"`: a tenth at each milestone.
        milestones: Shares of the training, 0..1, where `"steps"` lie, in
            rising order; without any the rate is constant.
        warm_up: Share of the training in which the rate rises from zero.
        weight_decay: As the source states it; not on normalisation and biases.
        ema: Momentum of the weights' moving average, per step; 0 for none.
            It begins with the weights of the first step, and gets statistics
            of normalisation of its own.
        loss: `"softmax"` cross-entropy, or `"sigmoid"`: one for each class.
        label_smoothing: Share of the target spread over all classes.
        sizes: Side of the pictures in each epoch, in pixels; the last one
            holds for all further epochs. Other ones change those to test
            with in proportion.
        test_size: Side of the pictures to test with; without it, the last of
            `sizes`.
        test_resize: Length to which a test picture's shorter side is resized
            before `test_size` is cut out; without it, `test_size`.
        crop: `"pad"`: four more pixels on each side, in the mean colour,
            which normalisation turns to zero, then a random part of the old
            size; `"reflect"`: the same, with the picture mirrored at its
            border; `"resized"`: a random part of 8 to 100 %, resized;
            `"fit"`: the whole, the same in each epoch.
        flip: Whether to mirror every second picture.
        augment: `"none"`, `"trivial"` (TrivialAugment), `"rand"`
            (RandAugment, up to two operations) or `"colours"` (brightness,
            contrast, saturation and the colour of the light).
        magnitude: Of RandAugment, 0..10; each operation's deviates by 0.5.
        mixup: Parameter of MixUp's beta distribution; 0 for none.
        cutmix: Parameter of CutMix's, 0..1; with both, every second batch has
            it.
        erasing: Share of the pictures of which a part is erased.
        zero_gamma: Whether each block starts as the identity.
        stochastic_depth: Share of the pictures that skip the last block.
        dropout: Share of the features dropped before a new classifier.
        new_top: Whether `--weights` get a new classifier.
        freeze: Last stage to freeze, as `"conv4"`, or `"backbone"` for all
            but the classifier; without it, everything is trained.
        unfreeze_epochs: Epochs to add in which everything is trained.
        unfreeze_lr: Their largest learning rate.
    """

    source: str
    epochs: int
    batch_size: int
    learning_rate: float
    repeats: int = 1
    accumulate: int = 1
    optimizer: str = "sgd"
    nesterov: bool = True
    schedule: str = "cosine"
    milestones: tuple[float, ...] = ()
    warm_up: float = 0.0
    weight_decay: float = 0.0
    ema: float = 0.0
    loss: str = "softmax"
    label_smoothing: float = 0.0
    sizes: tuple[int, ...] = (224,)
    test_size: int | None = None
    test_resize: int | None = None
    crop: str = "resized"
    flip: bool = True
    augment: str = "none"
    magnitude: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0
    zero_gamma: bool = False
    stochastic_depth: float = 0.0
    dropout: float = 0.0
    new_top: bool = False
    freeze: str | None = None
    unfreeze_epochs: int = 0
    unfreeze_lr: float = 1e-3


# What a field may be, where that is a choice.
CHOICES = {
    "optimizer": ("sgd", "lamb"),
    "schedule": ("cosine", "steps"),
    "loss": ("softmax", "sigmoid"),
    "crop": ("pad", "reflect", "resized", "fit"),
    "augment": ("none", "trivial", "rand", "colours"),
}

# Which numbers a field may be; each one, if it has several.
_BELOW_1 = Number(float, 0, 1, open="most")
_FROM_0 = Number(float, 0)
NUMBERS = {
    "epochs": POSITIVE,
    "batch_size": POSITIVE,
    "repeats": POSITIVE,
    "accumulate": POSITIVE,
    "learning_rate": Number(float, 0, open="least"),
    "milestones": SHARE,
    "warm_up": _BELOW_1,
    "weight_decay": _FROM_0,
    "ema": _BELOW_1,
    "label_smoothing": _BELOW_1,
    "sizes": SIDE,
    "test_size": SIDE,
    "test_resize": SIDE,
    "magnitude": Number(float, 0, 10),
    "mixup": _FROM_0,
    "cutmix": SHARE,  # Keras's layer takes no more
    "erasing": SHARE,
    "stochastic_depth": _BELOW_1,
    "dropout": _BELOW_1,
    "unfreeze_epochs": COUNT,
    "unfreeze_lr": Number(float, 0, open="least"),
}

# Fields that count only where another one has this value, or any but none.
GO_WITH = {
    "milestones": ("schedule", "steps"),
    "nesterov": ("optimizer", "sgd"),
    "magnitude": ("augment", "rand"),
    "dropout": ("new_top", None),
    "unfreeze_lr": ("unfreeze_epochs", None),
}


def descriptions():
    """Returns what each field of a recipe means, from `Recipe`'s own text.

    With `python -OO`, which keeps no such text, it is empty.
    """
    text = inspect.cleandoc(Recipe.__doc__ or "").partition("Attributes:\n")[2]
    pairs = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {field.name: "" for field in dataclasses.fields(Recipe)} | {
        name: re.sub(r"\s*\n\s+", "\n", words.rstrip("."))
        for name, words in pairs
    }


def change(recipe, fields):
    """Returns a recipe with some of its fields replaced.

    The sizes to test with keep their proportion to those to train with, if
    they are not replaced as well. Else a network for 64 pixels would be tested
    on the middle of pictures of 256.

    Args:
        recipe: A `Recipe`.
        fields: Dictionary of new values by name.
    """
    new = dataclasses.replace(recipe, **fields)
    crop = recipe.test_size or recipe.sizes[-1]
    if recipe.test_size and "test_size" not in fields:
        side = round(recipe.test_size * new.sizes[-1] / recipe.sizes[-1])
        new = dataclasses.replace(new, test_size=side)
    if recipe.test_resize and "test_resize" not in fields:
        side = round(
            recipe.test_resize * (new.test_size or new.sizes[-1]) / crop
        )
        new = dataclasses.replace(new, test_resize=side)
    return new


RECIPES = {
    # For two CPU cores: few epochs, most of them on shrunken pictures, which
    # cost less.
    "quick": Recipe(
        source="progressive resizing, https://arxiv.org/abs/2104.00298",
        epochs=14,
        batch_size=128,
        learning_rate=0.1,
        warm_up=0.15,
        weight_decay=5e-5,
        label_smoothing=0.1,
        sizes=(20,) * 5 + (24,) * 5 + (32,),
        crop="reflect",
        zero_gamma=True,
    ),
    # For a GPU: one size, as each is compiled anew, and few steps of many
    # pictures.
    "cifar": Recipe(
        source="https://arxiv.org/abs/2404.00498; of erasing "
        "https://arxiv.org/abs/1708.04896",
        epochs=64,
        batch_size=256,
        learning_rate=0.2,
        warm_up=0.1,
        weight_decay=5e-4,
        label_smoothing=0.1,
        sizes=(32,),
        crop="reflect",
        erasing=0.5,
        zero_gamma=True,
    ),
    # The momentum, and the order of cropping and normalisation, are its code's.
    "paper_cifar": Recipe(
        source=f"{_PAPER}, section 5.3; {_PAPER_CODE}",
        epochs=300,
        batch_size=128,
        learning_rate=0.1,
        schedule="steps",
        milestones=(150 / 300, 225 / 300),
        weight_decay=5e-4,
        sizes=(32,),
        crop="pad",
    ),
    "paper_imagenet": Recipe(
        source=f"{_PAPER}, section 4; {_PAPER_CODE}",
        epochs=90,
        batch_size=256,
        learning_rate=0.1,
        schedule="steps",
        milestones=(30 / 90, 60 / 90),
        weight_decay=1e-4,
        test_resize=256,
        augment="colours",
    ),
    # Of ResNeXt-50; the deeper ones had 100 epochs there, too. Eight
    # processes of 32 (ResNeXt-101: 64 processes of the same learning rate).
    "torchvision_v1": Recipe(
        source=f"{_TORCHVISION}/tree/main/references/classification#resnext",
        epochs=100,
        batch_size=256,
        nesterov=False,
        learning_rate=0.1,
        schedule="steps",
        milestones=(0.3, 0.6, 0.9),
        weight_decay=1e-4,
        test_resize=256,
    ),
    "torchvision_v2": Recipe(
        source=f"{_TORCHVISION}/issues/3995#new-recipe-with-fixres",
        epochs=600,
        batch_size=1024,
        repeats=4,
        nesterov=False,
        learning_rate=0.5,
        warm_up=5 / 600,
        weight_decay=2e-5,
        # There every 32 steps, and scaled by the batch and the epochs.
        ema=1 - 2e-5 * 1024 / 600,
        label_smoothing=0.1,
        sizes=(176,),
        test_size=224,
        test_resize=232,
        augment="trivial",
        mixup=0.2,
        cutmix=1.0,
        erasing=0.1,
    ),
    "rsb_a2": Recipe(
        source=f"{_RSB}, table 2",
        epochs=300,
        batch_size=2048,
        repeats=3,
        optimizer="lamb",
        learning_rate=5e-3,
        warm_up=5 / 300,
        weight_decay=0.02,
        loss="sigmoid",
        test_size=224,
        test_resize=235,
        augment="rand",
        magnitude=7,
        mixup=0.1,
        cutmix=1.0,
        zero_gamma=True,
        stochastic_depth=0.05,
    ),
    "rsb_a3": Recipe(
        source=f"{_RSB}, table 2",
        epochs=100,
        batch_size=2048,
        optimizer="lamb",
        learning_rate=8e-3,
        warm_up=5 / 100,
        weight_decay=0.02,
        loss="sigmoid",
        sizes=(160,),
        test_size=224,
        test_resize=235,
        augment="rand",
        magnitude=6,
        mixup=0.1,
        cutmix=1.0,
        zero_gamma=True,
    ),
    # A new classifier on frozen features, which are computed once.
    "finetune": Recipe(
        source="linear probe, https://arxiv.org/abs/1805.08974",
        epochs=30,
        batch_size=64,
        learning_rate=0.1,
        crop="fit",
        flip=False,
        new_top=True,
        freeze="backbone",
    ),
}
