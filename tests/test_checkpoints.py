import io
import json
import os
import pathlib
import pickle
import random
import re
import struct
import zipfile

import h5py
import keras
import make_fixtures
import numpy as np
import pytest
from make_fixtures import FOLDER

from keras_resnext.weights import checkpoints, structure, torch_files

FIXTURES = ["torch_zip.pth", "torch_legacy.pth", "tiny.safetensors"]
KERAS_FIXTURES = ["tiny.keras", "tiny.weights.h5"]
# TensorFlow's own, when Keras saves.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)

INCOMPLETE = r"complete .* file with nothing but arrays\. Received: path="


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


# PyTorch and safetensors: the values


@pytest.mark.parametrize("name", FIXTURES)
def test_fixture_has_the_values_of_its_seed(name):
    assert_same(checkpoints.read(FOLDER / name), make_fixtures.arrays())


def test_average_beside_the_state_of_a_training():
    arrays = checkpoints.read(FOLDER / "training.pth")
    assert_same(arrays, make_fixtures.network_arrays())


@pytest.mark.parametrize("name", KERAS_FIXTURES)
def test_keras_fixture_has_the_values_of_its_seed(name):
    expected = make_fixtures.keras_arrays()
    assert_same(checkpoints.read(FOLDER / name), expected)


@pytest.mark.parametrize("name", FIXTURES)
def test_content_decides_not_the_extension(name, tmp_path):
    path = tmp_path / "weights.keras"
    path.write_bytes((FOLDER / name).read_bytes())
    assert_same(checkpoints.read(str(path)), make_fixtures.arrays())


def test_shared_storage_is_read_once():
    arrays = checkpoints.read(FOLDER / "torch_zip.pth")
    a, b = arrays["shared.a"], arrays["shared.b"]
    assert b.ctypes.data - a.ctypes.data == a.nbytes


# A writer of PyTorch files with any pickle inside


class Storage:
    def __init__(self, key="0", kind="Float", count=4):
        self.id = ("storage", Global("torch", f"{kind}Storage"), key, "cpu")
        self.id += (count,)


class Global:
    def __init__(self, module, name):
        self.line = f"c{module}\n{name}\n".encode()


class Call:
    def __init__(self, module, name, *arguments):
        self.function = Global(module, name)
        self.arguments = arguments


class Raw:
    def __init__(self, code):
        self.code = code


def encode(value):
    """Pickles without importing: names and calls stay text until opcodes."""
    match value:
        case Raw():
            return value.code
        case Global():
            return value.line
        case Call():
            return encode(value.function) + encode(value.arguments) + b"R"
        case Storage():
            legacy = (None,) if Storage.legacy else ()
            return encode(value.id + legacy) + b"Q"
        case tuple():
            return b"(" + b"".join(map(encode, value)) + b"t"
        case list():
            return b"](" + b"".join(map(encode, value)) + b"e"
        case dict():
            items = b"".join(encode(k) + encode(v) for k, v in value.items())
            return b"}(" + items + b"u"
    return pickle.dumps(value, protocol=2)[2:-1].split(b"q\x00")[0]


def tensor(size=(4,), stride=(1,), offset=0, storage=None):
    storage = storage or Storage()
    return Call(
        *("torch._utils", "_rebuild_tensor_v2", storage, offset, size, stride),
        *(False, Call("collections", "OrderedDict")),
    )


def write(path, value, legacy, storages=None, byteorder=b"little"):
    Storage.legacy = legacy
    code = b"\x80\x02" + encode(value) + b"."
    storages = storages or {"0": np.arange(4, dtype="float32").tobytes()}
    if legacy:
        magic = b"\x8a\x0a" + torch_files.LEGACY_MAGIC
        order = {"little_endian": byteorder == b"little"}
        header = [Raw(magic), 1001, order]
        storages = {k: v for k, v in storages.items() if encode(k) in code}
        keys = b"\x80\x02" + encode(list(storages)) + b"."
        data = b"".join(b"\x80\x02" + encode(part) + b"." for part in header)
        data += code + keys
        for content in storages.values():
            data += struct.pack("<q", len(content) // 4) + content
        path.write_bytes(data)
        return path
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", code)
        archive.writestr("a/byteorder", byteorder)
        for key, content in storages.items():
            archive.writestr(f"a/data/{key}", content)
    return path


@pytest.fixture(params=["zip", "legacy"])
def legacy(request):
    return request.param == "legacy"


def read_pickle(tmp_path, value, legacy, **options):
    return checkpoints.read(write(tmp_path / "x.pth", value, legacy, **options))


FOUR = np.arange(4, dtype="float32")


def test_writer_of_these_tests(tmp_path, legacy):
    arrays = read_pickle(tmp_path, {"w": tensor()}, legacy)
    assert_same(arrays, {"w": FOUR})


@pytest.mark.parametrize("wrapper", torch_files.WRAPPERS)
def test_wrapper(tmp_path, legacy, wrapper):
    value = {
        "epoch": 3,
        "best_acc1": tensor((), ()),
        "arch": "resnext50_32x4d",
        "optimizer": {"state": {0: {"momentum_buffer": tensor()}}},
        "args": Call("argparse", "Namespace"),
        wrapper: {"w": tensor(), "extra": None},
    }
    assert_same(read_pickle(tmp_path, value, legacy), {"w": FOUR})


def test_first_wrapper_wins(tmp_path, legacy):
    names = list(torch_files.WRAPPERS)
    value = {name: {name: tensor()} for name in reversed(names)}
    assert names[0] == "state_dict"
    assert_same(read_pickle(tmp_path, value, legacy), {"state_dict": FOUR})


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."],
)
def test_prefix_of_all_names_is_dropped(tmp_path, legacy, prefix):
    value = {f"{prefix}a": tensor(), f"{prefix}b": tensor()}
    expected = {"a": FOUR, "b": FOUR}
    assert_same(read_pickle(tmp_path, value, legacy), expected)


