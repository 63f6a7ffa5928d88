"""PyTorch's two file formats, read without PyTorch and without `pickle`.

Both keep names and shapes in a pickle, a small program that may call any
Python function. `pickletools` splits that program into opcodes without
running it, and `_interpret` follows the few opcodes that a state dict needs:
nothing here can import, or call, what a file names.

Source: `torch/serialization.py` (`_save`, `_legacy_save`) and
`torch/_weights_only_unpickler.py`, https://github.com/pytorch/pytorch.
"""

import dataclasses
import functools
import io
import pickletools
import types

import numpy as np

LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")

# The first of these that holds a dictionary with tensors is the state dict:
# averaged weights are read only from a file that has no others.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "state_dict_ema",
    "model_ema",
)

# A state dict of ResNeXt-101 takes 25 thousand opcodes, and three times that
# with its optimizer; each opcode makes at most one small object.
_MAX_OPCODES = 1_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str  # as stored: bfloat16, unknown to NumPy, is read as its bits
    is_bfloat16: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class _Storage:
    type: _StorageType
    key: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int
    size: tuple
    stride: tuple


def read_zip(archive):
    """Reads the zip format, which `torch.save` writes since PyTorch 1.6.

    Args:
        archive: `zipfile.ZipFile` whose entries are of a size that fits into
            memory, among them `<folder>/data.pkl`.

    Returns:
        Dictionary from name to read-only array, see `_state_dict`.

    Raises:
        ValueError: if the file holds more than plain data and tensors.
    """
    names = archive.namelist()
    pickled = next(name for name in names if name.endswith("data.pkl"))
    folder = pickled.removesuffix("data.pkl")
    byteorder = f"{folder}byteorder"
    if byteorder in names and archive.read(byteorder) != b"little":
        raise ValueError("its byte order is not little-endian")
    root, _ = _interpret(io.BytesIO(archive.read(pickled)))
    return _state_dict(root, lambda key: archive.read(f"{folder}data/{key}"))


def read_legacy(data):
    """Reads the format that `torch.save` wrote before PyTorch 1.6.

    Five pickles (magic number, protocol, machine, objects, storage keys) come
    before the storages, each a count as int64 and that many elements.

    Args:
        data: bytes of the whole file.

    Returns:
        Dictionary from name to read-only array, see `_state_dict`.

    Raises:
        ValueError: if the file holds more than plain data and tensors, or
            ends too early.
    """
    stream = io.BytesIO(data)
    header = [_interpret(stream)[0] for _ in range(3)]
    if header[1] != 1001 or not header[2]["little_endian"]:
        raise ValueError("its protocol is not 1001, or not little-endian")
    root, storage_types = _interpret(stream)
    buffers = {}
    for key in _interpret(stream)[0]:
        if not isinstance(key, str) or key not in storage_types:
            raise ValueError("it lists a storage that no tensor uses")
        itemsize = np.dtype(storage_types[key].dtype).itemsize
        start = stream.tell() + 8
        end = start + int.from_bytes(stream.read(8), "little") * itemsize
        if end > len(data):
            raise ValueError("it ends within a tensor")
        buffers[key] = memoryview(data)[start:end]
        stream.seek(end)
    return _state_dict(root, buffers.__getitem__)


def bfloat16_to_float32(bits):
    """Widens bfloat16, whose bits are the upper half of a float32.

    Args:
        bits: uint16 array of any shape.

    Returns:
        float32 array of the same shape and the same values.
    """
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _state_dict(root, read_storage):
    """Picks the tensors out of the object of a file.

    Args:
        root: what the file holds: a dictionary of tensors, or one that has
            such a dictionary under a name of `WRAPPERS`. Entries that are no
            tensors (epoch, arguments, optimizer) are dropped.
        read_storage: function from the key of a storage to its bytes.

    Returns:
        Dictionary from name to read-only array. Tensors that share a storage
        share its memory, and bfloat16 becomes float32.

    Raises:
        ValueError: if there are no tensors, or one leaves its storage.
    """

    @functools.cache
    def storage_array(storage):
        array = np.frombuffer(read_storage(storage.key), storage.type.dtype)
        if storage.type.is_bfloat16:
            array = bfloat16_to_float32(array)
        array.flags.writeable = False
        return array

    if not isinstance(root, dict):
        raise ValueError("it holds no dictionary")
    # The file itself comes last: a tensor may also be `best_acc1`.
    for candidate in [root.get(name) for name in WRAPPERS] + [root]:
        if tensors := _tensors(candidate):
            return {
                name: _view(tensor, storage_array(tensor.storage))
                for name, tensor in tensors.items()
            }
    raise ValueError("it holds no dictionary of tensors")


