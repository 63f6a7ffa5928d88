"""Reads a weight file of any format into arrays, and runs nothing in it."""

import collections
import io
import math
import pathlib
import re
import struct
import zipfile

import h5py
import ml_dtypes
import numpy as np
import safetensors

from keras_resnext.weights import torch_files, torch_names
from keras_resnext.weights.torch_files import MAX_NAME
from keras_resnext.weights.unread import (
    MAX_JSON,
    Unread,
    check_stored,
    parse,
    printable,
    short_names,
    unique,
)

_CONVOLUTION = ("kernel", "bias")
_NORMALIZATION = ("gamma", "beta", "moving_mean", "moving_variance")
_VARIABLES = {
    "conv2d": _CONVOLUTION,
    "depthwise_conv2d": _CONVOLUTION,
    "grouped_conv2d": _CONVOLUTION,
    "dense": _CONVOLUTION,
    "batch_normalization": _NORMALIZATION,
    "normalization": ("mean", "variance", "count"),
}

# Also of a model that was compiled before it became a layer.
_OPTIMIZER = re.compile(r"(?:^|/)optimizer/|^optimizer_weights/")

# The setting of a layer that decides whether it has the variable.
_SWITCHES = {"gamma": "scale", "beta": "center"}

# Far above what any network needs, and little enough for a short file to take
# little memory, as `MAX_NAME` is: groups in groups, groups and arrays.
_MAX_DEPTH = 32
_MAX_OBJECTS = 12_000

# Names of one of several files, of which no content tells what is in the
# others, and what makes one file of them.
_PARTS = {
    r"-\d{5}-of-(?!00001)\d{5}": "Load them all, and save their arrays as one "
    "`.safetensors` file.",
    r"\.distcp$|^\.metadata$": "Join them by `python -m torch.distributed."
    "checkpoint.format_utils dcp_to_torch {0} new.pth`.",
    r"zero_pp_rank_\d+_": "Join them by `python {0.parent}/zero_to_fp32.py "
    "{0.parent} new`, which DeepSpeed has put there.",
}

# What begins so is no checkpoint, but something that people take for one.
_FOREIGN = {
    b"<": ("a web page", "Download the file itself"),
    b"PK": ("the beginning of a zip file", "Download it again"),
    b"{": (
        "JSON, as the list of a model's several files",
        "Load these files, as by `safetensors.numpy.load_file`, and save "
        "their arrays together by `save_file`; those of Keras, by the model's "
        "`load_weights`",
    ),
    b"version https://git-lfs": (
        "a pointer of Git LFS",
        "Fetch the file itself with `git lfs pull`",
    ),
    b"\x1f\x8b": ("compressed by gzip", "Unpack it"),
    b"BZh": ("compressed by bzip2", "Unpack it"),
    b"\xfd7zXZ": ("compressed by xz", "Unpack it"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "Unpack it"),
    b"\x93NUMPY": ("a NumPy array", "Save all arrays as `.safetensors`"),
    b"\x80": (
        "a pickle that `torch.save` did not write",
        "Save the arrays as `.safetensors`",
    ),
}


