"""Builds ResNeXt and ResNet as functional Keras models."""

import dataclasses
import inspect
import pathlib
import re

import keras
import numpy as np
from keras import layers

from keras_resnext import arguments
from keras_resnext.layers import (
    Add,
    BatchNormalization,
    GroupedConv2D,
    MaxPooling2D,
)
from keras_resnext.registry import (
    ARCHITECTURES,
    Architecture,
    find_architecture,
)
from keras_resnext.weights import choose, fill, read


def _channel_axis():
    return -1 if arguments.channels_last() else 1


def conv_bn(
    x,
    filters,
    kernel_size,
    name,
    stride=1,
    groups=1,
    dilation=1,
    activation="relu",
    gamma="ones",
):
    """Convolves, normalises and activates.

    Args:
        x: Keras tensor, `(batch, height, width, channels)`.
        filters: Number of output channels.
        kernel_size: Odd side of the kernel, in pixels.
        name: Prefix of the layers' names: `_pad`, `_conv`, `_bn`, `_relu`.
        stride: Step of the kernel, in pixels.
        groups: Number of groups of the convolution.
        dilation: Distance between the kernel's taps, in pixels.
        activation: Name of the activation, or `None`.
        gamma: Initial value of the normalisation's scale.

    Returns:
        Keras tensor, `(batch, ceil(height / stride), ceil(width / stride),
        filters)`.
    """
    # "same" pads even inputs unevenly at stride 2; the weights of PyTorch
    # were trained with as many zeros on each side.
    if stride > 1 and kernel_size > 1:
        x = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
    x = GroupedConv2D(
        filters,
        kernel_size,
        strides=stride,
        padding="same" if stride == 1 else "valid",
        dilation_rate=dilation,
        groups=groups,
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    x = BatchNormalization(
        axis=_channel_axis(),
        momentum=0.9,  # PyTorch's 0.1: there the share of the new batch
        epsilon=1e-5,
        gamma_initializer=gamma,
        name=f"{name}_bn",
    )(x)
    if activation:
        x = layers.Activation(activation, name=f"{name}_relu")(x)
    return x


def _strided(x, filters, name, stride, groups, dilation, window):
    """Convolves 3x3; with a window, averages stand in place of the stride."""
    if window > 1:
        x = conv_bn(x, filters, 3, name, 1, groups, dilation)
        return _average(x, window, stride, name)
    return conv_bn(x, filters, 3, name, stride, groups, dilation)


def _average(x, window, stride, name):
    # Of what there is, at the edges: "same" leaves out the padding.
    return layers.AveragePooling2D(
        window, stride, padding="same", name=f"{name}_pool"
    )(x)


def squeeze_and_excite(x, name):
    """Weights the channels of each image by what their means say.

    Source: Hu et al., https://arxiv.org/abs/1709.01507; timm's `SEModule`.
    """
    channels = x.shape[_channel_axis()]
    y = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    for step, filters, activation in (
        ("reduce", max(8, channels // 16), "relu"),
        ("expand", channels, "sigmoid"),
    ):
        y = GroupedConv2D(
            filters,
            1,
            activation=activation,
            kernel_initializer="he_normal",
            name=f"{name}_{step}",
        )(y)
    return layers.Multiply(name=f"{name}_excite")([x, y])


def bottleneck(x, planes, name, row, stride, dilation, window, gamma):
    """Returns a branch: a 1x1, a grouped 3x3 and a 1x1 convolution.

    With `groups=1, width_per_group=64` it is that of ResNet's block, with 32
    and 4 that of ResNeXt's. The 3x3 convolution has `planes * width_per_group
    // 64 * groups` channels, the output `4 * planes`.

    Source: torchvision's `Bottleneck`, which puts the stride on the 3x3
    convolution; Xie et al., https://arxiv.org/abs/1611.05431, figure 3(c).
    """
    groups = row.groups
    width = planes * row.width_per_group // 64 * groups
    y = conv_bn(x, width, 1, f"{name}_1")
    y = _strided(y, width, f"{name}_2", stride, groups, dilation, window)
    return conv_bn(y, 4 * planes, 1, f"{name}_3", activation=None, gamma=gamma)


def basic(x, planes, name, row, stride, dilation, window, gamma):
    """Returns a branch: two 3x3 convolutions of `planes` channels."""
    y = _strided(x, planes, f"{name}_1", stride, 1, dilation, window)
    return conv_bn(y, planes, 3, f"{name}_2", activation=None, gamma=gamma)


def residual(
    x,
    planes,
    name,
    row,
    stride=1,
    dilation=1,
    window=1,
    gamma="ones",
    drop=0.0,
):
    """Adds a block: its branch and the input, projected where they differ.

    The window is the side of the averages that may stand in place of the
    stride, or 1.
    """
    averages = window if row.anti_aliased else 1
    branch = _BRANCHES[row.block](
        x, planes, name, row, stride, dilation, averages, gamma
    )
    filters = branch.shape[_channel_axis()]
    if stride > 1 or x.shape[_channel_axis()] != filters:
        if row.average_shortcut and window > 1:
            x, stride = _average(x, window, stride, f"{name}_0"), 1
        x = conv_bn(x, filters, 1, f"{name}_0", stride, activation=None)
    if row.squeeze_excite:
        branch = squeeze_and_excite(branch, f"{name}_se")
    if drop:
        # One draw for each image: all of its branch or nothing.
        branch = layers.Dropout(
            drop, noise_shape=(None, 1, 1, 1), name=f"{name}_drop"
        )(branch)
    x = Add(name=f"{name}_add")([x, branch])
    return layers.Activation("relu", name=f"{name}_out")(x)


_BRANCHES = {"bottleneck": bottleneck, "basic": basic}
_MOST_BLOCKS = 200  # that a short file can make us build


def _stem(x, row):
    """Convolves and pools the images.

    Source: torchvision; He et al., https://arxiv.org/abs/1812.01187, for the
    deep stem (ResNet-C); timm for the tiered and the anti-aliased one.
    """
    if row.stem == "cifar":
        return conv_bn(x, row.planes, 3, "conv1")
    if row.stem in ("deep", "tiered"):
        width = row.stem_width
        first = 3 * width // 4 if row.stem == "tiered" else width
        x = conv_bn(x, first, 3, "conv1_1", stride=2)
        x = conv_bn(x, width, 3, "conv1_2")
        x = conv_bn(x, 2 * width, 3, "conv1")
    else:
        x = conv_bn(x, row.planes, 7, "conv1", stride=2)
    if row.anti_aliased:
        return layers.AveragePooling2D(2, name="pool1_pool")(x)
    # Zeros are as good as PyTorch's minus infinity: they follow a ReLU.
    # Cadene's nets have no padding and round up: what is added fills the end.
    pad = ((0, 1), (0, 1)) if row.stem == "legacy" else 1
    x = layers.ZeroPadding2D(pad, name="pool1_pad")(x)
    return MaxPooling2D(3, 2, name="pool1_pool")(x)


def _stages(x, row, output_stride, drop, gamma):
    """Stacks the blocks; a stride past `output_stride` becomes dilation.

    The rate of stochastic depth rises linearly, to `drop` in the last block.
    """
    reached, dilation = arguments.STEM_STRIDE[row.stem], 1
    rates = iter(np.linspace(0, drop, sum(row.depths) + 1)[1:].tolist())
    for stage, depth in enumerate(row.depths):
        stride, first_dilation = (2 if stage else 1), dilation
        window = stride  # stays where the stride becomes dilation
        if stride == 2 and reached == output_stride:
            stride, dilation = 1, 2 * dilation
        reached *= stride
        for i in range(depth):
            x = residual(
                x,
                row.planes << stage,
                f"conv{stage + 2}_block{i + 1}",
                row,
                stride=1 if i else stride,
                dilation=dilation if i else first_dilation,
                window=window,
                gamma=gamma,
                drop=next(rates),
            )
            window = 1
    return x


def classifier(x, classes, activation, name="predictions"):
    """Adds the last layer to vectors."""
    return layers.Dense(
        int(classes),  # Keras refuses NumPy's integers
        activation=activation,
        # float32 under mixed precision: softmax overflows in float16
        dtype=keras.config.dtype_policy().variable_dtype,
        name=name,
    )(x)


def _top(x, include_top, pooling, classes, classifier_activation):
    if include_top or pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool")(x)
    return classifier(x, classes, classifier_activation) if include_top else x


def ResNeXt(
    depths,
    groups=32,
    width_per_group=4,
    include_top=True,
    weights=None,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=1000,
    classifier_activation="softmax",
    name="resnext",
    *,
    accept_noncommercial=False,
    block="bottleneck",
    stem="imagenet",
    stem_width=32,
    planes=64,
    squeeze_excite=False,
    average_shortcut=False,
    anti_aliased=False,
    output_stride=None,
    zero_gamma=False,
    stochastic_depth=0.0,
):
    """Builds a ResNeXt or ResNet of any depth, cardinality and width.

    Inputs are images that `keras_resnext.preprocess_input` has normalised,
    float, `(batch, height, width, channels)` or, where Keras is configured so
    and the backend can, `(batch, channels, height, width)`.

    Args:
        depths: Numbers of blocks, one for each stage; every further stage has
            twice the channels at half the resolution.
        groups: The paper's cardinality.
        width_per_group: The paper's bottleneck width, for 64 planes.
        include_top: Whether to end with average pooling and a classifier.
        weights: `None` for random values, the path of a file, a row of
            `registry.CHECKPOINTS`, or `"hf://USER/NAME"` on the hub. The
            named constructors take tags, too.
        input_tensor: Keras tensor of floats to use as the images, or `None`.
            It has the shape of one image then: leave out `input_shape`.
        input_shape: Shape of one image. Sizes may be `None`. With a top it
            defaults to what `eval_transform` makes for the weights; of a file
            or without weights to `(224, 224, 3)`, or `(32, 32, 3)` for
            `stem="cifar"`. Without a top it is `(None, None, 3)`. The channels
            of a file may be others than 3.
        pooling: Without a top: `None` for feature maps, `"avg"` or `"max"`
            for a vector of each image.
        classes: Number of classes; with pretrained weights as in the file.
        classifier_activation: Activation of the classifier; `None` returns
            logits.
        name: Name of the model; it selects no file.
        accept_noncommercial: Whether the licence of a row, or of weights on
            the hub, may forbid commercial use.
        block: `"bottleneck"`, or `"basic"` as in ResNet-18 and -34.
        stem: `"imagenet"` (7x7 convolution and pooling, together stride 4),
            `"deep"` (three 3x3 convolutions in place of the 7x7, as in nets
            with a D in their name), `"tiered"` (the same, growing in width),
            `"legacy"` (as `"imagenet"`, pooled without padding before) or
            `"cifar"` (3x3 convolution, stride 1).
        stem_width: Channels of a deep stem's second convolution; the third
            has twice as many, the first as many, or 3/4 in a tiered stem.
        planes: Channels of the first stage's narrow convolutions, a quarter
            of its output's; fewer make the whole network narrower, its groups
            included.
        squeeze_excite: Whether each block weights its channels by what two
            small layers make of their means (Hu et al.,
            https://arxiv.org/abs/1709.01507).
        average_shortcut: Whether shortcuts are averaged over 2x2 pixels in
            place of a stride, as in nets with a D in their name (He et al.,
            https://arxiv.org/abs/1812.01187).
        anti_aliased: Whether averages over 2x2 pixels stand in place of the
            strides of 3x3 convolutions and of the stem's maximum, as in
            timm's nets with AA in their name. Known sizes must give even
            feature maps wherever a stage halves them, as multiples of 32 do;
            where they are `None`, odd maps are rounded up.
        output_stride: Ratio of the image's size to that of the last feature
            map, 8, 16 or by default 32: strides beyond it become dilation,
            and the averages in their place have stride 1.
        zero_gamma: Whether each block's last normalisation starts at zero,
            so that the block starts as the identity.
        stochastic_depth: Share of the images for which training leaves out
            the last block's branch, 0 to below 1. It rises linearly from 0
            before the first block (Huang et al.,
            https://arxiv.org/abs/1603.09382); a branch that stays is divided
            by its share, so that inference needs no change.

    Returns:
        A functional `keras.Model`. Its layers are named as in
        `keras.applications.ResNet50`: `conv2_block1_2_conv` and so on. The
        output is `(batch, classes)` probabilities or logits, float32 also
        under mixed precision and of the policy's type under a pure policy as
        float64; or `(batch, channels)` or `(batch, height, width, channels)`
        features.

    Raises:
        ValueError: if an argument is out of its range, or if the weights do
            not fit the network in name, shape or number.
        FileNotFoundError: if the file of weights does not exist.
        ConnectionError: if they can't be downloaded.
        ImportError: if the hub's client is required, and not installed.

    Source: Xie et al., "Aggregated Residual Transformations for Deep Neural
    Networks", https://arxiv.org/abs/1611.05431.
    """
    row = Architecture(
        name,
        None,
        depths,
        block=block,
        groups=groups,
        width_per_group=width_per_group,
        stem=stem,
        stem_width=stem_width,
        planes=planes,
        squeeze_excite=squeeze_excite,
        average_shortcut=average_shortcut,
        anti_aliased=anti_aliased,
    )
    source = choose(None, weights, accept_noncommercial)
    if source is not None and hasattr(source, "architecture"):
        # No array shows it; the rest of an architecture does in the file.
        averages = _anti_aliased(source.architecture)
        arguments.require(
            averages == anti_aliased,
            f"`anti_aliased` must be {averages} for weights of "
            f"{source.architecture}",
            "With another value the answers would be wrong.",
            anti_aliased=anti_aliased,
        )
    return _build(
        row,
        include_top,
        source,
        input_tensor,
        input_shape,
        pooling,
        classes,
        classifier_activation,
        name,
        output_stride,
        zero_gamma,
        stochastic_depth,
    )


def _build(
    row,
    include_top,
    source,
    input_tensor,
    input_shape,
    pooling,
    classes,
    classifier_activation,
    name,
    output_stride,
    zero_gamma,
    stochastic_depth,
):
    """Builds the network of a row, with the weights of a source."""
    least = arguments.check_structure(row)
    arguments.check_output_stride(output_stride, least, row)
    arguments.check_rate("stochastic_depth", stochastic_depth)
    arguments.check_top(
        include_top, pooling, classes, classifier_activation, source
    )
    if input_tensor is not None:
        arguments.check_input_tensor(input_tensor, input_shape)
    if isinstance(source, pathlib.Path):
        source = read(source)  # it decides how many channels there are
    shape = arguments.check_input_shape(
        input_shape if input_tensor is None else input_tensor.shape[1:],
        include_top,
        row,
        least,
        output_stride or least,
        source,
    )
    stored = read(source)  # only what can fit is downloaded

    images = keras.Input(shape) if input_tensor is None else input_tensor
    x = _stem(images, row)
    x = _stages(
        x,
        row,
        output_stride,
        stochastic_depth,
        gamma="zeros" if zero_gamma else "ones",
    )
    x = _top(x, include_top, pooling, classes, classifier_activation)
    if stored is not None:
        # Only the layers made here: `input_tensor` may have others before.
        fill(keras.Model(images, x), stored)
    inputs = keras.utils.get_source_inputs(images)
    return keras.Model(inputs[0] if len(inputs) == 1 else inputs, x, name=name)


def build(  # noqa: D417 (`_documented` adds the others)
    architecture,
    include_top=True,
    weights="imagenet",
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=None,
    classifier_activation="softmax",
    name=None,
    *,
    accept_noncommercial=False,
    output_stride=None,
    zero_gamma=False,
    stochastic_depth=0.0,
):
    """Builds the network of a name, also one that you have registered.

        model = keras_resnext.build("seresnext50_32x4d")

    Args:
        architecture: A name that `python -m keras_resnext list` prints, or
            that `keras_resnext.registry.register` was given.
        weights: `"imagenet"` for the most accurate checkpoint whose licence
            allows any use, the tag of another one (`python -m keras_resnext
            list`), the path of a file, `"hf://USER/NAME"` or
            `"hf://USER/NAME@REVISION"` on the Hugging Face hub, or `None` for
            random values.
        classes: Number of classes, by default the architecture's; with
            pretrained weights as in the file.
        name: Name of the model, by default the architecture's.
        accept_noncommercial: Whether a checkpoint may be used whose licence
            forbids commercial use.

    Returns:
        A functional `keras.Model`, as `keras_resnext.ResNeXt`.

    Raises:
        ValueError: as `ResNeXt`, and if the name or the tag is unknown or
            the licence needs `accept_noncommercial=True`.
        FileNotFoundError, ImportError: as `ResNeXt`.
        ConnectionError: if a checkpoint can't be downloaded; the message says
            where to put the file by hand.
    """
    row = find_architecture(architecture)
    return _build(
        row,
        include_top,
        choose(row.name, weights, accept_noncommercial),
        input_tensor,
        input_shape,
        pooling,
        row.classes if classes is None else classes,
        classifier_activation,
        row.name if name is None else name,
        output_stride,
        zero_gamma,
        stochastic_depth,
    )


def from_hub(  # noqa: D417 (`_documented` adds the others)
    repository,
    include_top=True,
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classifier_activation="softmax",
    name=None,
    *,
    accept_noncommercial=False,
    output_stride=None,
    zero_gamma=False,
    stochastic_depth=0.0,
):
    """Builds the network of a repository on the Hugging Face hub.

    It has the architecture and the classes of its config.json, with the
    weights in its model.safetensors or pytorch_model.bin. Its pictures are
    those of `eval_transform("hf://USER/NAME")`.

        model = keras_resnext.from_hub("timm/seresnext50_32x4d.racm_in1k")

    Args:
        repository: `"USER/NAME"` or `"USER/NAME@REVISION"`.
        name: Name of the model, by default the architecture's.
        accept_noncommercial: Whether its licence may forbid commercial use.

    Returns:
        A functional `keras.Model`, as `keras_resnext.ResNeXt`.

    Raises:
        ValueError: as `ResNeXt`, and if the repository has no network that
            this package builds, or if its licence needs
            `accept_noncommercial=True`.
        ConnectionError: if it can't be downloaded.
        ImportError: if `huggingface_hub` is not installed.
    """
    hub = f"hf://{str(repository).removeprefix('hf://')}"
    source = choose(None, hub, accept_noncommercial)
    stored = read(source)
    row = ARCHITECTURES.get(source.architecture)
    if row is None:
        row = _unlisted(source, stored.facts)
    return _build(
        row,
        include_top,
        stored,
        input_tensor,
        input_shape,
        pooling,
        source.classes,
        classifier_activation,
        row.name if name is None else name,
        output_stride,
        zero_gamma,
        stochastic_depth,
    )


def _unlisted(source, facts):
    """Returns the architecture of a network of the family without a row."""
    facts = {k: v for k, v in facts.items() if k != "classes"}
    arguments.require(
        sum(facts["depths"]) <= _MOST_BLOCKS,
        f"A network of the hub must have at most {_MOST_BLOCKS} blocks",
        "Build it with `ResNeXt(depths, weights=path)`.",
        depths=facts["depths"],
    )
    facts = {"anti_aliased": _anti_aliased(source.architecture)} | facts
    return Architecture(source.architecture, None, **facts)


def _anti_aliased(architecture):
    """Tells by its name whether a network is of the AA kind."""
    if architecture in ARCHITECTURES:
        return ARCHITECTURES[architecture].anti_aliased
    # timm's names; what is in none of them may compute in another way.
    family = r"(se)?(wide_)?resne(x?)t(aa)?\d+[a-z]?(_\d+(x\d+d)?)?"
    match = re.fullmatch(family, architecture)
    arguments.require(
        match,
        "The network must be a ResNet or ResNeXt of timm's plain, SE, D, T or "
        "AA kind",
        "See `python -m keras_resnext list`.",
        architecture=architecture,
    )
    return match[4] is not None


def _documented(function, **texts):
    """Completes the arguments in a docstring with those of `ResNeXt`."""

    def sections(doc):
        before, rest = inspect.cleandoc(doc).split("Args:\n", 1)
        listed, after = rest.split("\n\n", 1)
        found = re.split(r"^    (?=\w+:)", listed + "\n", flags=re.M)[1:]
        return before, {text.partition(":")[0]: text for text in found}, after

    if not function.__doc__:  # under `python -OO`
        return function
    before, own, after = sections(function.__doc__.format(**texts))
    _, usual, _ = sections(ResNeXt.__doc__)
    listed = [
        "    " + (own.get(argument) or usual[argument])
        for argument in inspect.signature(function).parameters
    ]
    function.__doc__ = f"{before}Args:\n{''.join(listed)}\n{after}"
    return function


_documented(build)
_documented(from_hub)


def _constructor(architecture):
    """Makes the public function of one row of the registry."""
    row = ARCHITECTURES[architecture]

    def construct(  # noqa: D417
        include_top=True,
        weights="imagenet",
        input_tensor=None,
        input_shape=None,
        pooling=None,
        classes=1000,
        classifier_activation="softmax",
        name=row.name,
        *,
        accept_noncommercial=False,
        output_stride=None,
        zero_gamma=False,
        stochastic_depth=0.0,
    ):
        """Builds {constructor} ({name}).

        Args:
            weights: `"imagenet"` for the most accurate checkpoint whose
                licence allows any use, the tag of another one (`python -m
                keras_resnext list`), the path of a file, `"hf://USER/NAME"`
                or `"hf://USER/NAME@REVISION"` on the Hugging Face hub, or
                `None` for random values.
            accept_noncommercial: Whether a checkpoint may be used whose
                licence forbids commercial use.

        Returns:
            A functional `keras.Model` of {num_params:,} trainable parameters
            (with {classes:,} classes), as `keras_resnext.ResNeXt`.

        Raises:
            ValueError: as `ResNeXt`, and if the tag is unknown or its licence
                needs `accept_noncommercial=True`.
            FileNotFoundError, ImportError: as `ResNeXt`.
            ConnectionError: if a checkpoint can't be downloaded; the message
                says where to put the file by hand.
        """
        return _build(
            row,
            include_top,
            choose(row.name, weights, accept_noncommercial),
            input_tensor,
            input_shape,
            pooling,
            classes,
            classifier_activation,
            name,
            output_stride,
            zero_gamma,
            stochastic_depth,
        )

    construct.__name__ = construct.__qualname__ = row.constructor
    return _documented(construct, **dataclasses.asdict(row))


ResNeXt50 = _constructor("resnext50_32x4d")
ResNeXt50D = _constructor("resnext50d_32x4d")
ResNeXt101 = _constructor("resnext101_32x4d")
ResNeXt101_32x8d = _constructor("resnext101_32x8d")
ResNeXt101_64x4d = _constructor("resnext101_64x4d")
ResNeXt101_32x16d = _constructor("resnext101_32x16d")
ResNeXt101_32x32d = _constructor("resnext101_32x32d")
ResNeXt101_32x48d = _constructor("resnext101_32x48d")
ResNeXt152 = _constructor("resnext152_32x4d")
SEResNeXt26D = _constructor("seresnext26d_32x4d")
SEResNeXt26T = _constructor("seresnext26t_32x4d")
SEResNeXt50 = _constructor("seresnext50_32x4d")
SEResNeXt101 = _constructor("seresnext101_32x4d")
SEResNeXt101_32x8d = _constructor("seresnext101_32x8d")
SEResNeXt101_64x4d = _constructor("seresnext101_64x4d")
SEResNeXt101D_32x8d = _constructor("seresnext101d_32x8d")
SEResNeXtAA101D_32x8d = _constructor("seresnextaa101d_32x8d")
SEResNeXtAA201D_32x8d = _constructor("seresnextaa201d_32x8d")
LegacySEResNeXt26 = _constructor("legacy_seresnext26_32x4d")
LegacySEResNeXt50 = _constructor("legacy_seresnext50_32x4d")
LegacySEResNeXt101 = _constructor("legacy_seresnext101_32x4d")
ResNet18 = _constructor("resnet18")
ResNet34 = _constructor("resnet34")
ResNet50 = _constructor("resnet50")
ResNet50D = _constructor("resnet50d")
ResNet101 = _constructor("resnet101")
ResNet152 = _constructor("resnet152")
SEResNet50 = _constructor("seresnet50")
WideResNet50_2 = _constructor("wide_resnet50_2")
WideResNet101_2 = _constructor("wide_resnet101_2")


@_documented
def ResNeXt29(  # noqa: D417
    include_top=True,
    weights="cifar10",
    input_tensor=None,
    input_shape=None,
    pooling=None,
    classes=10,
    classifier_activation="softmax",
    name="resnext29",
    *,
    groups=None,
    width_per_group=None,
    planes=None,
    accept_noncommercial=False,
    output_stride=None,
    zero_gamma=False,
    stochastic_depth=0.0,
):
    """Builds the paper's ResNeXt-29 for images of about 32x32 pixels.

    Args:
        weights: `"cifar10"` for the weights that ship with the package, the
            path of a file, `"hf://USER/NAME"` on the Hugging Face hub, or
            `None` for random values.
        input_shape: Shape of one image, `(32, 32, 3)` by default; other sizes
            and `None` work as well.
        groups: The paper's cardinality, 8 or 16 there; by default that of the
            weights, or 32.
        width_per_group: The paper's width, 64 there; by default that of the
            weights, or 4.
        planes: As in `ResNeXt`; by default those of the weights, or 64.
        accept_noncommercial: As in the other constructors.
        output_stride: `None` or 4, the network's own.

    Returns:
        A functional `keras.Model`, as `keras_resnext.ResNeXt`.

    Raises:
        ValueError, FileNotFoundError, ConnectionError, ImportError: as
            `ResNeXt`.

    Source: section 5.3 of the paper.
    """
    row = ARCHITECTURES["resnext29"]
    stored = read(choose(row.name, weights, accept_noncommercial))
    facts = dataclasses.asdict(row)
    if stored and stored.facts.get("depths") == row.depths:
        facts |= stored.facts
    given = {
        "groups": groups,
        "width_per_group": width_per_group,
        "planes": planes,
    }
    row = dataclasses.replace(
        row,
        **{k: facts[k] if v is None else v for k, v in given.items()},
    )
    return _build(
        row,
        include_top,
        stored,
        input_tensor,
        input_shape,
        pooling,
        classes,
        classifier_activation,
        name,
        output_stride,
        zero_gamma,
        stochastic_depth,
    )
