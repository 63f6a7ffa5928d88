"""Reads a weight file of any format into arrays, and runs nothing in it."""

import collections
import io
import json
import math
import pathlib
import re
import struct
import zipfile

import h5py
import numpy as np
import safetensors

from keras_resnext.weights import torch_files

_CONVOLUTION = ("kernel", "bias")
_NORMALIZATION = ("gamma", "beta", "moving_mean", "moving_variance")
_VARIABLES = {
    "conv2d": _CONVOLUTION,
    "depthwise_conv2d": _CONVOLUTION,
    "grouped_conv2d": _CONVOLUTION,
    "dense": _CONVOLUTION,
    "batch_normalization": _NORMALIZATION,
}

# The setting of a layer that decides whether it has the variable.
_SWITCHES = {"gamma": "scale", "beta": "center"}

_SAFETENSORS_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


def read(path, layers=None):
    """Reads a checkpoint, whose format its content decides, not its name.

    The formats are PyTorch's (`.pth`, both the zip of today and the one
    before PyTorch 1.6), `.safetensors`, and Keras' `.keras`, `.weights.h5`
    and the `.h5` of Keras 2. Code in a file is never run, links in it are
    never followed, and its arrays cannot claim more bytes than it has. But
    libhdf5 is no match for a hostile HDF5 file: it may crash, or take 4 GB.

    Args:
        path: path of the file.
        layers: what `rename_keras_variables` takes, for a `.weights.h5`
            without layer names. Keras writes them, at least since 3.10, and
            then they count.

    Returns:
        Dictionary from name to array, which may be read-only. bfloat16 becomes
        float32; other types stay. PyTorch's names are those of the state
        dict (`layer1.0.conv1.weight`), which is `torch_files.WRAPPERS[0]`
        or a later one where the file has several, without `module.` and
        `_orig_mod.`. Keras' names are `<layer>/<variable>`
        (`conv1_bn/gamma`), or the path in the file (`layers/foo/vars/0`)
        where it has no names.

    Raises:
        FileNotFoundError: if there is no such file, or it is a folder.
        ValueError: if the file is of another format, incomplete, or holds
            anything but plain data.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"`path` must be an existing file. Received: path={path}. "
            "Download the file, or correct the path."
        )
    with path.open("rb") as file:
        head = file.read(20)
    kind, reader = _format(path, head)
    try:
        return reader(path, layers)
    except Exception as error:  # damage surfaces anywhere in three libraries
        reason = str(error).strip(".") or type(error).__name__
        raise ValueError(
            f"A checkpoint must be a complete {kind} file with nothing but "
            f"arrays. Received: path={path} ({reason}). Download it again, or "
            "save only the weights of the model again."
        ) from error


def rename_keras_variables(arrays, layers):
    """Names the arrays of a Keras file after the layers of its model.

    Keras numbers the layers of each class, in the model's order, and the
    variables of each layer: `layers/conv2d_1/vars/0`.

    Args:
        arrays: dictionary from such a path to an array.
        layers: list of (class name, layer name, variables), all layers of the
            model in order. `variables` is the list of variable names or, for
            a model within the model, its own list of such triples.

    Returns:
        Dictionary from `<layer>/<variable>` to the same arrays. Arrays that
        belong to none of the layers keep their path.

    Raises:
        ValueError: if two arrays get the same name.

    Source:
        `_save_container_state` in `keras/src/saving/saving_lib.py`.
    """
    return _rename(arrays, _numbered(layers))


def depthwise_to_grouped(kernel, groups):
    """Turns the grouped convolution of keras-applications into a true one.

    Its ResNeXt computes, for every input channel, one output for each channel
    of the group, and then adds up the outputs of a group:
    `grouped[:, :, a, g * c + m] = kernel[:, :, g * c + a, m]`.

    Args:
        kernel: DepthwiseConv2D kernel of shape (height, width, groups * c, c)
            with c channels per group.
        groups: number of groups.

    Returns:
        Conv2D kernel of shape (height, width, c, groups * c), for
        `groups=groups`.

    Raises:
        ValueError: if the shape of the kernel does not fit the groups.

    Source:
        `block3` in `keras_applications/resnet_common.py`,
        https://github.com/keras-team/keras-applications.
    """
    shape = np.shape(kernel)
    if len(shape) != 4 or shape[2] != groups * shape[3]:
        raise ValueError(
            "`kernel` must have the shape (height, width, groups * c, c). "
            f"Received: kernel.shape={shape}, groups={groups}. Pass the "
            "`depthwise_kernel` and the number of groups of its layer."
        )
    height, width, filters, channels = shape
    kernel = np.reshape(kernel, (height, width, groups, channels, channels))
    kernel = np.transpose(kernel, (0, 1, 3, 2, 4))
    return np.reshape(kernel, (height, width, channels, filters))


def _format(path, head):
    if head.startswith(b"PK\x03\x04"):
        return "PyTorch or Keras", _read_zip
    if head[2:14] == b"\x8a\x0a" + torch_files.LEGACY_MAGIC:
        return "PyTorch", _read_legacy_torch
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "Keras HDF5", _read_h5
    if head[8:9] == b"{":
        return "safetensors", _read_safetensors
    raise ValueError(
        "A checkpoint must be a PyTorch, safetensors or Keras file. Received: "
        f"path={path}, which begins with {head!r}. Check the download."
    )


def _read_zip(path, layers):
    with zipfile.ZipFile(path) as archive:
        # Both writers store without compression, so this refuses no file of
        # theirs, and neither compressed nor overlapping entries can inflate.
        claimed = sum(entry.file_size for entry in archive.infolist())
        if claimed > path.stat().st_size:
            raise ValueError("its entries are compressed or overlap")
        names = archive.namelist()
        if any(name.endswith("data.pkl") for name in names):
            return _strip_wrappers(torch_files.read_zip(archive))
        if "config.json" not in names or "model.weights.h5" not in names:
            raise ValueError("a zip file without weights")
        config = json.loads(archive.read("config.json"))["config"]
        weights = archive.read("model.weights.h5")
    groups = _numbered(_config_layers(config))
    return _read_hdf5(weights, layers, groups)


def _read_legacy_torch(path, layers):
    return _strip_wrappers(torch_files.read_legacy(path.read_bytes()))


def _read_h5(path, layers):
    return _read_hdf5(path.read_bytes(), layers, {})


def _read_safetensors(path, layers):
    arrays = {}
    for name, tensor in safetensors.deserialize(path.read_bytes()):
        if tensor["dtype"] not in _SAFETENSORS_DTYPES:
            raise ValueError(f"{tensor['dtype']} is not supported")
        dtype = _SAFETENSORS_DTYPES[tensor["dtype"]]
        array = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
        if tensor["dtype"] == "BF16":
            array = torch_files.bfloat16_to_float32(array)
        arrays[name] = array
    return _strip_wrappers(arrays)


def _strip_wrappers(arrays):
    # DataParallel and torch.compile put the model under these attributes.
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(prefix) for name in arrays):
            arrays = {
                name.removeprefix(prefix): array
                for name, array in arrays.items()
            }
    return arrays


def _read_hdf5(data, layers, groups):
    _check_heaps(data)
    with h5py.File(io.BytesIO(data), "r") as file:
        items = {}
        # Visits hard links only: soft and external links stay unfollowed.
        file.visititems(items.__setitem__)
        datasets = {
            name: item
            for name, item in items.items()
            if isinstance(item, h5py.Dataset)
            and not name.startswith(("optimizer/", "optimizer_weights/"))
        }
        claimed = sum(
            math.prod(item.shape) * item.dtype.itemsize
            for item in datasets.values()
        )
        if claimed > len(data):
            raise ValueError("its datasets are compressed or incomplete")
        arrays = {name: _array(item) for name, item in datasets.items()}
        groups = groups or _named(items)
        # Names beyond 64 kB are split over attributes with numbers.
        is_keras2 = any(
            {"layer_names", "layer_names0"} & set(group.attrs)
            for group in (file, items.get("model_weights", file))
        )
    if is_keras2:
        return _rename_keras2(arrays)
    return _rename(arrays, groups or _numbered(layers or ()))


def _check_heaps(data):
    """Refuses damage in the texts of a file, on which libhdf5 never returns.

    Source: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html
    section III.E, global heap: it follows the sizes of objects, even of 0.
    """
    if (data[13:15] if data[8] < 2 else data[9:11]) != b"\x08\x08":
        raise ValueError("its offsets and lengths are not 8 bytes long")
    signature = b"GCOL\x01\0\0\0"
    start = data.find(signature)
    while start >= 0:
        size = int.from_bytes(data[start + 8 : start + 16], "little")
        end = start + size
        if end > len(data):
            raise ValueError("it ends within its texts")
        start += 16
        while start + 16 <= end:
            index, size = struct.unpack_from("<H6xQ", data, start)
            step = 16 + -(-size // 8) * 8 if index else size
            if not 16 <= step <= end - start:
                raise ValueError("its texts are damaged")
            start += step
        start = data.find(signature, start)


def _array(dataset):
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name} refers to another file")
    if dataset.dtype == "V2" and _text(dataset, "dtype") == "bfloat16":
        return torch_files.bfloat16_to_float32(dataset[()].view("<u2"))
    if dataset.dtype.kind not in "fiub":
        raise ValueError(f"{dataset.name} holds {dataset.dtype}")
    return np.asarray(dataset[()])


def _text(item, attribute):
    # libhdf5 crashes on the damaged type of what should be a text.
    if attribute not in item.attrs:
        return None
    found = item.attrs.get_id(attribute)
    is_text = isinstance(found.get_type(), h5py.h5t.TypeStringID)
    value = item.attrs[attribute] if is_text and found.shape == () else None
    return value.decode() if isinstance(value, bytes) else value


def _config_layers(config):
    for layer in config.get("layers", ()):
        class_name, inner = layer["class_name"], layer["config"]
        if "layers" in inner:
            variables = list(_config_layers(inner))
        else:
            variables = [
                name
                for name in _VARIABLES.get(_snake_case(class_name), ())
                if inner.get(_SWITCHES.get(name), True)
            ]
        yield class_name, inner["name"], variables


def _numbered(layers, prefix="layers/"):
    """Maps each group of variables to its layer and their names."""
    groups, counts = {}, collections.Counter()
    for class_name, name, variables in layers:
        kind = _snake_case(class_name)
        group = f"{prefix}{kind}_{counts[kind]}".removesuffix("_0")
        counts[kind] += 1
        if variables and not isinstance(variables[0], str):
            groups |= _numbered(variables, f"{group}/layers/")
        else:
            groups[group] = (name, variables)
    return groups


def _named(items):
    """Maps the groups that carry the name of their layer, as `_numbered`."""
    groups = {}
    for path, item in items.items():
        match = re.fullmatch(r"((?:.+/)?layers/(\w+?)(?:_\d+)?)/vars", path)
        name = _text(item, "name") if match else None
        if name:
            group, kind = match.groups()
            variables = _VARIABLES.get(kind, ())
            # Without gamma or beta, the numbers do not say which is which.
            if kind == "batch_normalization" and len(item) != 4:
                variables = ()
            groups[group] = (name, variables)
    return groups


def _snake_case(name):
    # Source: `to_snake_case` in `keras/src/utils/naming.py`.
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _rename(arrays, groups):
    pairs = []
    for path, array in arrays.items():
        group, _, index = path.rpartition("/vars/")
        name, variables = groups.get(group, (f"{group}/vars", ()))
        if index.isdecimal() and int(index) < len(variables):
            index = variables[int(index)]
        pairs.append((f"{name}/{index}" if group else path, array))
    return _unique(pairs)


def _rename_keras2(arrays):
    # `<layer>/.../<variable>:0`. A layer that is a model itself has several
    # variables of a name: there the group next to the variable counts.
    paths = {
        name: name.removeprefix("model_weights/").removesuffix(":0").split("/")
        for name in arrays
    }
    counts = collections.Counter((path[0], path[-1]) for path in paths.values())
    models = {layer for (layer, _), count in counts.items() if count > 1}
    return _unique(
        (f"{path[-2 if path[0] in models else 0]}/{path[-1]}", arrays[name])
        for name, path in paths.items()
    )


def _unique(pairs):
    arrays = {}
    for name, array in pairs:
        if name in arrays:
            raise ValueError(
                "Every array must have a name of its own. Received: "
                f"name={name!r} twice. Give each layer another name."
            )
        arrays[name] = array
    return arrays
