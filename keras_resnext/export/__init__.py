"""Ships models: folds them, writes every format, proves what it wrote."""

from keras_resnext.export.artifact import Report, export
from keras_resnext.export.folding import fold