def read(path):
    """Reads a checkpoint, whose format its content decides, not its name.

    The formats are PyTorch's (`.pth`, both the zip of today and the one
    before PyTorch 1.6), `.safetensors`, and Keras' `.keras`, `.weights.h5`
    and the `.h5` of Keras 2. Code in a file is never run, links in it are
    never followed, and its arrays cannot claim more bytes than it has. But
    libhdf5 is no match for every hostile HDF5 file: it may crash.

    Args:
        path: path of the file.

    Returns:
        Dictionary from name to array, which may be read-only. bfloat16 becomes
        float32; other types stay. PyTorch's state dict is
        `torch_files.WRAPPERS[0]`, or a later one where the file has several;
        its names become torchvision's (`layer1.0.conv1.weight`), as
        `torch_names.strip` says. Keras' names are
        `<layer>/<variable>` (`conv1_bn/gamma`), or the path in the file
        (`layers/foo/vars/0`) where it has no names: see
        `rename_keras_variables`. Keras writes them, at least since 3.10.

    Raises:
        FileNotFoundError: if there is no such file, or it is a folder.
        ValueError: if the file is of another format, incomplete, of a kind
            that is not read, or has several networks in it.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"`path` must be an existing file. Received: path={path}. "
            "Download the file, or correct the path."
        )
    with path.open("rb") as file:
        head = file.read(300)
    for pattern, advice in _PARTS.items():
        if re.search(pattern, path.name):
            raise ValueError(
                f"A checkpoint must be one file. Received: path={path}, which "
                f"is one part of several. {advice.format(path.parent)}"
            )
    kind, reader = _format(path, head)
    try:
        return reader(path)
    except UserWarning:  # of `strip`, under `python -W error`: no damage
        raise
    except Exception as error:  # damage surfaces anywhere in three libraries
        reason = printable(str(error).strip("."), 600) or type(error).__name__
        advice = getattr(
            error,
            "advice",
            "Download it again, or save only the weights of the model again.",
        )
        raise ValueError(
            f"A checkpoint must be a complete {kind} file with nothing but "
            f"arrays. Received: path={path} ({reason}). {advice}"
        ) from error


def metadata(path):
    """Returns the texts beside the arrays of a file that `read` has read.

    Returns:
        Dictionary; empty where the file is no `.safetensors`, or has none.
    """
    with path.open("rb") as file:
        if file.read(9)[8:] != b"{":
            return {}
    with safetensors.safe_open(path, "numpy") as file:
        return file.metadata() or {}


def layers(path):
    """Returns the layers of a Keras file that `read` has read.

    Returns:
        Dictionary from the name of a layer, whether or not it has weights, to
        the name of its class, in HDF5 in snake case, and its padding; "" and
        `None` where the file does not say them. Empty for other files.
    """
    with path.open("rb") as file:
        head = file.read(4)
    if head == b"PK\x03\x04":
        with zipfile.ZipFile(path) as archive:
            if _is_torch(archive):
                return {}
            with archive.open("config.json") as file:
                described = dict(_described(parse(file)))
            if "conv2_block1_out" in described:  # a layer of every network
                return described
            # A class of one's own does not describe what is in it.
            weights = io.BytesIO(archive.read("model.weights.h5"))
            return _layers(weights) | described
    return _layers(path) if head == b"\x89HDF" else {}


def _layers(file):
    """Returns the layers that HDF5 names, as `layers`."""
    found = {}

    def keep(place, item):
        group, _, last = place.rpartition("/")
        if last == "vars" and (name := _text(item, "name")):
            found[name] = group.rpartition("/")[2], None
        elif group in ("", "model_weights"):
            found[last] = "", None  # Keras 2

    with h5py.File(file, "r") as opened:
        opened.visititems(keep)
    return found


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


def grouped_from_depthwise(arrays):
    """Turns the grouped convolutions of keras-applications into true ones.

    Its ResNeXt computes, for every input channel, one output for each channel
    of the group, and then adds up the outputs of a group:
    `grouped[:, :, a, g * c + m] = kernel[:, :, g * c + a, m]`.

    Args:
        arrays: dictionary from `layer/variable` to array.

    Returns:
        The dictionary with `<layer>/kernel` for `<layer>/depthwise_kernel`,
        and without the layer `_gconv` behind it, if it has the kernel that
        adds up the groups. What does not fit stays.

    Source:
        `block3` in `keras_applications/resnet_common.py`,
        https://github.com/keras-team/keras-applications, before and after
        its change 85, which added `_gconv`.
    """
    converted = dict(arrays)
    for name, kernel in arrays.items():
        layer, _, variable = name.rpartition("/")
        if (
            variable != "depthwise_kernel"
            or f"{layer}/kernel" in arrays
            or f"{layer}/pointwise_kernel" in arrays  # a `SeparableConv2D`
            or kernel.ndim != 4
            or not kernel.size
            or kernel.shape[2] % kernel.shape[3]
        ):
            continue
        height, width, filters, channels = kernel.shape
        grouped = kernel.reshape(height, width, -1, channels, channels)
        grouped = grouped.transpose(0, 1, 3, 2, 4)
        del converted[name]
        converted[f"{layer}/kernel"] = grouped.reshape(
            height, width, channels, filters
        )
        sums = f"{layer.removesuffix('_conv')}_gconv/kernel"
        if sums in arrays and _adds_up_groups(arrays[sums], *kernel.shape[2:]):
            del converted[sums]
    return converted


def _adds_up_groups(kernel, filters, channels):
    """Whether a 1x1 kernel is `block3`'s constant: `[g, a, m, g, m] = 1`."""
    if kernel.shape != (1, 1, filters * channels, filters):
        return False
    groups = filters // channels
    kernel = kernel.reshape(groups, channels, channels, groups, channels)
    g, m = np.ogrid[:groups, :channels]
    ones = kernel[g, :, m, g, m]
    return np.count_nonzero(kernel) == ones.size and (ones == 1).all()


