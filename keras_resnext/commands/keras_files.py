"""Loads the network of a .keras file, which may be anybody's."""

import concurrent.futures
import math
import re
import zipfile

import keras

from keras_resnext.weights import unread

# Before it a file can have Keras run code (CVE-2025-9906, CVE-2025-49655,
# CVE-2026-1462), or read any other file (CVE-2025-12058).
_SAFE_KERAS = (3, 13, 2)


def load(file):
    """Returns the network of a .keras file.

    Keras runs no code in it, and it takes no more memory than it has numbers
    for: `_check_size`.

    Args:
        file: `pathlib.Path` of it.

    Raises:
        ValueError: If it cannot be read, or Keras would run what is in it.
        OSError: If there is no such file.
    """
    with open(file, "rb"):  # says why, if it cannot be
        pass
    found = tuple(map(int, re.findall(r"\d+", keras.__version__)[:3]))
    if found < _SAFE_KERAS:
        raise ValueError(
            f"Keras {'.'.join(map(str, _SAFE_KERAS))} or newer is required to "
            "load a .keras file: older ones may run code in it. Received: "
            f"Keras {keras.__version__}. Upgrade it: `pip install -U keras`."
        )
    try:
        _check_size(file)
        return keras.models.load_model(file, compile=False)
    except MemoryError:
        raise
    except Exception as error:  # Keras raises a dozen different ones.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        advice = getattr(
            error, "advice", "Write it again, or pass another one."
        )
        raise ValueError(
            "A .keras file that Keras can load is required. Received: "
            f"{file} ({reason}). {advice}"
        ) from error


def _check_size(file):
    """Refuses a network of more numbers than its file has bytes.

    Keras makes all variables before it reads the first one, and a small file
    may describe large ones.
    """
    size = file.stat().st_size
    with zipfile.ZipFile(file) as archive:
        unread.check_stored(archive, size)
        with archive.open("config.json") as entry:
            config = unread.parse(entry)
    config["compile_config"] = None  # which may have what is not here
    # In a thread, to which what Keras would still initialise is bound.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        numbers = pool.submit(_count_numbers, config).result()
    if numbers > size:
        raise ValueError(
            f"its network has {numbers:,} numbers, and the file {size:,} bytes"
        )


def _count_numbers(config):
    """Builds a network whose variables have shapes and no values."""
    with keras.StatelessScope(initialize_variables=False):
        model = keras.saving.deserialize_keras_object(config, safe_mode=True)
    return sum(math.prod(variable.shape) for variable in model.variables)