def test_prefix_of_some_names_stays(tmp_path, legacy):
    value = {"module.a": tensor(), "b": tensor()}
    expected = {"module.a": FOUR, "b": FOUR}
    assert_same(read_pickle(tmp_path, value, legacy), expected)


def test_ordered_dict_of_python_2(tmp_path, legacy):
    value = Call("collections", "OrderedDict", [["w", tensor()]])
    assert_same(read_pickle(tmp_path, value, legacy), {"w": FOUR})


def test_namespace_keeps_nothing(tmp_path, legacy):
    # As `torch.save` writes it: class, no arguments, NEWOBJ, dict, BUILD.
    args = Raw(b"cargparse\nNamespace\n)\x81" + encode({"__class__": 1}) + b"b")
    value = {"args": args, "model": {"w": tensor()}}
    assert_same(read_pickle(tmp_path, value, legacy), {"w": FOUR})


# PyTorch: files that would run code, or take all memory


def calls():
    """Pickles that create the file `ran` in the working directory."""
    command = "touch ran"
    yield "posix", Call("posix", "system", command), "posix.system"
    yield "os", Call("os", "system", command), "os.system"
    code = "open('ran', 'w').close()"
    yield "eval", Call("builtins", "eval", code), "builtins.eval"
    yield "py2", Call("__builtin__", "eval", code), "__builtin__.eval"
    load = Call("torch", "load", "ran")
    yield "load", load, "torch.load"
    dotted = b"\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93"
    yield "dotted", Raw(dotted), "OrderedDict.__init__"
    dotted = b"\x8c\x0ctorch._utils\x8c\x0fsys.modules.get\x93"
    yield "modules", Raw(dotted), "torch._utils.sys.modules.get"
    glued = b"\x8c\x00\x8c\x17collections.OrderedDict\x93"
    yield "glued", Raw(glued), "collections.OrderedDict"
    kwargs = b"cos\nsystem\n)}" + encode("command") + encode(command) + b"s\x92"
    yield "kwargs", Raw(kwargs), "os.system"
    twice = encode(Call("builtins", "getattr", Global("os", "x"), "system"))
    yield "twice", Raw(twice + encode((command,)) + b"R"), "builtins.getattr"
    state = encode(Call("os", "x")) + encode({"__setstate__": command}) + b"b"
    yield "state", Raw(state), "os.x"
    bad = Raw(encode(("storage", Global("os", "system"), "0", "cpu", 1)) + b"Q")
    yield "storage type", bad, "os.system|storage of unknown type"
    bad = Raw(encode(("module", Global("os", "system"), "x", "y")) + b"Q")
    yield "module", bad, "os.system"
    yield "arguments", Call("argparse", "Namespace", 1), "argparse.Namespace"
    yield "parameter", Call("torch._utils", "_rebuild_parameter", 1, 2), None
    # Attributes of a dictionary: ignored.
    build = encode(Call("collections", "OrderedDict"))
    build += encode({"__class__": 1, "__reduce__": "x", "get": 2}) + b"b"
    yield "build", Raw(build), None
    yield "deep key", Raw(b"}" + b")" + b"\x85" * 9999 + b"Ns"), None


