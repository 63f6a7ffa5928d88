"""Checks the arguments of the constructors, before anything is built."""

import numbers

import keras
import numpy as np

from keras_resnext.registry import is_count, require, require_count

# How much smaller than the image the stem's output is.
STEM_STRIDE = {"imagenet": 4, "cifar": 1, "deep": 4, "tiered": 4, "legacy": 4}
BLOCKS = ("basic", "bottleneck")


def channels_last():
    """Tells whether Keras is configured for channels in the last axis."""
    return keras.config.image_data_format() == "channels_last"


def check_structure(row):
    """Checks an `Architecture`; returns its stride, 32 for ImageNet's."""
    require(
        row.block in BLOCKS,
        f"`block` must be one of {BLOCKS}",
        "The paper's block is 'bottleneck'.",
        block=row.block,
    )
    require(
        row.stem in tuple(STEM_STRIDE),
        f"`stem` must be one of {tuple(STEM_STRIDE)}",
        "Images of about 32x32 pixels want 'cifar'.",
        stem=row.stem,
    )
    require(
        isinstance(row.depths, (list, tuple, np.ndarray))
        and len(row.depths) > 0
        and all(map(is_count, row.depths)),
        "`depths` must be positive integers, one for each stage",
        "ResNeXt-50 has (3, 4, 6, 3).",
        depths=row.depths,
    )
    for field, advice in (
        ("groups", "ResNeXt-50 32x4d has 32."),
        ("width_per_group", "ResNeXt-50 32x4d has 4."),
        ("planes", "Leave it out for 64."),
    ):
        require_count(advice, **{field: getattr(row, field)})
    require(
        row.planes * row.width_per_group >= 64,
        "`width_per_group` must leave each group a channel: at least 64 / "
        f"planes, here {-(-64 // row.planes)}",
        "Widen the groups, or the network.",
        width_per_group=row.width_per_group,
    )
    require(
        row.block != "basic" or (row.groups, row.width_per_group) == (1, 64),
        "The basic block takes groups=1 and width_per_group=64 only",
        "Use block='bottleneck' for a grouped network.",
        groups_and_width_per_group=(row.groups, row.width_per_group),
    )
    deep = row.stem in ("deep", "tiered")
    require(
        is_count(row.stem_width)
        and (row.stem_width == 32 or deep)
        and (row.stem_width % 4 == 0 or row.stem != "tiered"),
        "`stem_width` must be a positive integer, of a deep stem only, and a "
        "multiple of 4 if the stem is tiered",
        "Leave it out for 32.",
        stem_width=row.stem_width,
    )
    for switch in ("squeeze_excite", "average_shortcut", "anti_aliased"):
        value = getattr(row, switch)
        require(
            isinstance(value, bool),
            f"`{switch}` must be True or False",
            "Leave it out for False.",
            **{switch: value},
        )
    return STEM_STRIDE[row.stem] << (len(row.depths) - 1)


def check_output_stride(output_stride, full, row):
    """Checks the ratio of the image's size to the last feature map's."""
    allowed, advice = {full}, "The basic block has no dilation."
    if row.block == "bottleneck":
        least = STEM_STRIDE[row.stem]
        allowed |= {s for s in (8, 16, 32) if least < s <= full}
        advice = "Strides beyond it become dilation."
    require(
        output_stride is None or output_stride in allowed,
        f"`output_stride` must be None or one of {sorted(allowed)}",
        advice,
        output_stride=output_stride,
    )


def check_input_tensor(tensor, input_shape):
    """Checks the tensor to use as the images, and the shape beside it."""
    require(
        keras.utils.is_keras_tensor(tensor),
        "`input_tensor` must be a Keras tensor",
        "Make one with `keras.Input`, or call the model on the array.",
        input_tensor=type(tensor).__name__,
    )
    require(
        keras.backend.is_float_dtype(tensor.dtype),
        "`input_tensor` must be of floats",
        "Pass `keras_resnext.preprocess_input(x)` of pictures in 0..255.",
        input_tensor=tensor.dtype,
    )
    shape = tensor.shape[1:]
    require(
        input_shape is None
        or (
            isinstance(input_shape, (tuple, list))
            and len(input_shape) == len(shape)
            and all(
                None in pair or pair[0] == pair[1]
                for pair in zip(input_shape, shape, strict=True)
            )
        ),
        f"`input_shape` must be that of `input_tensor`, {shape}",
        "Leave it out.",
        input_shape=input_shape,
    )


