"""Builds ResNeXt and ResNet as functional Keras models."""

import keras
import numpy as np
from keras import layers

from keras_resnext import arguments
from keras_resnext.layers import BatchNormalization, GroupedConv2D
from keras_resnext.registry import ARCHITECTURES
from keras_resnext.weights import cardinality, choose, load, locate

_PLANES = 64  # of the first stage; every further stage doubles them


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
    conv = layers.Conv2D if groups == 1 else GroupedConv2D
    x = conv(
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


def _residual(x, branch, filters, stride, name, drop):
    """Adds `branch` to `x`, projected where the shapes differ."""
    if stride > 1 or x.shape[_channel_axis()] != filters:
        x = conv_bn(x, filters, 1, f"{name}_0", stride, activation=None)
    if drop:
        # One draw for each image: all of its branch or nothing.
        branch = layers.Dropout(
            drop, noise_shape=(None, 1, 1, 1), name=f"{name}_drop"
        )(branch)
    x = layers.Add(name=f"{name}_add")([x, branch])
    return layers.Activation("relu", name=f"{name}_out")(x)


def bottleneck(
    x, planes, name, stride, groups, width_per_group, dilation, gamma, drop=0.0
):
    """Adds a 1x1, a grouped 3x3 and a 1x1 convolution to the input.

    With `groups=1, width_per_group=64` this is ResNet's block, with 32 and 4
    ResNeXt's. The 3x3 convolution has `planes * width_per_group // 64 *
    groups` channels, the output `4 * planes`.

    Source: torchvision's `Bottleneck`, which puts the stride on the 3x3
    convolution; Xie et al., https://arxiv.org/abs/1611.05431, figure 3(c).
    """
    width = planes * width_per_group // 64 * groups
    y = conv_bn(x, width, 1, f"{name}_1")
    y = conv_bn(y, width, 3, f"{name}_2", stride, groups, dilation)
    y = conv_bn(y, 4 * planes, 1, f"{name}_3", activation=None, gamma=gamma)
    return _residual(x, y, 4 * planes, stride, name, drop)


def basic(
    x, planes, name, stride, groups, width_per_group, dilation, gamma, drop=0.0
):
    """Adds two 3x3 convolutions of `planes` channels to the input."""
    y = conv_bn(x, planes, 3, f"{name}_1", stride, dilation=dilation)
    y = conv_bn(y, planes, 3, f"{name}_2", activation=None, gamma=gamma)
    return _residual(x, y, planes, stride, name, drop)


_BLOCKS = {"bottleneck": bottleneck, "basic": basic}


def _stem(x, stem):
    if stem == "cifar":
        return conv_bn(x, _PLANES, 3, "conv1")
    x = conv_bn(x, _PLANES, 7, "conv1", stride=2)
    # Zeros are as good as PyTorch's minus infinity: they follow a ReLU.
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return layers.MaxPooling2D(3, 2, name="pool1_pool")(x)


def _stages(x, block, depths, stem, output_stride, drop, **block_options):
    """Stacks the blocks; a stride past `output_stride` becomes dilation.

    The rate of stochastic depth rises linearly, to `drop` in the last block.
    """
    reached, dilation = arguments.STEM_STRIDE[stem], 1
    rates = iter(np.linspace(0, drop, sum(depths) + 1)[1:].tolist())
    for stage, depth in enumerate(depths):
        stride, first_dilation = (2 if stage else 1), dilation
        if stride == 2 and reached == output_stride:
            stride, dilation = 1, 2 * dilation
        reached *= stride
        for i in range(depth):
            x = _BLOCKS[block](
                x,
                _PLANES << stage,
                f"conv{stage + 2}_block{i + 1}",
                stride=1 if i else stride,
                dilation=dilation if i else first_dilation,
                drop=next(rates),
                **block_options,
            )
    return x


def classifier(x, classes, activation):
    """Adds the last layer, `predictions`, to vectors."""
    return layers.Dense(
        int(classes),  # Keras refuses NumPy's integers
        activation=activation,
        # float32 under mixed precision: softmax overflows in float16
        dtype=keras.config.dtype_policy().variable_dtype,
        name="predictions",
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
    block="bottleneck",
    stem="imagenet",
    output_stride=None,
    zero_gamma=False,
    stochastic_depth=0.0,
):
    """Builds a ResNeXt or ResNet of any depth, cardinality and width.

    Inputs are images that `keras_resnext.preprocess_input` has normalised,
    float, `(batch, height, width, channels)` or, where Keras is configured so
    and the backend can, `(batch, channels, height, width)`.

    Args:
        depths: Numbers of blocks, one for each stage; the first stage has 64
            planes, every further one twice as many at half the resolution.
        groups: The paper's cardinality.
        width_per_group: The paper's bottleneck width, for 64 planes.
        include_top: Whether to end with average pooling and a classifier.
        weights: `None` for random values, or the path of a file. The named
            constructors take tags, too.
        input_tensor: Keras tensor to use as the images, or `None`.
        input_shape: Shape of one image. Sizes may be `None`. With a top it
            defaults to `(224, 224, 3)`, or `(32, 32, 3)` for `stem="cifar"`,
            without one to `(None, None, 3)`.
        pooling: Without a top: `None` for feature maps, `"avg"` or `"max"`
            for a vector of each image.
        classes: Number of classes; with pretrained weights as in the file.
        classifier_activation: Activation of the classifier; `None` returns
            logits.
        name: Name of the model.
        block: `"bottleneck"`, or `"basic"` as in ResNet-18 and -34.
        stem: `"imagenet"` (7x7 convolution and pooling, together stride 4) or
            `"cifar"` (3x3 convolution, stride 1).
        output_stride: Ratio of the image's size to that of the last feature
            map, 8, 16 or by default 32: strides beyond it become dilation.
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
        output is `(batch, classes)` float32 probabilities or logits, or
        `(batch, channels)` or `(batch, height, width, channels)` features.

    Raises:
        ValueError: if an argument is out of its range, or if the weights do
            not fit the network in name, shape or number.
        FileNotFoundError: if the file of weights does not exist.

    Source: Xie et al., "Aggregated Residual Transformations for Deep Neural
    Networks", https://arxiv.org/abs/1611.05431.
    """
    stride = arguments.check_structure(
        depths, groups, width_per_group, block, stem
    )
    arguments.check_output_stride(output_stride, stride, block, stem)
    arguments.check_rate("stochastic_depth", stochastic_depth)
    arguments.check_top(
        include_top, pooling, classes, classifier_activation, weights
    )
    if input_tensor is None:
        input_tensor = keras.Input(
            arguments.check_input_shape(
                input_shape, include_top, stem, stride, weights
            )
        )
    else:
        arguments.require(
            keras.utils.is_keras_tensor(input_tensor),
            "`input_tensor` must be a Keras tensor",
            "Make one with `keras.Input`, or call the model on the array.",
            input_tensor=type(input_tensor).__name__,
        )
        arguments.check_input_shape(
            input_tensor.shape[1:], include_top, stem, stride, weights
        )
    path = locate(weights)

    x = _stem(input_tensor, stem)
    x = _stages(
        x,
        block,
        depths,
        stem,
        output_stride,
        stochastic_depth,
        groups=groups,
        width_per_group=width_per_group,
        gamma="zeros" if zero_gamma else "ones",
    )
    x = _top(x, include_top, pooling, classes, classifier_activation)
    if path is not None:
        # Only the layers made here: `input_tensor` may have others before.
        load(keras.Model(input_tensor, x), path)
    inputs = keras.utils.get_source_inputs(input_tensor)
    return keras.Model(inputs[0] if len(inputs) == 1 else inputs, x, name=name)


def _constructor(architecture):
    """Makes the public function of one row of the registry."""
    row = ARCHITECTURES[architecture]

    def construct(
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
        **options,
    ):
        return ResNeXt(
            row.depths,
            row.groups,
            row.width_per_group,
            include_top,
            choose(row.name, weights, accept_noncommercial),
            input_tensor,
            input_shape,
            pooling,
            classes,
            classifier_activation,
            name,
            block=row.block,
            stem=row.stem,
            **options,
        )

    construct.__name__ = construct.__qualname__ = row.constructor
    construct.__doc__ = f"""Builds {row.constructor} ({row.name}).

    Args:
        include_top: As in `keras_resnext.ResNeXt`, like all arguments below
            that are not described here.
        weights: `"imagenet"` for the best checkpoint whose licence allows any
            use, the tag of another one (`python -m keras_resnext list`), the
            path of a file, or `None` for random values.
        input_tensor: See `ResNeXt`.
        input_shape: See `ResNeXt`.
        pooling: See `ResNeXt`.
        classes: See `ResNeXt`.
        classifier_activation: See `ResNeXt`.
        name: Name of the model; it selects no file.
        accept_noncommercial: Whether a checkpoint may be used whose licence
            forbids commercial use.
        **options: `output_stride`, `zero_gamma` and `stochastic_depth` of
            `ResNeXt`.

    Returns:
        A functional `keras.Model` of {row.num_params:,} parameters (with
        {row.classes:,} classes), as `keras_resnext.ResNeXt`.

    Raises:
        ValueError: as `ResNeXt`, and if the tag is unknown or its licence
            needs `accept_noncommercial=True`.
        ConnectionError: if a checkpoint can't be downloaded; the message says
            where to put the file by hand.
    """
    return construct


ResNeXt50 = _constructor("resnext50_32x4d")
ResNeXt101 = _constructor("resnext101_32x4d")
ResNeXt101_32x8d = _constructor("resnext101_32x8d")
ResNeXt101_64x4d = _constructor("resnext101_64x4d")
ResNeXt101_32x16d = _constructor("resnext101_32x16d")
ResNeXt101_32x32d = _constructor("resnext101_32x32d")
ResNeXt101_32x48d = _constructor("resnext101_32x48d")
ResNeXt152 = _constructor("resnext152_32x4d")
ResNet18 = _constructor("resnet18")
ResNet34 = _constructor("resnet34")
ResNet50 = _constructor("resnet50")
ResNet101 = _constructor("resnet101")
ResNet152 = _constructor("resnet152")
WideResNet50_2 = _constructor("wide_resnet50_2")
WideResNet101_2 = _constructor("wide_resnet101_2")


def ResNeXt29(
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
    accept_noncommercial=False,
    **options,
):
    """Builds the paper's ResNeXt-29 for images of about 32x32 pixels.

    Args:
        include_top: As in `keras_resnext.ResNeXt`, like all arguments below
            that are not described here.
        weights: `"cifar10"` for the weights that ship with the package, the
            path of a file, or `None` for random values.
        input_tensor: See `ResNeXt`.
        input_shape: See `ResNeXt`; `(32, 32, 3)` by default, other sizes
            and `None` work as well.
        pooling: See `ResNeXt`.
        classes: See `ResNeXt`.
        classifier_activation: See `ResNeXt`.
        name: Name of the model.
        groups: The paper's cardinality, 8 or 16 there; by default that of the
            weights, or 16.
        width_per_group: The paper's width, 64 there; by default that of the
            weights, or 4.
        accept_noncommercial: As in the other constructors; no weights need it.
        **options: `zero_gamma` and `stochastic_depth` of `ResNeXt`.

    Returns:
        A functional `keras.Model`, as `keras_resnext.ResNeXt`.

    Raises:
        ValueError: as `ResNeXt`.

    Source: section 5.3 of the paper.
    """
    row = ARCHITECTURES["resnext29"]
    weights = choose(row.name, weights, accept_noncommercial)
    if groups is None or width_per_group is None:
        found = cardinality(weights) or (row.groups, row.width_per_group)
        groups = found[0] if groups is None else groups
        if width_per_group is None:
            width_per_group = found[1]
    return ResNeXt(
        row.depths,
        groups,
        width_per_group,
        include_top,
        weights,
        input_tensor,
        input_shape,
        pooling,
        classes,
        classifier_activation,
        name,
        block=row.block,
        stem=row.stem,
        **options,
    )
