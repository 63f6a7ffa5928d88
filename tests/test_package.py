"""The package as installed: what it needs."""

import os
import subprocess
import sys

import pytest

# An import of TensorFlow fails in the process that runs this first.
WITHOUT_TENSORFLOW = "import sys; sys.modules['tensorflow'] = None\n"


def python(code, **environment):
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_works_without_tensorflow(backend, on_jax):
    pytest.importorskip(backend)
    code = """
import numpy, keras_resnext
model = keras_resnext.ResNeXt(
    (1,), 2, 4, stem="cifar", input_shape=(32, 32, 3), classes=10
)
image = numpy.zeros((1, 32, 32, 3), "uint8")
scores = model.predict(keras_resnext.preprocess_input(image), verbose=0)
print(keras_resnext.decode_predictions(scores, top=1)[0][0][0][:7])
"""
    environment = on_jax | {"KERAS_BACKEND": backend}
    answer = python(WITHOUT_TENSORFLOW + code, **environment)
    assert answer.split()[-1] == "cifar10"
