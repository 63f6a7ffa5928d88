"""Runs the blocks of Python in README and docs, each page in its own folder.

A page's blocks share their names. Networks of ImageNet are narrow ones with
random weights, so that nothing is downloaded: what a page says of the answers
is not tested here, but that it runs.
"""

import contextlib
import functools
import pathlib
import shutil
import tempfile

import pytest

try:
    import sybil
    from sybil.parsers import markdown
except ImportError:
    sybil = None


def _narrow(make, **options):
    """Makes what stands for ResNeXt-50: the same stages, of one block each."""
    import keras_resnext
    from keras_resnext.commands import random_weights
    from keras_resnext.export.formats import PICTURES

    if not options.get("include_top", True):
        return make((1, 1, 1, 1), 2, 4, **(options | {"weights": None}))
    transform = keras_resnext.eval_transform("resnext50_32x4d")
    side = transform.checkpoint.crop
    options = {"input_shape": (side, side, 3)} | options | {"weights": None}
    model = make((1, 1, 1, 1), 2, 4, **options)
    if model.input_shape[1] == side:
        random_weights.fill(model, transform(PICTURES))
    return model


def _setup(namespace):
    import keras_resnext  # first: it asks TensorFlow for oneDNN

    if keras_resnext.layers.keras.backend.backend() != "tensorflow":
        pytest.skip("the docs export, which is TensorFlow's")
    pictures = pathlib.Path(keras_resnext.__file__).with_name("pictures")
    stack = namespace["_stack"] = contextlib.ExitStack()
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    stack.enter_context(contextlib.chdir(folder))
    shutil.copytree(pictures, "pictures")
    shutil.copy(pictures / "chelsea.jpg", "elephant.jpg")
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setattr(
        keras_resnext,
        "ResNeXt50",
        functools.partial(_narrow, keras_resnext.ResNeXt),
    )


def _teardown(namespace):
    if "_stack" in namespace:
        namespace["_stack"].close()


if sybil is None:

    def pytest_report_header():
        """Says why these are not among the tests."""
        return "without the blocks of README and docs: pip install '.[test]'"
else:
    pytest_collect_file = sybil.Sybil(
        parsers=[markdown.PythonCodeBlockParser(), markdown.SkipParser()],
        patterns=["README.md", "docs/*.md"],
        setup=_setup,
        teardown=_teardown,
    ).pytest()
