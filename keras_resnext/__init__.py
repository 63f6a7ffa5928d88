"""ResNeXt for Keras 3: exact, fast, with the public weights."""

import pathlib
import sys

from keras_resnext import processor

__version__ = "0.1.0"
__all__ = [
    "LegacySEResNeXt26",
    "LegacySEResNeXt50",
    "LegacySEResNeXt101",
    "ResNeXt",
    "ResNeXt29",
    "ResNeXt50",
    "ResNeXt50D",
    "ResNeXt101",
    "ResNeXt101_32x8d",
    "ResNeXt101_32x16d",
    "ResNeXt101_32x32d",
    "ResNeXt101_32x48d",
    "ResNeXt101_64x4d",
    "ResNeXt152",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet50D",
    "ResNet101",
    "ResNet152",
    "SEResNeXt26D",
    "SEResNeXt26T",
    "SEResNeXt50",
    "SEResNeXt101",
    "SEResNeXt101D_32x8d",
    "SEResNeXt101_32x8d",
    "SEResNeXt101_64x4d",
    "SEResNeXtAA101D_32x8d",
    "SEResNeXtAA201D_32x8d",
    "SEResNet50",
    "WideResNet50_2",
    "WideResNet101_2",
    "build",
    "decode_predictions",
    "eval_transform",
    "export",
    "from_hub",
    "layers",
    "preprocess_input",
    "registry",
    "transfer",
    "weights",
]

processor.use_onednn()  # before Keras loads TensorFlow

# The command line imports what its command needs: `list` is to answer at once,
# and Keras takes seconds. "-m" is the program's name until its module, which
# is ours then, has been found.
if pathlib.Path(*sys.argv[:1]).stem not in (
    *("-m", "keras-resnext"),
    "serving_client",  # which the server has all of this for
):
    from keras_resnext import export, layers, registry, transfer, weights
    from keras_resnext.preprocessing import (
        decode_predictions,
        eval_transform,
        preprocess_input,
    )
    from keras_resnext.resnext import (
        LegacySEResNeXt26,
        LegacySEResNeXt50,
        LegacySEResNeXt101,
        ResNet18,
        ResNet34,
        ResNet50,
        ResNet50D,
        ResNet101,
        ResNet152,
        ResNeXt,
        ResNeXt29,
        ResNeXt50,
        ResNeXt50D,
        ResNeXt101,
        ResNeXt101_32x8d,
        ResNeXt101_32x16d,
        ResNeXt101_32x32d,
        ResNeXt101_32x48d,
        ResNeXt101_64x4d,
        ResNeXt152,
        SEResNet50,
        SEResNeXt26D,
        SEResNeXt26T,
        SEResNeXt50,
        SEResNeXt101,
        SEResNeXt101_32x8d,
        SEResNeXt101_64x4d,
        SEResNeXt101D_32x8d,
        SEResNeXtAA101D_32x8d,
        SEResNeXtAA201D_32x8d,
        WideResNet50_2,
        WideResNet101_2,
        build,
        from_hub,
    )


def __dir__():
    """Returns the public names."""
    return sorted([*__all__, "__version__"])