def _format(path, head):
    if head.startswith(b"PK\x03\x04"):
        return "PyTorch or Keras", _read_zip
    if (
        head[:1] == b"\x80"
        and b"\x8a\x0a" + torch_files.LEGACY_MAGIC in head[:24]
    ):
        return "PyTorch", _read_legacy_torch
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "Keras HDF5", _read_h5
    if head[8:9] == b"{":
        return "safetensors", _read_safetensors
    what, advice = next(
        (text for start, text in _FOREIGN.items() if head.startswith(start)),
        (
            "of no kind that is read",
            "If it is another library's, as ONNX's or TensorFlow's, save the "
            "weights as `.safetensors`; else download it again",
        ),
    )
    if not head:
        what, advice = "an empty file", "Download it again"
    elif head[257:262] == b"ustar":
        what, advice = "a tar archive", "Unpack it"
    raise ValueError(
        "A checkpoint must be a PyTorch, safetensors or Keras file. Received: "
        f"path={path}, which begins with {head[:20]!r}: {what}. {advice}."
    )


def _read_zip(path):
    if not zipfile.is_zipfile(path):
        raise ValueError("it ends too early")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        _check_kind(names)
        check_stored(archive, path.stat().st_size)
        if _is_torch(archive):
            _allow_no_checksums(archive)
            return torch_names.strip(torch_files.read_zip(archive))
        with archive.open("config.json") as file:
            config = parse(file)["config"]
        weights = archive.read("model.weights.h5")
    groups = _numbered(_config_layers(config))
    return _read_hdf5(weights, groups)


def _is_torch(archive):
    return any(name.endswith("data.pkl") for name in archive.namelist())


def _allow_no_checksums(archive):
    """Reads what `torch.serialization.set_crc32_options(False)` has written.

    PyTorch leaves all checksums 0 then, and looks at none when it loads.
    """
    if not any(entry.CRC for entry in archive.infolist()):
        for entry in archive.infolist():
            entry.CRC = None


def _check_kind(names):
    """Refuses the kinds of zip file that hold more, or else, than weights."""
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        raise Unread(
            "a TorchScript file, which is a program",
            "Save its weights in PyTorch: `torch.save(torch.jit.load(path)"
            ".state_dict(), 'weights.pth')`.",
        )
    if "archive_format" in last or "serialized_exported_program.json" in last:
        raise Unread(
            "an exported program of `torch.export`",
            "Save its weights in PyTorch: `torch.save(torch.export.load(path)"
            ".state_dict, 'weights.pth')`.",
        )
    if "data.pkl" not in last and not {"config.json", "model.weights.h5"} <= {
        *names
    }:
        raise Unread(
            "a zip file without weights, but with "
            + ", ".join(map(printable, names[:3])),
            "Save the model with `torch.save`, `model.save` or "
            "`model.save_weights`, or unpack the file that has the weights.",
        )


def _read_legacy_torch(path):
    return torch_names.strip(torch_files.read_legacy(path.read_bytes()))


def _read_h5(path):
    return _read_hdf5(path.read_bytes(), {})


def _read_safetensors(path):
    with path.open("rb") as file:
        if int.from_bytes(file.read(8), "little") > MAX_JSON:
            raise ValueError("its header is longer than any network's")
    arrays = {}
    # This compares the header with the file's size, before any number is read.
    with safetensors.safe_open(path, "numpy") as file:
        for name in file.keys():  # noqa: SIM118 (it is no dictionary)
            try:
                arrays[name] = torch_files.widened(file.get_tensor(name))
            except AttributeError as error:  # NumPy has no such numbers
                dtype = file.get_slice(name).get_dtype()
                raise Unread(
                    f"{printable(name)} holds {dtype}",
                    "Save the model as float32, float16 or bfloat16.",
                ) from error
    return torch_names.strip(arrays)