CALLS = {name: (value, match) for name, value, match in calls()}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("place", ["root", "item", "beside"])
def test_nothing_is_called(tmp_path, legacy, monkeypatch, name, place):
    monkeypatch.chdir(tmp_path)
    value, match = CALLS[name]
    if place == "beside":
        root = {"model": {"w": tensor()}, "x": value}
        assert_same(read_pickle(tmp_path, root, legacy), {"w": FOUR})
    else:
        root = {"root": value, "item": {"x": value}}[place]
        with pytest.raises(ValueError, match=INCOMPLETE) as caught:
            read_pickle(tmp_path, root, legacy)
        assert re.search(match or "holds no dictionary", str(caught.value))
        assert "Download" not in str(caught.value)
    assert os.listdir(tmp_path) == ["x.pth"]


def broken():
    """Pickles that `torch.save` does not write, with what the error says."""
    text = encode("touch ran")
    number = b"\x8c\x0bcollectionsK\x01\x93"
    yield "number", Raw(number), "names what is no text"
    yield "inst", Raw(b"(" + text + b"ios\nsystem\n"), "INST"
    yield "obj", Raw(b"(cos\nsystem\n" + text + b"o"), "OBJ"
    yield "extension", Raw(b"\x82\x01"), "EXT1"
    yield "text id", Raw(b"P0\n"), "PERSID"
    called = b"ctorch\nFloatStorage\n" + encode(("x",)) + b"R"
    yield "called", Raw(called), "calls what is no function"
    yield "text call", Raw(text + b")R"), "calls what is no function"
    bad = Raw(encode(("module", 1, "0", "cpu", 1)) + b"Q")
    yield "module id", bad, "no tensor storage"
    yield "number id", Raw(b"K\x01Q"), "no tensor storage"
    yield "append", Raw(b"}Na"), "no list"
    yield "set item", Raw(b"]K\x01Ns"), "no dictionary"
    yield "no mark", Raw(b"u"), "pop|shorter"
    yield "memo", Raw(b"h\x07"), "7"
    yield "endless", Raw(b"N" * 1_000_001), "longer than any"
    yield "huge text", Raw(b"\x8d" + b"\xff" * 7 + b"\x7f"), "expected"
    dictionary = b"ccollections\nOrderedDict\n"
    yield "no pairs", Raw(dictionary + text + b"R"), "no arguments"
    yield "text pairs", Call("collections", "OrderedDict", "ab"), "no list"
    yield "many", Call("collections", "OrderedDict", *[[]] * 99), "no argum"


BROKEN = {name: (value, match) for name, value, match in broken()}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("place", ["root", "item", "beside"])
def test_broken_pickle(tmp_path, legacy, monkeypatch, name, place):
    monkeypatch.chdir(tmp_path)
    value, match = BROKEN[name]
    root = {"root": value, "item": {"x": value}, "beside": None}[place]
    with pytest.raises(ValueError, match=f"{INCOMPLETE}.*{match}"):
        read_pickle(
            tmp_path, root or {"model": {"w": tensor()}, "x": value}, legacy
        )
    assert os.listdir(tmp_path) == ["x.pth"]


def test_hostile_pickles_do_run_in_pickle(tmp_path, monkeypatch):
    # Without this, the test above might pass for malformed pickles.
    monkeypatch.chdir(tmp_path)
    for name in ("posix", "os", "eval", "inst", "obj"):
        value, _ = (CALLS | BROKEN)[name]
        pickle.loads(b"\x80\x02" + encode(value) + b".")
        assert (tmp_path / "ran").exists(), name
        (tmp_path / "ran").unlink()


@pytest.mark.parametrize(
    "broken",
    [
        {"size": (5,)},
        {"offset": 1},
        {"offset": -1},
        {"offset": 2**70},
        {"offset": 0.5},
        {"size": (2,), "stride": (4,)},
        {"size": (4,), "stride": (-1,)},
        {"size": (2, 2)},
        {"size": (-1,)},
        {"size": (2**62,), "stride": (0,)},
        {"size": (5,), "stride": (0,)},
        {"size": (2**20, 2**20), "stride": (0, 0)},
        {"size": (2**80,), "stride": (0,)},
        {"size": (1,) * 70, "stride": (0,) * 70},
        {"size": "ab", "stride": "ab"},
        {"size": ((4,),)},
        {"storage": Storage("1")},
        {"storage": Storage("../data.pkl")},
        {"storage": Storage("0", "Double", 2), "size": (4,)},
    ],
)
def test_tensor_outside_of_its_storage(tmp_path, legacy, broken):
    with pytest.raises(ValueError, match=INCOMPLETE):
        read_pickle(tmp_path, {"w": tensor(**broken)}, legacy)


def test_storage_of_two_types(tmp_path, legacy):
    value = {"a": tensor(), "b": tensor(storage=Storage(kind="Int"))}
    with pytest.raises(ValueError, match="two element types"):
        read_pickle(tmp_path, value, legacy)