def check_input_shape(input_shape, include_top, row, least, stride, weights):
    """Returns the complete shape of one image; `least` is in pixels."""
    last = channels_last()
    known = getattr(weights, "channels", 3)
    if input_shape is None:
        usual = 32 if row.stem == "cifar" else 224
        # As the preprocessing of these weights makes the pictures.
        size = (
            (getattr(weights, "crop", None) or usual) if include_top else None
        )
        input_shape = (size, size, known) if last else (known, size, size)
    layout = (
        "(height, width, channels)" if last else "(channels, height, width)"
    )
    require(
        isinstance(input_shape, (tuple, list)) and len(input_shape) == 3,
        f"`input_shape` must be {layout}",
        "Leave out the batch; the sizes may be None.",
        input_shape=input_shape,
    )
    *size, channels = input_shape if last else input_shape[::-1]
    require(
        is_count(channels),
        "The number of channels must be a positive integer",
        f"`input_shape` is {layout}.",
        input_shape=input_shape,
    )
    require(
        all(s is None or (is_count(s) and s >= least) for s in size),
        f"Images must be at least {least}x{least} pixels",
        "Enlarge the images, or build a network of fewer stages.",
        input_shape=input_shape,
    )
    require(
        weights is None or channels == known,
        f"Pretrained weights take images of {known} channels",
        f"Convert the images; or build the network for {known} channels and "
        "change them with `keras_resnext.transfer.replace_input`; or use "
        "weights=None.",
        input_shape=input_shape,
    )
    require(
        not row.anti_aliased or all(_halves(s, row.stem, stride) for s in size),
        "Anti-aliased networks need feature maps of even sides wherever a "
        "stage halves them",
        f"Multiples of {least} always fit.",
        input_shape=input_shape,
    )
    return tuple(input_shape)


def _halves(side, stem, stride):
    """Tells whether every stage up to a stride gets an even side, or None."""
    reached = STEM_STRIDE[stem]
    if side is not None and stem != "cifar":
        side = (side + 1) // 2 // 2  # the convolution rounds up, pooling down
    while side is not None and reached < stride:
        if side % 2:
            return False
        side, reached = side // 2, 2 * reached
    return True


def check_rate(name, value):
    """Checks the share of what training drops."""
    require(
        isinstance(value, numbers.Real)
        and not isinstance(value, bool)
        and 0 <= value < 1,
        f"`{name}` must be a number from 0 to below 1",
        "It is the share of what training drops.",
        **{name: value},
    )


def check_classes(classes):
    """Checks a number of classes."""
    require_count(
        "Use include_top=False for a network without classes.", classes=classes
    )


def check_top(include_top, pooling, classes, classifier_activation, weights):
    """Checks the arguments of the network's end against each other."""
    require(
        pooling in (None, "avg", "max"),
        "`pooling` must be None, 'avg' or 'max'",
        "It matters with include_top=False only.",
        pooling=pooling,
    )
    if not include_top:
        return
    check_classes(classes)
    if weights is None:
        return
    require(
        keras.activations.get(classifier_activation)
        in (keras.activations.softmax, keras.activations.linear),
        "`classifier_activation` must be None or 'softmax' with pretrained "
        "weights",
        "Put another activation behind a model that returns logits.",
        classifier_activation=classifier_activation,
    )
    known = getattr(weights, "classes", None) or classes
    require(
        classes == known,
        f"`classes` must be {known}, as in the checkpoint",
        f"Load it with them, and put a classifier of {classes} classes on it: "
        f"`keras_resnext.transfer.replace_top(model, {classes})`.",
        classes=classes,
    )