def _read_hdf5(data, groups):
    _check_heaps(data)
    sizes = {}  # of arrays; of groups and of an optimizer's, None
    room = len(data)  # for headers: one inside of another would be read twice

    def keep(path, item):
        nonlocal room
        room -= h5py.h5o.get_info(item.id).hdr.space.total
        deep = len(path) > MAX_NAME or path.count("/") > _MAX_DEPTH
        if deep or len(sizes) == _MAX_OBJECTS or room < 0:
            return path  # ends the visit
        sizes[path] = None
        if isinstance(item, h5py.Dataset) and not _OPTIMIZER.search(path):
            sizes[path] = math.prod(item.shape) * item.dtype.itemsize

    with h5py.File(io.BytesIO(data), "r") as file:
        # Visits hard links only: soft and external links stay unfollowed.
        # No object stays open, as 10,000 of them take 80 MB.
        if file.visititems(keep) is not None:
            raise ValueError(
                "its groups are more, nested deeper, or with longer headers "
                "than any network's"
            )
        datasets = {p: size for p, size in sizes.items() if size is not None}
        if sum(datasets.values()) > len(data):
            raise ValueError("its datasets are compressed or incomplete")
        _check_storage(data, file, sizes, datasets)
        arrays = {path: _array(file[path]) for path in datasets}
        named = _named(file, sizes)
        # What a description says counts where the file itself has no name, or
        # the same: it knows which variables a normalisation has.
        groups = named | {
            group: (named[group][0] if group in named else name, variables)
            for group, (name, variables) in groups.items()
            if group not in named or named[group][0].split("/")[-1] == name
        }
        # Names beyond 64 kB are split over attributes with numbers.
        roots = ["/", *({"model_weights"} & sizes.keys())]
        is_keras2 = any(
            {"layer_names", "layer_names0"} & set(file[root].attrs)
            for root in roots
        )
    if is_keras2:
        return _rename_keras2(arrays)
    return _rename(arrays, groups)


def _check_storage(data, file, paths, datasets):
    """Refuses datasets whose numbers are not stored as their own.

    A damaged address makes a dataset of what are other numbers, or of the
    file's own structure; without an address it has zeros.
    """
    used = [(start, size, False) for start, size in _tables(data)]
    orders = set()
    for path in paths:
        item = file[path]
        parts = _header(data, h5py.h5o.get_info(item.id))
        if path in datasets:
            _check_dataset(item)
            if item.size:
                used.append((item.id.get_offset(), item.nbytes, True))
            if item.dtype.kind in "fiu" and item.dtype.itemsize > 1:
                orders.add(item.dtype.newbyteorder("=") == item.dtype)
        elif isinstance(item, h5py.Dataset):
            parts.append((item.id.get_offset(), item.id.get_storage_size()))
        used += [(at, size, False) for at, size in parts if at is not None]
    used.sort()
    end = {True: 0, False: 0}  # of numbers, of tables
    for start, size, is_numbers in used:
        if start < max(end[True], end[False] if is_numbers else 0):
            raise ValueError("its datasets overlap each other, or the rest")
        end[is_numbers] = max(end[is_numbers], start + size)
    # What libhdf5 has reserved and not used is zeros, away from all else.
    starts = {len(data), *(start for start, _, _ in used)}
    ends = {start + size for start, size, _ in used}
    for start, size, is_numbers in used:
        alone = start not in ends and start + size not in starts
        if is_numbers and alone and data.count(0, start, start + size) == size:
            raise ValueError("a dataset has no storage of its own")
    if len(orders) > 1:
        raise ValueError("its datasets have different byte orders")


def _check_dataset(dataset):
    """Refuses a dataset that is no numbers in one piece of the file."""
    name = printable(dataset.name)
    _check_number(dataset)
    if dataset.external or dataset.is_virtual:
        raise Unread(
            f"{name} refers to another file",
            "Save all numbers in one file.",
        )
    layout = dataset.id.get_create_plist().get_layout()
    if layout != h5py.h5d.CONTIGUOUS:
        raise Unread(
            f"{name} is chunked or compressed",
            "Save it again without compression, as Keras does.",
        )
    if dataset.size and (
        dataset.id.get_offset() is None
        or dataset.id.get_storage_size() != dataset.nbytes
    ):
        raise ValueError(f"{name} was never written, or not wholly")


