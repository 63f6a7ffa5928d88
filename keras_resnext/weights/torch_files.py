"""PyTorch's two file formats, read without PyTorch and without `pickle`.

Both keep names and shapes in a pickle, a small program that may call any
Python function. `pickletools` splits that program into opcodes without
running it, and `_interpret` follows them as data: nothing here can import, or
call, what a file names. What is not a tensor of a state dict, such as the
state of a training, becomes a placeholder that remembers its kind.

Source: `torch/serialization.py` (`_save`, `_legacy_save`) and
`torch/_weights_only_unpickler.py`, https://github.com/pytorch/pytorch.
"""

import dataclasses
import functools
import io
import itertools
import pickletools
import types

import ml_dtypes
import numpy as np

from keras_resnext.weights import torch_names
from keras_resnext.weights.unread import Unread, printable

LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")

# The first of these that holds a network is the state dict: averaged weights
# are read only from a file that has no others.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "state_dict_ema",  # the first of averaged ones
    "model_ema",
    "ema_state_dict",
    "model_ema_state_dict",
    "ema",
)

# A state dict of ResNeXt-101 takes 25 thousand opcodes, and three times that
# with its optimizer; each opcode makes at most one small object.
_MAX_OPCODES = 1_000_000
_MAX_ARGUMENTS = 16
MAX_NAME = 1000  # characters: a short file may have one in many dictionaries
_MAX_DEPTH = 5  # of dictionaries, with the state dict: VISSL's are the most
_MAX_AXES = 8

_LOAD = "torch.load(path, weights_only=True)"
_SAVE = "Save `model.state_dict()` with `torch.save`."


@dataclasses.dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str | type


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


@dataclasses.dataclass(frozen=True, slots=True)
class _Global:
    kind: str  # the name of a class or function, which is never looked up


@dataclasses.dataclass(frozen=True, slots=True)
class _OtherTensor:
    """Stands for a tensor whose numbers NumPy does not have."""

    storage: _Global

    @property
    def kind(self):
        return f"torch._utils._rebuild_tensor of {self.storage.kind}"


class _Object(dict):
    """Stands for what a file would make by a call, with its items at most."""

    __slots__ = ("kind",)

    def __init__(self, kind):
        self.kind = kind


_Placeholder = _Global | _OtherTensor | _Object


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
    keys, _ = _interpret(stream)
    for key in keys if isinstance(keys, list) else [None]:
        if not isinstance(key, str) or key not in storage_types:
            raise Unread("it lists a storage of unknown type", _SAVE)
        itemsize = np.dtype(storage_types[key].dtype).itemsize
        start = stream.tell() + 8
        end = start + int.from_bytes(stream.read(8), "little") * itemsize
        if end > len(data):
            raise ValueError("it ends within a tensor")
        buffers[key] = memoryview(data)[start:end]
        stream.seek(end)
    return _state_dict(root, buffers.__getitem__)


def widened(array):
    """Returns an array whose bfloat16, if it is of that, became float32."""
    is_bfloat16 = array.dtype == ml_dtypes.bfloat16
    return array.astype("float32") if is_bfloat16 else array


def _state_dict(root, read_storage):
    """Picks the tensors out of the object of a file.

    Args:
        root: what the file holds: a dictionary of tensors, or one that has
            such a dictionary in it, see `_find_state_dict`. Entries that are
            no tensors (epoch, arguments, optimizer) are dropped.
        read_storage: function from the key of a storage to its bytes.

    Returns:
        Dictionary from name to read-only array. Tensors that share a storage
        share its memory, and bfloat16 becomes float32.

    Raises:
        ValueError: if there are no tensors, or one leaves its storage.
        Unread: if the file holds other kinds of tensors, or whole objects.
    """

    @functools.cache
    def storage_array(storage):
        data = read_storage(storage.key)
        array = widened(np.frombuffer(data, storage.type.dtype))
        array.flags.writeable = False
        return array

    arrays = {}
    for name, value in _find_state_dict(root).items():
        if isinstance(value, _Tensor):
            arrays[name] = _view(value, storage_array(value.storage))
        elif _is_tensor(value):
            raise Unread(
                f"{printable(name)} is no ordinary tensor, but made by "
                f"{printable(value.kind)}: sparse, quantised, distributed or "
                "negated",
                "Save the `state_dict()` of the float model, on one device, "
                "and of a negated tensor its `resolve_neg()`.",
            )
    return arrays


def _is_tensor(value):
    return isinstance(value, _Tensor | _OtherTensor) or (
        isinstance(value, _Object)
        and value.kind.startswith("torch")
        and "_rebuild" in value.kind
    )