def test_expanded_tensor_is_read_if_small(tmp_path, legacy):
    value = {"w": tensor((2, 2), (0, 1))}
    expected = {"w": np.array([[0, 1], [0, 1]], "float32")}
    assert_same(read_pickle(tmp_path, value, legacy), expected)
    value["w"] = tensor((3, 4), (0, 1))
    with pytest.raises(ValueError, match=r"as `expand`.*\.contiguous\(\)"):
        read_pickle(tmp_path, value, legacy)


@pytest.mark.parametrize(
    "value, where",
    [
        ([{"w": 0}], r"\[0\]"),
        ((1, {"w": 0}), r"\[1\]"),
        ({"models": [{"w": 0}]}, r"\['models'\]\[0\]"),
    ],
)
def test_tensors_in_a_list(tmp_path, legacy, value, where):
    inner = value["models"] if isinstance(value, dict) else value
    inner[-1]["w"] = tensor()
    message = (
        rf"in a list, at {where}\).*load\(path, weights_only=True\){where}"
    )
    with pytest.raises(ValueError, match=message):
        read_pickle(tmp_path, value, legacy)


def test_big_endian(tmp_path, legacy):
    with pytest.raises(ValueError, match="little-endian"):
        read_pickle(tmp_path, {"w": tensor()}, legacy, byteorder=b"big")


@pytest.mark.parametrize("value", [{}, {"epoch": 1}, [1], {"model": {}}, 1])
def test_no_tensors(tmp_path, legacy, value):
    with pytest.raises(ValueError, match="holds no dictionary"):
        read_pickle(tmp_path, value, legacy)


def test_compressed_zip(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
        archive.writestr("a/data/0", bytes(10**7))
    with pytest.raises(ValueError, match="compressed or overlap"):
        checkpoints.read(path)


def test_zip_of_something_else(tmp_path):
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="zip file without weights"):
        checkpoints.read(path)


# Any file that is not a checkpoint


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path, tmp_path / "absent.pth"):
        with pytest.raises(
            FileNotFoundError,
            match=r"existing file\. Received: path=.*Download",
        ):
            checkpoints.read(path)


