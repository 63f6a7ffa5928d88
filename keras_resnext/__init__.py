"""ResNeXt for Keras 3: exact, fast, with the public weights."""

import importlib.util
import pathlib
import sys

from keras_resnext import processor

__version__ = "0.2.0.dev0"

processor.use_onednn()  # before Keras loads TensorFlow


def _loads_keras_later():
    """Tells whether the program loads Keras itself, if it needs it.

    Keras takes seconds: `keras-resnext list` is to answer at once, and a
    client of a server or a benchmark of other engines has no use for it. Such
    a script says `__keras_later__ = True` before it imports this package.
    """
    program = pathlib.Path(*sys.argv[:1]).stem
    if program == "-m":  # until the module has been found that is to run
        module = sys.orig_argv.index("-m") + 1 if "-m" in sys.orig_argv else 0
        return sys.orig_argv[module] == "keras_resnext"
    return program == "keras-resnext" or any(
        hasattr(sys.modules.get(main), "__keras_later__")
        for main in ("__main__", "__mp_main__")  # the latter in its children
    )


# At once for everyone else: Keras finds the layers of a file that it loads
# only where they have been imported.
if not _loads_keras_later():
    from keras_resnext.api import *  # noqa: F403
    from keras_resnext.api import __all__


def __getattr__(name):
    """Loads a module, or Keras and all public names, at the first use."""
    if name.startswith("__") and name != "__all__":
        raise AttributeError(f"No attribute {name} in {__name__}.")
    if importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module(f"{__name__}.api"), name)


def __dir__():
    """Returns the public names."""
    return sorted([*__getattr__("__all__"), "__version__"])