# The specification that the names of sections below refer to:
# https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html
_HEAP = b"GCOL\x01\0\0\0"


def _tables(data):
    """Lists the (start, size) of a file's own tables, by their signatures.

    Source: sections II.A (superblock), III.A.1 (B-trees), III.C (symbol
    tables), III.D (local heaps) and III.E (global heaps).
    """
    leaf, internal = (4, 16)
    if data[8] < 2:
        leaf, internal = struct.unpack_from("<HH", data, 16)
    used = [(0, 96)]
    used += [(at, 32 + 32 * internal) for at in _find(data, b"TREE\0")]
    used += [(at, 8 + 80 * leaf) for at in _find(data, b"SNOD\1\0")]
    for at in _find(data, b"HEAP\0\0\0\0"):
        texts = struct.unpack("<QQQ", data[at + 8 : at + 32].ljust(24, b"\0"))
        used += [(at, 32), (texts[2], texts[0])]
    for at in _find(data, _HEAP):
        used.append((at, int.from_bytes(data[at + 8 : at + 16], "little")))
    return used


def _find(data, signature):
    count, start = 0, data.find(signature)
    while start >= 0:
        yield start
        count += 1
        if count > _MAX_OBJECTS:
            raise ValueError("it has more tables than any network's")
        start = data.find(signature, start + 1)


def _header(data, info):
    """Lists the (start, size) of an object's header and its continuations.

    Source: sections IV.A.1.a (version 1) and IV.A.2.q (continuation).
    """
    start, parts = info.addr, info.hdr.nchunks
    if data[start : start + 1] != b"\x01":  # version 2, which Keras writes not
        return [(start, info.hdr.space.total if parts == 1 else 16)]
    size = int.from_bytes(data[start + 8 : start + 12], "little")
    used = [(start, 16 + size)]
    chunks = [(start + 16, start + 16 + size)]
    for at, end in chunks:
        while at + 8 <= end <= len(data):
            kind, size = struct.unpack_from("<HH", data, at)
            if kind == 16 and len(used) < parts:
                used.append(struct.unpack_from("<QQ", data, at + 8))
                chunks.append((used[-1][0], sum(used[-1])))
            at += 8 + size
    return used


def _check_heaps(data):
    """Refuses damage in the texts of a file, on which libhdf5 never returns.

    Source: section III.E, global heap. libhdf5 follows the sizes of objects,
    even of 0.
    """
    if (data[13:15] if data[8] < 2 else data[9:11]) != b"\x08\x08":
        raise ValueError("its offsets and lengths are not 8 bytes long")
    start = data.find(_HEAP)
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
        start = data.find(_HEAP, start)


def _check_number(dataset):
    # HDF5 describes numbers bit by bit: damage there makes other numbers.
    dtype = dataset.dtype
    exact = h5py.h5t.py_create(dtype, logical=True) == dataset.id.get_type()
    is_number = dtype.kind in "fiub" and dtype.itemsize <= 8 and exact
    if not is_number and not _is_bfloat16(dataset):
        raise Unread(
            f"{printable(dataset.name)} holds {dtype}, or a variant of it",
            "Save the model as float64, float32, float16 or bfloat16.",
        )


def _is_bfloat16(dataset):
    return dataset.dtype == "V2" and _text(dataset, "dtype") == "bfloat16"


def _array(dataset):
    if _is_bfloat16(dataset):
        return torch_files.widened(dataset[()].view(ml_dtypes.bfloat16))
    return np.asarray(dataset[()])


def _text(item, attribute):
    # libhdf5 crashes on the damaged type of what should be a text.
    if attribute not in item.attrs:
        return None
    found = item.attrs.get_id(attribute)
    is_text = isinstance(found.get_type(), h5py.h5t.TypeStringID)
    # An attribute itself is shorter than 64 kB; its text may be elsewhere.
    is_text = is_text and found.get_storage_size() < 2**16
    value = item.attrs[attribute] if is_text and found.shape == () else None
    if value is not None and len(value) > MAX_NAME:
        # Else many short groups could refer to one long text.
        raise ValueError(f"the {attribute} of a layer is {len(value)} long")
    return value.decode() if isinstance(value, bytes) else value