@pytest.mark.parametrize(
    "content, advice",
    [
        (b"", "an empty file. Download"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x80\x04}.", "save` did not write"),
        (b"PK", "beginning of a zip file. Download"),
        (bytes(1000), "another library's, as ONNX's"),
        (b"\x08\x07\x12\x07pytorch", "another library's, as ONNX's"),
        (b'{"metadata": {"total_size": 1}', "several files"),
        (b"a.pth".ljust(257, b"\0") + b"ustar", "a tar archive. Unpack"),
    ],
)
def test_unknown_content(tmp_path, content, advice):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(
        ValueError,
        match=r"PyTorch, safetensors or Keras file\. Received: path=",
    ) as caught:
        checkpoints.read(path)
    assert repr(content[:20]) in str(caught.value)
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    "name, advice",
    [
        ("model-00001-of-00002.safetensors", "of several. Load them all"),
        ("model-00001-of-00001.safetensors", None),
        ("__0_0.distcp", "of several. Join them by .*dcp_to_torch /.* new.pth"),
        (".metadata", "of several. Join them by .*dcp_to_torch /.* new.pth"),
        (
            "zero_pp_rank_0_mp_rank_00_model_states.pt",
            "zero_to_fp32.py /.* new",
        ),
        ("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_to_fp32.py"),
        ("mp_rank_00_model_states.pt", None),
        ("epoch_00012.weights.h5", None),
    ],
)
def test_one_of_several_files(tmp_path, name, advice):
    path = tmp_path / name
    path.write_bytes((FOLDER / "tiny.safetensors").read_bytes())
    if advice is None:
        assert checkpoints.read(path)
    else:
        with pytest.raises(ValueError, match=advice):
            checkpoints.read(path)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_safetensors_of_other_numbers(tmp_path, dtype):
    array = {"dtype": dtype, "shape": [2], "data_offsets": [0, 2]}
    header = json.dumps({"fc.\x1b": array}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(2))
    with pytest.raises(ValueError, match=rf"x1b holds {dtype}\)\. Save"):
        checkpoints.read(path)


def test_zip_that_ends_too_early(tmp_path):
    data = (FOLDER / "torch_zip.pth").read_bytes()
    path = tmp_path / "x.pth"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"ends too early\)\. Download it"):
        checkpoints.read(path)


# Keras


@keras.saving.register_keras_serializable("test_checkpoints")
class GroupedConv2D(keras.layers.Conv2D):
    pass


@keras.saving.register_keras_serializable("test_checkpoints")
class Scale(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, inputs):
        return inputs * self.scale


def small_model(dtype=None, bn=True):
    layers = keras.layers
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, use_bias=False, dtype=dtype, name="conv1_conv")(
        inputs
    )
    x = layers.BatchNormalization(dtype=dtype, name="conv1_bn")(x)
    x = GroupedConv2D(4, 3, groups=1, name="conv2_block1_2_conv")(x)
    x = layers.BatchNormalization(scale=bn, name="conv2_block1_2_bn")(x)
    x = Scale(name="scaling")(x)
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = layers.Dense(2, dtype=dtype, name="predictions")(x)
    model = keras.Model(inputs, x, name="small")
    rng = np.random.default_rng(0)
    model.set_weights([rng.random(w.shape) for w in model.get_weights()])
    return model


def named_weights(model):
    return {
        f"{layer.name}/{variable.name}": np.asarray(
            keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))
        )
        for layer in model.layers
        for variable in layer.variables
    }


def triples(model):
    return [
        (type(layer).__name__, layer.name, [v.name for v in layer.variables])
        for layer in model.layers
    ]


UNNAMED = {"scaling/scale": "scaling/0"}


def expected_weights(model):
    weights = named_weights(model)
    return {UNNAMED.get(name, name): a for name, a in weights.items()}


@pytest.mark.parametrize("name", ["x.keras", "x.weights.h5"])
def test_keras_file(tmp_path, name):
    model = small_model()
    model.compile("adam", "mse", run_eagerly=True)
    model.fit(np.zeros((1, 6, 6, 3)), np.zeros((1, 2)), verbose=0)
    path = tmp_path / name
    model.save(path) if name == "x.keras" else model.save_weights(path)
    assert_same(checkpoints.read(path), expected_weights(model))


def test_keras_file_names_what_batch_normalization_has(tmp_path):
    model = small_model(bn=False)
    model.save(tmp_path / "x.keras")
    arrays = checkpoints.read(tmp_path / "x.keras")
    assert_same(arrays, expected_weights(model))
    model.save_weights(tmp_path / "x.weights.h5")
    arrays = checkpoints.read(tmp_path / "x.weights.h5")
    assert {n for n in arrays if n.startswith("conv2_block1_2_bn")} == {
        f"conv2_block1_2_bn/{i}" for i in range(3)
    }


def test_keras_bfloat16(tmp_path):
    model = small_model(dtype="bfloat16")
    path = tmp_path / "x.weights.h5"
    model.save_weights(path)
    assert_same(checkpoints.read(path), expected_weights(model))


def test_weights_without_names(tmp_path):
    model = small_model()
    path = tmp_path / "x.weights.h5"
    model.save_weights(path)
    with h5py.File(path, "a") as file:
        for group in file["layers"].values():
            del group["vars"].attrs["name"]
    raw = checkpoints.read(path)
    assert {"layers/conv2d/vars/0", "layers/dense/vars/1"} <= set(raw)
    expected = named_weights(model)
    renamed = checkpoints.rename_keras_variables(raw, triples(model))
    assert_same(renamed, expected)


def test_rename_counts_per_class_and_keeps_the_rest():
    layers = [
        ("Conv2D", "a", ["kernel"]),
        ("Functional", "model", [("Conv2D", "inner", ["kernel"])]),
        ("Conv2D", "b", ["kernel", "bias"]),
    ]
    arrays = {
        "layers/conv2d/vars/0": 1,
        "layers/conv2d_1/vars/0": 2,
        "layers/conv2d_1/vars/1": 3,
        "layers/functional/layers/conv2d/vars/0": 4,
        "layers/dense/vars/0": 5,
        "other": 6,
    }
    assert checkpoints.rename_keras_variables(arrays, layers) == {
        "a/kernel": 1,
        "b/kernel": 2,
        "b/bias": 3,
        "inner/kernel": 4,
        "layers/dense/vars/0": 5,
        "other": 6,
    }


def test_rename_refuses_one_name_twice():
    layers = [("Conv2D", "a", ["kernel"]), ("Dense", "a", ["kernel"])]
    arrays = {"layers/conv2d/vars/0": 1, "layers/dense/vars/0": 2}
    with pytest.raises(ValueError, match="have the name 'a/kernel'"):
        checkpoints.rename_keras_variables(arrays, layers)


def nested_model():
    inputs = keras.Input((6, 6, 3))
    x = small_model()(inputs)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x))


@pytest.mark.parametrize("name", ["x.keras", "x.weights.h5", "x.h5"])
def test_nested_model(tmp_path, name):
    model = nested_model()
    path = tmp_path / name
    model.save_weights(path) if "weights" in name else save(model, path)
    expected = named_weights(model.get_layer("small"))
    if name != "x.h5":
        expected = expected_weights(model.get_layer("small"))
    head = model.get_layer("head")
    expected["head/kernel"], expected["head/bias"] = head.get_weights()
    assert_same(checkpoints.read(path), expected)


def save(model, path):
    model.save(path)


@pytest.mark.parametrize("whole", [True, False])
def test_keras_2(tmp_path, whole):
    model = small_model()
    model.compile("adam", "mse")
    path = tmp_path / "x.h5"
    if whole:
        model.save(path)
    else:
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = [layer.name for layer in model.layers]
            for layer in model.layers:
                group = file.create_group(layer.name)
                for v in layer.variables:
                    group[f"{layer.name}_1/{v.name}:0"] = np.asarray(v)
    assert_same(checkpoints.read(path), named_weights(model))


def write_h5(path, fill):
    with h5py.File(path, "w") as file:
        fill(file)
    return path


def test_h5_links_are_not_followed(tmp_path):
    write_h5(tmp_path / "other.h5", lambda f: f.create_group("model_weights"))

    def fill(file):
        file["layers/conv2d/vars/0"] = np.ones(3)
        file["layers/conv2d/vars/1"] = h5py.SoftLink("/layers/conv2d/vars/0")
        file["layers/dense"] = h5py.ExternalLink("other.h5", "/")
        file["model_weights"] = h5py.ExternalLink("other.h5", "/model_weights")
        file["layers/conv2d/loop"] = file["layers"]

    arrays = checkpoints.read(write_h5(tmp_path / "x.h5", fill))
    assert_same(arrays, {"layers/conv2d/vars/0": np.ones(3)})


def external(file):
    external = [("secret.bin", 0, 32)]
    file.create_dataset("a", (4,), "f8", external=external)
    file["b"] = np.zeros(100)


def virtual(file):
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "a", (4,))
    file.create_virtual_dataset("a", layout)


@pytest.mark.parametrize(
    ("fill", "match"),
    [
        (external, "another file"),
        (virtual, "another file"),
        (lambda f: f.create_dataset("a", (2**40,), "f4", chunks=(9,)), "compr"),
        (lambda f: f.create_dataset("a", (2**62, 4), "f8", chunks=(9, 1)), ""),
        (
            lambda f: f.create_dataset("a", data=np.zeros(10**6), **GZIP),
            "compr",
        ),
        (lambda f: f.create_dataset("a", data=["x"]), "holds object"),
        (lambda f: f.create_dataset("a", data=h5py.Empty("f")), "NoneType"),
        (lambda f: f.create_dataset("a", data=np.void(b"xx")), "holds"),
    ],
)
def test_h5_that_must_not_be_read(tmp_path, fill, match):
    (tmp_path / "secret.bin").write_bytes(bytes(32))
    with pytest.raises(ValueError, match=f"{INCOMPLETE}.*{match}"):
        checkpoints.read(write_h5(tmp_path / "x.h5", fill))


GZIP = {"compression": "gzip"}


def never_written(file):
    file.create_dataset("a", (4,), "f4")
    file["b"] = np.zeros(100, "f4")


def half_written(file):
    file.create_dataset("a", (400,), "f4", chunks=(4,))[:4] = 1
    file["b"] = np.zeros(1000, "f4")


def odd_float(file):
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(120)
    space = h5py.h5s.create_simple((4,))
    h5py.h5d.create(file.id, b"a", kind, space)
    file["b"] = np.zeros(10, "f4")


def two_orders(file):
    file["a"], file["b"] = np.ones(4, "<f4"), np.ones(4, ">f4")


def a_huge_chunk(file):
    file["b"] = np.zeros(10**4)
    file.create_dataset("a", (1,), "i1", chunks=(2**32 - 1,), maxshape=(None,))


def deep(file):
    group = file
    for _ in range(200):
        group = group.create_group("a")
    group["a"] = np.ones(3, "f4")


@pytest.mark.parametrize(
    ("fill", "match"),
    [
        (never_written, "/a was never written"),
        (half_written, "/a is chunked"),
        (a_huge_chunk, "/a is chunked"),
        (odd_float, "/a holds float64, or a variant"),
        (two_orders, "byte orders"),
        (lambda f: f.create_dataset("a", data=np.ones(3, "g")), "holds float"),
        (lambda f: f.create_dataset("a", data=np.ones(3, "c8")), "complex64"),
        (deep, "nested deeper"),
        (lambda f: f.create_dataset("n" * 5000, data=[1.0]), "nested deeper"),
        (lambda f: f.create_dataset("\x1b[2J", data=[1j]), r"\\x1b\[2J holds"),
    ],
)
def test_h5_whose_numbers_are_none(tmp_path, fill, match):
    with pytest.raises(ValueError, match=f"{INCOMPLETE}.*{match}"):
        checkpoints.read(write_h5(tmp_path / "x.h5", fill))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4", ">f8"])
def test_h5_of_standard_numbers(tmp_path, dtype):
    values = np.linspace(-1, 1, 7).astype(dtype)

    def fill(file):
        file["a"], file["b"] = values, values[:0]
        file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, "uint32")

    if dtype.startswith(">"):  # all of a file are of one byte order
        with pytest.raises(ValueError, match="byte orders"):
            checkpoints.read(write_h5(tmp_path / "x.h5", fill))
    path = write_h5(
        tmp_path / "y.h5", lambda f: f.create_dataset("a", data=values)
    )
    np.testing.assert_array_equal(checkpoints.read(path)["a"], values)


def test_h5_address_that_moved(tmp_path):
    """Wherever else in the file: into others, into the file's structure."""
    data = (FOLDER / "tiny.weights.h5").read_bytes()
    with h5py.File(io.BytesIO(data)) as file:
        kernel = file["layers/conv2d/vars/0"]
        start, size = kernel.id.get_offset(), kernel.nbytes
    field = data.index(struct.pack("<QQ", start, size))
    path = tmp_path / "x.weights.h5"
    read = []
    for other in range(start % 64, len(data), 64):
        moved = data[:field] + struct.pack("<Q", other) + data[field + 8 :]
        path.write_bytes(moved)
        try:
            checkpoints.read(path)
            read.append(other)
        except ValueError:
            pass
    # Its own place, and perhaps the two ends of the room that nothing uses.
    assert start in read and len(read) <= 3


def without_layers(config):
    del config["config"]["layers"]


def in_another_order(config):
    config["config"]["layers"].reverse()


def of_ones_own(config):
    """As a layer without `get_config`, and as others may describe theirs."""
    layers = config["config"]["layers"]
    del layers[2]["config"]["name"]
    layers[3]["config"] = {"layers": 3}
    layers[4] = "layer"


@pytest.mark.parametrize(
    "change", [without_layers, in_another_order, of_ones_own]
)
def test_names_in_a_keras_file_count_before_its_config(tmp_path, change):
    path = tmp_path / "x.keras"
    small_model().save(path)
    with zipfile.ZipFile(path) as archive:
        weights = archive.read("model.weights.h5")
        config = json.loads(archive.read("config.json"))
    change(config)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights)
    assert_same(checkpoints.read(path), expected_weights(small_model()))


@pytest.mark.parametrize("kind", ["plain", "nested"])
def test_keras_file_without_names(tmp_path, kind):
    """As Keras before 3.10 wrote them, whose names are in the config alone."""
    model = small_model(bn=False) if kind == "plain" else nested_model()
    path = tmp_path / "x.keras"
    model.save(path)
    expected = checkpoints.read(path)
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json")
        weights = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(weights, "a") as file:
        file.visititems(lambda _, item: item.attrs.clear())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", weights.getvalue())
    assert_same(checkpoints.read(path), expected)


@pytest.mark.parametrize(
    "padding", [None, 3, "same", {}, [[0, 1]], [[1, 1]] * 2]
)
def test_layers_of_a_config_that_says_anything(tmp_path, padding):
    layers = [
        {"class_name": "Activation", "config": {"name": "conv2_block1_out"}},
        {
            "class_name": "P",
            "config": {"name": "pool1_pad", "padding": padding},
        },
        {"class_name": 3, "config": {"name": "conv3_block1_2_pool"}},
        {"class_name": "P", "config": {"name": ["conv3_block1_2_pool"]}},
        {"class_name": "P", "config": "conv3_block1_2_pool"},
    ]
    path = tmp_path / "x.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps({"config": [[layers]]}))
    found = checkpoints.layers(path)
    assert found == {
        "conv2_block1_out": ("Activation", None),
        "pool1_pad": ("P", padding),
    }
    facts = {"stem": "imagenet"} if padding else {}
    assert structure.describe_layers(found) == facts | {"anti_aliased": False}


def test_a_pytorch_file_with_files_of_keras(tmp_path):
    """Of which nothing is believed, as nothing of them has been checked."""
    path = tmp_path / "net.pth"
    path.write_bytes((FOLDER / "torch_zip.pth").read_bytes())
    names = checkpoints.read(path).keys()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", "{")
        archive.writestr("model.weights.h5", b"\x89HDF")
    assert checkpoints.read(path).keys() == names
    assert checkpoints.layers(path) == {}


# Damage


def test_texts_that_libhdf5_reads_forever():
    data = bytearray((FOLDER / "tiny.weights.h5").read_bytes())
    heap = data.index(b"GCOL")
    for at, value in ((8, 255), (14, 255), (24, 255), (31, 255), (30, 7)):
        damaged = data.copy()
        damaged[heap + at] = value
        with pytest.raises(ValueError, match="its texts"):
            checkpoints._check_heaps(bytes(damaged))


def test_attribute_whose_damaged_type_crashes_libhdf5(tmp_path):
    data = bytearray((FOLDER / "tiny.weights.h5").read_bytes())
    name = data.index(b"name\0\0\0\0\x19\x01")
    data[name + 9] = 255  # no longer a text
    path = tmp_path / "x.weights.h5"
    path.write_bytes(data)
    arrays = checkpoints.read(path)
    assert len(arrays) == len(make_fixtures.keras_arrays())


def contents():
    # Not written here: libhdf5 itself crashes on some damage, so that the
    # bytes to flip must be the same on every machine.
    names = FIXTURES + KERAS_FIXTURES
    return {name: (FOLDER / name).read_bytes() for name in names}


def test_truncated_files(tmp_path):
    path = tmp_path / "cut"
    for name, data in contents().items():
        for length in (1, 9, 20, len(data) // 3, len(data) - 1):
            path.write_bytes(data[:length])
            with pytest.raises(ValueError, match=r"\. Received: path="):
                checkpoints.read(path)
                pytest.fail(f"{name} cut to {length} bytes was read")


def test_flipped_bytes(tmp_path):
    rng = random.Random(0)
    path = tmp_path / "flipped"
    for data in contents().values():
        for _ in range(300):
            flipped = bytearray(data)
            for _ in range(rng.choice((1, 1, 3))):
                # Half of the flips in what describes the arrays.
                end = rng.choice((len(data), 1500))
                flipped[rng.randrange(end)] = rng.randrange(256)
            path.write_bytes(flipped)
            try:
                arrays = checkpoints.read(path)
            except ValueError as error:
                assert "Received: path=" in str(error)
            else:
                assert isinstance(arrays, dict)


def test_flipped_pickle_without_checksum(tmp_path):
    # The zip's checksum hides the pickle from the test above.
    name = "torch_zip/data.pkl"
    with zipfile.ZipFile(FOLDER / "torch_zip.pth") as archive:
        entries = {n: archive.read(n) for n in archive.namelist()}
    rng = random.Random(0)
    for _ in range(300):
        flipped = bytearray(entries[name])
        flipped[rng.randrange(len(flipped))] = rng.randrange(256)
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for key, content in (entries | {name: bytes(flipped)}).items():
                archive.writestr(key, content)
        path = pathlib.Path(tmp_path / "flipped.pth")
        path.write_bytes(file.getvalue())
        try:
            checkpoints.read(path)
        except ValueError as error:
            assert "Received: path=" in str(error)


# The convolution of keras-applications


@pytest.mark.parametrize(("groups", "channels"), [(1, 3), (3, 2), (4, 4)])
def test_grouped_from_depthwise(groups, channels):
    filters = groups * channels
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 5, 5, filters)).astype("float32")
    kernel = rng.normal(size=(3, 3, filters, channels)).astype("float32")
    # `block3` of keras_applications/resnet_common.py, line by line.
    x = keras.ops.depthwise_conv(image, kernel, padding="valid")
    x = np.reshape(
        keras.ops.convert_to_numpy(x), (2, 3, 3, groups, channels, channels)
    )
    x = sum(x[:, :, :, :, i] for i in range(channels))
    expected = np.reshape(x, (2, 3, 3, filters))

    arrays = {"a_2_conv/depthwise_kernel": kernel}
    grouped = checkpoints.grouped_from_depthwise(arrays)["a_2_conv/kernel"]
    assert grouped.shape == (3, 3, channels, filters)
    for g in range(groups):
        part = slice(g * channels, (g + 1) * channels)
        actual = keras.ops.conv(
            image[..., part], grouped[..., part], padding="valid"
        )
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(actual),
            expected[..., part],
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.mark.parametrize(("groups", "channels"), [(1, 3), (3, 2), (4, 4)])
def test_groups_are_read_off_the_kernel(groups, channels):
    filters = groups * channels
    kernel = np.random.default_rng(0).random((3, 3, filters, channels))
    # `block3` after keras-applications' change 85, line by line.
    sums = np.zeros((1, 1, filters * channels, filters), dtype=np.float32)
    for i in range(filters):
        start = (i // channels) * channels * channels + i % channels
        end = start + channels * channels
        sums[:, :, start:end:channels, i] = 1.0
    arrays = {"a_2_conv/depthwise_kernel": kernel}
    expected = checkpoints.grouped_from_depthwise(arrays)
    arrays["a_2_gconv/kernel"] = sums
    assert_same(checkpoints.grouped_from_depthwise(arrays), expected)
    if channels > 1:
        arrays["a_2_gconv/kernel"] = np.roll(sums, 1, axis=2)
        read = checkpoints.grouped_from_depthwise(arrays)
        assert read.keys() == {"a_2_conv/kernel", "a_2_gconv/kernel"}