def _find_state_dict(root):
    """Returns the dictionary of tensors that counts.

    That is the network under the first name of `WRAPPERS`, but the file itself
    before averaged ones, else the only network under another name. Where there
    is no network, the tensors of the file itself come later, as they may be
    `best_acc1` and the like.
    """
    found, seen, level = [], set(), [((), root)]
    is_of_network = functools.cache(torch_names.is_of_network)
    for _ in range(_MAX_DEPTH):
        # A dictionary counts once, however often the file refers to it.
        level = [
            (path, value)
            for path, value in level
            if isinstance(value, dict)
            and not (id(value) in seen or seen.add(id(value)))
        ]
        found += [
            (_rank(path, any(map(is_of_network, value))), path, value)
            for path, value in level
            if any(map(_is_tensor, value.values()))
        ]
        level = [
            ((*path, name), item)
            for path, value in level
            for name, item in value.items()
            if isinstance(item, dict)
        ]
    if not found:
        _refuse(root)
    best = min(rank for rank, _, _ in found)
    choices = [(path, value) for rank, path, value in found if rank == best]
    if len(choices) > 1:
        names = [printable(".".join(path)) for path, _ in choices[:5]]
        raise Unread(
            f"it holds {len(choices)} networks, under {', '.join(names)}",
            "Save the one you want in a file of its own: "
            f"`torch.save({_LOAD}{_keys(choices[0][0])}, 'new.pth')`. If it "
            "fails for what else is in the file, and only for a file that you "
            "trust, as its code is run then: `weights_only=False`.",
        )
    return choices[0][1]


def _rank(path, is_network):
    known = [WRAPPERS.index(name) for name in path if name in WRAPPERS]
    if not path:
        averaged = WRAPPERS.index("state_dict_ema")
        known = [averaged - 0.5 if is_network else len(WRAPPERS)]
    elif len(known) < len(path):
        known = [len(WRAPPERS) + 1]
    return not is_network, known


def _keys(path):
    return "".join(f"[{printable(name)!r}]" for name in path)


def _refuse(root):
    """Says what a file without a dictionary of tensors holds instead."""
    if path := _in_list(root):
        raise Unread(
            f"its dictionary of tensors is in a list, at {path}",
            f"Save it alone: `torch.save({_LOAD}{path}, 'new.pth')`.",
        )
    items = root.items() if isinstance(root, dict) else ()
    kinds = [
        f"{printable(name)}, made by {printable(value.kind)}"
        for name, value in items
        if isinstance(value, _Placeholder)
    ]
    if isinstance(root, _Placeholder):
        kinds = [printable(root.kind)]
    if kinds:
        raise Unread(
            "it holds no dictionary of tensors, but whole objects: "
            + "; ".join(kinds[:5]),
            f"Nothing in a file is run to make them. {_SAVE}",
        )
    raise Unread("it holds no dictionary of tensors", _SAVE)


def _in_list(root):
    """Returns the way to the first tensors in a list, as Python's indices."""
    # Of each a few, as a short file may have one list in many places.
    items = list(root.items())[:99] if isinstance(root, dict) else ()
    lists = [("", root), *((_keys((name,)), value) for name, value in items)]
    for path, value in lists:
        value = value[:9] if isinstance(value, list | tuple) else ()
        for i, item in enumerate(value):
            tensors = item.values() if isinstance(item, dict) else ()
            if any(map(_is_tensor, itertools.islice(tensors, 9))):
                return f"{path}[{i}]"
    return None


def _view(tensor, storage):
    # `np.ndarray` refuses what reaches outside of its buffer. The size is
    # checked because a stride of 0 makes a huge array of a small buffer.
    if not (
        isinstance(tensor.size, tuple)
        and isinstance(tensor.stride, tuple)
        and len(tensor.size) == len(tensor.stride) <= _MAX_AXES
        and all(
            type(number) is int and 0 <= number < 2**60
            for number in (tensor.offset, *tensor.size, *tensor.stride)
        )
    ):
        raise ValueError("a tensor's offset, size or stride is none")
    itemsize = storage.dtype.itemsize
    array = np.ndarray(
        tensor.size,
        storage.dtype,
        storage,
        tensor.offset * itemsize,
        tuple(stride * itemsize for stride in tensor.stride),
    )
    if array.size > storage.size:
        raise Unread(
            "a tensor is larger than its storage, as `expand` makes it",
            "Save `{n: t.contiguous() for n, t in model.state_dict().items()}` "
            "with `torch.save`.",
        )
    return array