def _config_layers(config):
    """Yields the layers in a description, as `rename_keras_variables` has them.

    A layer of one's own describes itself as it likes, also without a name.
    """
    layers = config.get("layers")
    for layer in layers if isinstance(layers, list) else ():
        match layer:
            case {"class_name": str(class_name), "config": dict(inner)}:
                variables = list(_config_layers(inner)) or [
                    name
                    for name in _VARIABLES.get(_snake_case(class_name), ())
                    if inner.get(_SWITCHES.get(name), True)
                ]
                yield class_name, inner.get("name"), variables


def _described(config):
    """Yields the names of all layers in a description, classes and padding."""
    parts = [config]
    for part in parts:  # which grows
        inside = part.values() if isinstance(part, dict) else part
        parts += [v for v in inside if isinstance(v, (dict, list))]
        match part:
            case {"class_name": str(kind), "config": {"name": str(name)}}:
                yield name, (kind, part["config"].get("padding"))


def _numbered(layers, prefix="layers/"):
    """Maps each group of variables to its layer and their names."""
    groups, counts = {}, collections.Counter()
    if len(prefix) > MAX_NAME:
        raise ValueError("its models are nested deeper than any network's")
    for class_name, name, variables in layers:
        kind = _snake_case(class_name)
        group = f"{prefix}{kind}_{counts[kind]}".removesuffix("_0")
        counts[kind] += 1
        if variables and not isinstance(variables[0], str):
            groups |= _numbered(variables, f"{group}/layers/")
        elif name is not None:
            groups[group] = (name, variables)
    return groups


def _named(file, paths):
    """Maps the groups that carry the name of their layer, as `_numbered`.

    Where several have one, as the `query` of each attention, those of the
    layers around them are before it.
    """
    names = {
        path.removesuffix("/vars"): _text(file[path], "name")
        for path in paths
        if path.endswith("/vars") and not _OPTIMIZER.search(path)
    }
    ways = {
        group: _way(group, names)
        for group, name in names.items()
        if name and len(file[f"{group}/vars"])
    }
    counts, short = (
        collections.Counter(ways.values()),
        short_names({*ways.values()}),
    )
    groups = {}
    for group, way in ways.items():
        match = re.fullmatch(r"(?:.+/)?layers/(\w+?)(?:_\d+)?", group)
        if not match and counts[way] > 1:
            continue  # inside of a layer that is no model: it keeps its path
        kind = match and match[1]
        variables = _VARIABLES.get(kind, ())
        # Without gamma or beta, the numbers do not say which is which.
        if kind == "batch_normalization" and len(file[f"{group}/vars"]) != 4:
            variables = ()
        groups[group] = ("/".join(short[way]), variables)
    return groups


def _way(group, names):
    """Returns the names of the layers around a layer of a file, and its own."""
    parts = group.split("/")
    outer = ("/".join(parts[:n]) for n in range(1, len(parts) + 1))
    way = tuple(names[group] for group in outer if names.get(group))
    if len("/".join(way)) > MAX_NAME:
        raise ValueError("the name of a layer is none")
    return way


def _snake_case(name):
    # Source: `to_snake_case` in `keras/src/utils/naming.py`.
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _rename(arrays, groups):
    for name, _ in groups.values():
        if not isinstance(name, str) or len(name) > MAX_NAME:
            raise ValueError("the name of a layer is none")
    pairs = []
    for path, array in arrays.items():
        group, _, index = path.rpartition("/vars/")
        name, variables = groups.get(group, (f"{group}/vars", ()))
        if index.isdecimal() and int(index) < len(variables):
            index = variables[int(index)]
        pairs.append((f"{name}/{index}" if group else path, array))
    return unique(pairs)


def _rename_keras2(arrays):
    # `<layer>/.../<variable>:0`. A layer that is a model itself has several
    # variables of a name: there the group next to the variable counts.
    paths = {
        name: name.removeprefix("model_weights/").removesuffix(":0").split("/")
        for name in arrays
    }
    counts = collections.Counter((path[0], path[-1]) for path in paths.values())
    models = {layer for (layer, _), count in counts.items() if count > 1}
    return unique(
        (f"{path[-2 if path[0] in models else 0]}/{path[-1]}", arrays[name])
        for name, path in paths.items()
    )