def _tensors(value):
    items = value.items() if isinstance(value, dict) else ()
    return {
        name: tensor
        for name, tensor in items
        if isinstance(name, str) and isinstance(tensor, _Tensor)
    }


def _view(tensor, storage):
    # `np.ndarray` refuses what reaches outside of its buffer. The size is
    # checked because a stride of 0 makes a huge array of a small buffer.
    itemsize = storage.dtype.itemsize
    array = np.ndarray(
        tensor.size,
        storage.dtype,
        storage,
        tensor.offset * itemsize,
        tuple(stride * itemsize for stride in tensor.stride),
    )
    if array.size > storage.size:
        raise ValueError("a tensor is larger than its storage")
    return array


def _interpret(stream):
    """Follows one pickle as data, and stops behind it.

    Args:
        stream: binary file at the begin of a pickle.

    Returns:
        The object, of dictionaries, lists, tuples, scalars, strings and
        `_Tensor`s; and the `_StorageType` of every storage key it mentions.

    Raises:
        ValueError: for an opcode or a name that no state dict needs.
    """
    stack, marks, memo, storage_types = [], [], {}, {}

    def pop_to_mark():
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for count, (opcode, value, _) in enumerate(pickletools.genops(stream)):
        if count == _MAX_OPCODES:
            raise ValueError("its pickle is longer than any state dict's")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop(), storage_types
            case "MARK":
                marks.append(len(stack))
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name in _LITERALS:
                stack.append(value)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "APPEND":
                item = stack.pop()
                _list(stack[-1]).append(item)
            case "APPENDS":
                items = pop_to_mark()
                _list(stack[-1]).extend(items)
            case "SETITEM":
                item, key = stack.pop(), stack.pop()
                _update(stack[-1], [(key, item)])
            case "SETITEMS":
                items = pop_to_mark()
                _update(stack[-1], zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "GLOBAL":
                stack.append(_find(*value.split(" ")))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_find(module, name))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                if not isinstance(function, types.FunctionType):
                    raise ValueError("its pickle calls what is no function")
                stack.append(function(*arguments))
            case "BUILD":  # attributes, such as `_metadata` of a state dict
                stack.pop()
            case "BINPERSID":
                storage = _storage(*stack.pop())
                known = storage_types.setdefault(storage.key, storage.type)
                if known != storage.type:
                    raise ValueError("a storage has two element types")
                stack.append(storage)
            case name:
                raise ValueError(f"pickle opcode {name} is not allowed")
    raise ValueError("its pickle has no end")


_CONSTANTS = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
}

_LITERALS = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES"),
    )
)


def _list(value):
    if not isinstance(value, list):
        raise ValueError("its pickle appends to what is no list")
    return value


def _update(target, pairs):
    # Only scalar keys: hashing a deeply nested tuple overflows the C stack.
    if not isinstance(target, dict):
        raise ValueError("its pickle sets an item of what is no dictionary")
    for key, value in pairs:
        if not isinstance(key, str | int | float | None):
            raise ValueError("a dictionary key is neither text nor a number")
        target[key] = value


def _storage(kind, storage_type, key, location, count, view=None):
    if (
        kind != "storage"
        or not isinstance(storage_type, _StorageType)
        or not isinstance(key, str)
        or view is not None
    ):
        raise ValueError("its pickle refers to what is no tensor storage")
    return _Storage(storage_type, key)


def _rebuild_tensor(storage, offset, size, stride, *_):
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor has no storage")
    return _Tensor(storage, offset, size, stride)


def _rebuild_parameter(tensor, *_):
    return tensor


def _ordered_dict(*pairs):
    # Python 2 wrote the pairs as one argument. The list is emptied, so that
    # a short pickle cannot copy one long list many times.
    result = {}
    for items in pairs:
        _update(result, _list(items))
        items.clear()
    return result


def _namespace():
    """Stands for the command line in checkpoints of training scripts."""


_GLOBALS = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "argparse.Namespace": _namespace,
} | {
    f"{module}.{name}Storage": _StorageType(*arguments)
    for module in ("torch", "torch.cuda")
    for name, *arguments in (
        ("Float", "<f4"),
        ("Double", "<f8"),
        ("Half", "<f2"),
        ("BFloat16", "<u2", True),
        ("Long", "<i8"),
        ("Int", "<i4"),
        ("Short", "<i2"),
        ("Char", "i1"),
        ("Byte", "u1"),
        ("Bool", "?"),
    )
}


def _find(module, name):
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("its pickle names what is no text")
    qualified = f"{module}.{name}"
    if qualified not in _GLOBALS:
        raise ValueError(f"{qualified[:80]!r} is no part of a state dict")
    return _GLOBALS[qualified]