def _interpret(stream):
    """Follows one pickle as data, and stops behind it.

    Args:
        stream: binary file at the begin of a pickle.

    Returns:
        The object, of dictionaries, lists, tuples, scalars, strings,
        `_Tensor`s and placeholders; and the `_StorageType` of every storage
        key it mentions.

    Raises:
        ValueError: for an opcode that `torch.save` does not write.
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
            case "FROZENSET":
                pop_to_mark()
                stack.append(_SET)
            case "APPEND":
                item = stack.pop()
                _append(stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items = pop_to_mark()
                _append(stack[-1], items)
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
            case "POP":
                stack.pop()
            case "POP_MARK":
                pop_to_mark()
            case "GLOBAL":
                stack.append(_find(*value.split(" ")))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_find(module, name))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case "NEWOBJ_EX":
                _, arguments, function = stack.pop(), stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case "BUILD":  # attributes, such as `_metadata` of a state dict
                stack.pop()
            case "BINPERSID":
                storage = _persistent(stack.pop())
                if isinstance(storage, _Storage):
                    known = storage_types.setdefault(storage.key, storage.type)
                    if known != storage.type:
                        raise ValueError("a storage has two element types")
                stack.append(storage)
            case name:
                raise Unread(f"pickle opcode {name} is not allowed", _SAVE)
    raise ValueError("its pickle has no end")


_SET = _Global("builtins.set")  # one for all, as nothing reads what is in it
_CONSTANTS = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
    "EMPTY_SET": _SET,
}

_LITERALS = frozenset(
    (
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)


def _append(target, items):
    if isinstance(target, list):
        target.extend(items)
    elif target is not _SET and not isinstance(target, _Object):
        raise ValueError("its pickle appends to what is no list")


def _update(target, pairs):
    # Only texts as keys, no longer than a name: tensors have names, and
    # hashing a deeply nested tuple overflows the C stack.
    if not isinstance(target, dict):
        raise ValueError("its pickle sets an item of what is no dictionary")
    for key, value in pairs:
        if isinstance(key, str) and len(key) <= MAX_NAME:
            target[key] = value


def _call(function, arguments):
    """Makes what a state dict needs, and a placeholder for all else."""
    if isinstance(function, _Placeholder):
        return _Object(function.kind)
    if not isinstance(function, types.FunctionType):
        raise ValueError("its pickle calls what is no function")
    if not isinstance(arguments, tuple) or len(arguments) > _MAX_ARGUMENTS:
        raise ValueError("its pickle calls a function with no arguments of it")
    return function(*arguments)


def _persistent(reference):
    """Follows a reference out of the pickle: to a storage, or to a class."""
    match reference:
        case ("storage", _StorageType() as kind, str(key), _, _) | (
            "storage",
            _StorageType() as kind,
            str(key),
            _,
            _,
            None,
        ):
            return _Storage(kind, key)
        case ("storage", _Global() as kind, *_):
            return _OtherTensor(kind)
        case ("module", _Global() as function, *_):
            return function
    raise ValueError("its pickle refers to what is no tensor storage")


def _rebuild_tensor(storage, offset, size, stride, *rest):
    if isinstance(storage, _OtherTensor):
        return storage
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor has no storage")
    if any(rest[2:]):  # behind `requires_grad` and hooks: a bit that negates
        return _Object("torch._utils._rebuild_tensor_v2 with `neg` or `conj`")
    return _Tensor(storage, offset, size, stride)


def _rebuild_parameter(tensor, *_):
    return tensor


def _rebuild_from_type(function, kind, arguments, *_):
    """Makes the tensor of a `torch.nn.Buffer`, or of another subclass."""
    if function is _rebuild_tensor or function is _rebuild_parameter:
        return _call(function, arguments)
    return _Object("torch._tensor._rebuild_from_type_v2")


def _ordered_dict(*pairs):
    # Python 2 wrote the pairs as one argument. The list is emptied, so that
    # a short pickle cannot copy one long list many times.
    result = {}
    for items in pairs:
        if not isinstance(items, list):
            raise ValueError("a dictionary is made of what is no list")
        _update(result, items)
        items.clear()
    return result


_GLOBALS = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type": _rebuild_from_type,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.storage.UntypedStorage": _StorageType("u1"),
} | {
    f"{module}.{name}Storage": _StorageType(dtype)
    for module in ("torch", "torch.cuda")
    for name, dtype in (
        ("Float", "<f4"),
        ("Double", "<f8"),
        ("Half", "<f2"),
        ("BFloat16", ml_dtypes.bfloat16),
        ("Long", "<i8"),
        ("Int", "<i4"),
        ("Short", "<i2"),
        ("Char", "i1"),
        ("Byte", "u1"),
        ("Bool", "?"),
        ("ComplexFloat", "<c8"),
        ("ComplexDouble", "<c16"),
        ("QInt8", "i1"),
        ("QUInt8", "u1"),
        ("QInt32", "<i4"),
    )
}


def _find(module, name):
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("its pickle names what is no text")
    # Shortened, as a pickle can join two long texts any number of times. All
    # names in `_GLOBALS` are shorter.
    kind = f"{module[:50]}.{name[:50]}"
    return _GLOBALS.get(kind) or _Global(kind)
