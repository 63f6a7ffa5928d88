"""ResNeXt for Keras 3: exact, fast, with the public weights."""

from keras_resnext import layers, registry, transfer, weights
from keras_resnext.preprocessing import (
    decode_predictions,
    eval_transform,
    preprocess_input,
)
from keras_resnext.resnext import (
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    ResNeXt,
    ResNeXt29,
    ResNeXt50,
    ResNeXt101,
    ResNeXt101_32x8d,
    ResNeXt101_32x16d,
    ResNeXt101_32x32d,
    ResNeXt101_32x48d,
    ResNeXt101_64x4d,
    ResNeXt152,
    WideResNet50_2,
    WideResNet101_2,
)

__version__ = "0.1.0"
