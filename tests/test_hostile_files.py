"""Small files that claim, repeat or nest so much that they could take all.

Each is read in a process of its own, whose memory and time are measured.
"""

import bz2
import functools
import itertools
import json
import lzma
import re
import struct
import zipfile
import zlib

import fuzz
import h5py
import isolated
import numpy as np
import pytest
from isolated import FIXTURES
from safetensors.numpy import save_file

from keras_resnext.weights import assign

MEGABYTES = 100  # what reading may take, whatever the file claims
SECONDS = 30  # of processor time: most take less than one, none ten
TEXT = 2**20


def binary_text(text):
    return b"X" + struct.pack("<I", len(text)) + text


def put(n):
    return b"r" + struct.pack("<I", n)


def get(n):
    return b"j" + struct.pack("<I", n)


STORAGE = (
    b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\4tQ"
)
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
PARAMETER = b"ctorch._utils\n_rebuild_parameter\n"
DICTIONARY = b"ccollections\nOrderedDict\n"


def tensor(offset=b"K\0", size=b"K\4\x85", stride=b"K\1\x85"):
    rest = b"\x89" + DICTIONARY + b")R"
    return REBUILD + b"(" + STORAGE + offset + size + stride + rest + b"tR"


def state(value, before=b""):
    """A pickle of one dictionary, made after `before`, which stays below."""
    return b"\x80\2" + before + b"}" + binary_text(b"w") + value + b"s."


def pickles():
    long = binary_text(b"a" * TEXT) + put(0)
    many = b"(" + b"N" * 300_000 + b"t" + put(0)
    texts = b"(" + get(0) * 400 + b"t"
    yield "stride of texts", state(tensor(stride=texts, size=texts), long)
    yield "offset text", state(tensor(offset=get(0)), long)
    huge = b"\x8b" + struct.pack("<i", TEXT) + b"\x7f" * TEXT + put(0)
    sizes = b"(" + get(0) * 400 + b"t"
    yield "huge numbers", state(tensor(sizes, sizes, sizes), huge)
    yield "long size", state(tensor(size=get(0), stride=get(0)), many)
    for name, before in (("text", long), ("tuple", many)):
        for function in (DICTIONARY, PARAMETER, b"cos\nsystem\n"):
            calls = function + put(1)
            calls += (get(1) + get(0) + b"R") * 100_000
            to = function.split()[-1].decode()
            yield f"{name} to {to}", state(tensor(), before + calls)
    pairs = DICTIONARY + put(1) + b"](" + get(0) * 1000 + b"e" + put(2)
    pairs += (get(1) + get(2) + b"\x85R") * 10_000
    yield "pairs", state(tensor(), long + pairs)
    from_type = b"ctorch._tensor\n_rebuild_from_type_v2\n" + put(1) + b")"
    for _ in range(5_000):
        from_type += put(2) + get(1) + get(1) + get(2) + b"\x87"
    calls = (get(1) + get(2) + b"R") * 50_000
    yield "nested calls", state(tensor(), from_type + put(2) + calls)
    yield "deep tuple", state(b")" + b"\x85" * 300_000)
    yield "deep list", state(b"](" * 100_000 + b"e" * 100_000)
    deep = b"".join(b"}" + binary_text(b"a") for _ in range(99_999))
    yield "deep dictionary", state(deep + b"N" + b"s" * 99_999)
    double = b"]" + put(0)
    for n in range(1000):
        double += b"](" + get(n) * 99 + b"e" + put(n + 1)
    yield "lists of lists", state(get(1000), double)
    double = b"}" + put(0)
    for n in range(200):
        names = (binary_text(b"%d" % i) + get(n) for i in range(200))
        double += b"}(" + b"".join(names) + b"u" + put(n + 1)
    yield "dictionaries of dictionaries", state(get(200), double)
    names = (b"p%d.layer1.0.conv1.weight" % i for i in range(30_000))
    items = b"".join(binary_text(name) + get(0) for name in names)
    tensors = tensor() + put(0)
    yield "prefixes", b"\x80\2" + tensors + b"}(" + items + b"u."
    items = b"".join(
        binary_text(b"n%d" % i) + b"}" + binary_text(b"w") + get(0) + b"s"
        for i in range(30_000)
    )
    yield "networks", b"\x80\2" + tensors + b"}(" + items + b"u."
    for length in (TEXT, 1000):  # what one text is searched for many times
        long = binary_text(b"." * length) + put(1)
        items = b"".join(
            binary_text(b"%d" % i) + b"}" + get(1) + get(0) + b"s"
            for i in range(100_000)
        )
        code = b"\x80\2" + tensors + long + b"}(" + items + b"u."
        yield f"name of {length} in many", code
    names = binary_text(b"layer1.0." + b"\x1b" * TEXT)
    yield "long name", b"\x80\2}" + names + tensor(size=b"K\5\x85") + b"s."
    yield "objects", state(b"(" + b"ca\nb\n)\x81" * 100_000 + b"t")
    yield "sets", state(b"(" + b"\x8f" * 990_000 + b"t")
    yield "memo", state(b"N" + b"\x94" * 300_000)
    for name, code in (
        ("text", b"\x8d"),
        ("bytes", b"\x8e"),
        ("array", b"\x96"),
        ("frame", b"\x95"),
    ):
        for size in (2**31, 2**62, 2**64 - 1):
            yield f"{name} {size}", b"\x80\4" + code + struct.pack("<Q", size)
    for size in (2**31 - 1, -(2**31)):
        yield f"number {size}", b"\x80\4\x8b" + struct.pack("<i", size)
        yield f"short {size}", b"\x80\2T" + struct.pack("<i", size)
    kinds = b"c" + b"m" * TEXT + b"\n" + b"n" * TEXT + b"\n" + put(0)
    yield "long global", b"\x80\2" + kinds + (get(0) + b")R") * 10_000 + b"."
    joined = binary_text(b"a" * TEXT) + put(0)
    joined += (get(0) + get(0) + b"\x93") * 330_000
    yield "long globals", b"\x80\4" + joined + b"."
    other = b"c" + b"m" * 200 + b"\n" + b"n" * 200 + b"\n" + put(0)
    other += b"(" + binary_text(b"storage") + get(0)
    other += binary_text(b"0") * 3 + b"t" + put(1)
    references = b"(" + (get(1) + b"Q") * 490_000 + b"t"
    yield "references", state(references, other)
    other += REBUILD + put(2) + b"(" + get(1) + b"QK\0))t" + put(3)
    tensors = b"(" + (get(2) + get(3) + b"R") * 320_000 + b"t"
    yield "other tensors", state(tensors, other)


def stored(**entries):
    """A zip file of one folder, as `torch.save` writes it."""

    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in entries.items():
                archive.writestr(f"a/{name.replace('_', '.')}", data)
            archive.writestr("a/data/0", bytes(16))

    return write


def entry(method, data, claims=100, crc=0, extra=b"", name=b"a/data.pkl"):
    """A zip file with one entry, and sizes of one's own."""
    numbers = (20, 0, method, 0, 0, crc, len(data), claims)
    numbers += (len(name), len(extra))
    local = b"PK\3\4" + struct.pack("<5H3I2H", *numbers) + name + extra + data
    central = b"PK\1\2" + struct.pack("<6H3I5H2I", 20, *numbers, *[0] * 5)
    central += name + extra
    ends = struct.pack("<4H2IH", 0, 0, 1, 1, len(central), len(local), 0)
    return local + central + b"PK\5\6" + ends


def inflating():
    code = b"\x80\2" + bytes(110_000_000)  # as if a pickle
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    yield 8, packer.compress(code) + packer.flush()
    yield 12, bz2.compress(code, 1)
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 0}]
    packer = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=filters)
    header = b"\x09\4\5\0" + b"\x5d" + struct.pack("<I", 2**18)
    yield 14, header + packer.compress(code) + packer.flush()


def zips():
    for method, data in inflating():
        for claims in (100, len(data)):
            yield f"method {method}, {claims}", entry(method, data, claims)
    yield "claims more", entry(0, b"\x80\2}.", 2**31)
    big = struct.pack("<HHQQ", 1, 16, 2**60, 2**60)
    data = entry(0, b"\x80\2}.", 2**32 - 1, extra=big)
    yield "claims of 64 bits", data
    # Five thousand entries at one place.
    name, data = b"a/data.pkl", b"\x80\2" + b"N" * 100_000 + b"."
    crc, size = zlib.crc32(data), len(data)
    numbers = (20, 0, 0, 0, 0, crc, size, size, len(name), 0)
    local = b"PK\3\4" + struct.pack("<5H3I2H", *numbers) + name + data
    central = b"PK\1\2" + struct.pack("<6H3I5H2I", 20, *numbers, *[0] * 5)
    central = (central + name) * 5000
    ends = (0, 0, 5000, 5000, len(central), len(local), 0)
    ends = b"PK\5\6" + struct.pack("<4H2IH", *ends)
    yield "overlap", local + central + ends
    many = b"".join(
        b"PK\1\2"
        + struct.pack("<6H3I5H2I", 20, *numbers[:-2], 5, 0, *[0] * 5)
        + b"%05d" % i
        for i in range(60_000)
    )
    ends = (0, 0, 60_000, 60_000, len(many), len(local), 0)
    yield "many", local + many + b"PK\5\6" + struct.pack("<4H2IH", *ends)


def legacy():
    data = (FIXTURES / "torch_legacy.pth").read_bytes()
    keys = data.rindex(b"\x80\2]q\0(")
    yield "text of keys", data[:keys] + b"\x80\2" + binary_text(b"0" * TEXT)
    yield (
        "keys again",
        (
            data[:keys]
            + b"\x80\2]("
            + b"X\1\0\0\x000" * 100_000
            + b"e."
            + bytes(300_000)
        ),
    )
    end = data.index(b"e.", keys) + 2
    for count in (2**31, 2**61, 2**63, 2**64 - 1):
        counted = data[:end] + struct.pack("<Q", count) + data[end + 8 :]
        yield f"count {count}", counted


def hdf5():
    def deep(file):
        group = file
        for _ in range(10_000):
            group = group.create_group("a")

    def chunk(file):
        options = {"chunks": (2**32 - 1,), "compression": "gzip"}
        data = file.create_dataset("a", (2**32 - 1,), "i1", **options)
        data.id.write_direct_chunk((0,), zlib.compress(bytes(10**7)))
        file["b"] = np.zeros(10**5)

    def groups(file):
        for n in range(1_500):
            file.create_group(f"{n}")

    def long_names(file):
        for n in range(300):
            group = file.create_group(f"layers/conv2d_{n}/vars")
            group.attrs["name"] = "n" * 60_000
        # One text for all of them would be as good.

    def long_groups(file):
        group = file.create_group("g" * TEXT)
        for n in range(500):
            group[f"{n}"] = n

    def attribute(file):
        file.create_group("layers/conv2d/vars").attrs["name"] = np.zeros(8000)
        file["a"] = np.zeros(3)

    def tables(file):
        file["a"] = np.frombuffer(b"HEAP\0\0\0\0" * 600_000, "u1")

    def datasets(file):
        for n in range(8_000):
            file[f"{n}"] = np.zeros(1, "f4")

    def more(file):
        for n in range(5_000):
            file[f"layers/dense_{n}/vars/0"] = np.zeros(1, "f4")

    yield from locals().items()


def overlapping(count, messages, path):
    """Writes groups whose headers, of version 1, share most of their bytes."""
    with h5py.File(path, "w", libver="earliest") as file:
        groups = [file.create_group(f"{n:04}") for n in range(count)]
        old = [h5py.h5o.get_info(group.id).addr for group in groups]
    data = bytearray(path.read_bytes())
    table = data[old[0] + 16 : old[0] + 40]  # the message of a group
    start, size = len(data), 48 * count + 8 * messages
    new = {at: start + 48 * n + 8 for n, at in enumerate(old)}
    for n, at in enumerate(new.values()):
        data += struct.pack("<HHI", 0, 40, 0)  # hides the next group's header
        number = count - n + messages
        rest = start + size - at - 16
        data += struct.pack("<BBHII4x", 1, 0, number, 1, rest) + table
    data += bytes(8 * messages)
    for node in re.finditer(b"SNOD", data[:start]):
        (entries,) = struct.unpack_from("<H", data, node.start() + 6)
        for at in range(node.end() + 12, node.end() + 12 + 40 * entries, 40):
            (address,) = struct.unpack_from("<Q", data, at)
            struct.pack_into("<QI", data, at, new.get(address, address), 0)
    struct.pack_into("<Q", data, 40, len(data))
    path.write_bytes(data)


def claims():
    data = (FIXTURES / "tiny.weights.h5").read_bytes()
    for old in (struct.pack("<Q", n) for n in (3, 4, 8, 16, 32, 432)):
        for new in (2**31, 2**40, 2**63):
            changed = data.replace(old, struct.pack("<Q", new))
            yield f"{old[0]} as {new}", changed


def safetensors():
    def file(header, size=0):
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + bytes(size)

    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    yield "header", struct.pack("<Q", 2**26) + b"{" + b" " * 2**20
    yield "tensors", file({f"{n}": empty for n in range(20_000)})
    yield "same bytes", file({f"{n}": one for n in range(20_000)}, 4)
    yield "nested", struct.pack("<Q", TEXT) + b'{"a":' + b"[" * (TEXT - 5)
    yield "shape", file({"a": one | {"shape": [1] * 100_000}}, 4)
    yield "empty", file({"a": empty | {"shape": [0, 2**62, 2**62]}})
    yield "product", file({"a": one | {"shape": [2**33, 2**33]}}, 4)
    yield "long name", file({"a\x1b" * TEXT: empty | {"dtype": "I8"}})


def keras():
    with zipfile.ZipFile(FIXTURES / "tiny.keras") as archive:
        config = json.loads(archive.read("config.json"))
        weights = archive.read("model.weights.h5")

    def changed(**options):
        inner = config["config"] | options
        return json.dumps(config | {"config": inner}).encode()

    dense = {"class_name": "Dense", "config": {"name": "n" * TEXT}}
    nested = {"class_name": "a" * 10_000, "config": {"name": "b"}}
    for _ in range(60):
        inner = {"name": "b", "layers": [nested]}
        nested = {"class_name": "a" * 10_000, "config": inner}
    yield "nested", weights, b"[" * TEXT
    yield "objects", weights, b'{"a":' * TEXT
    yield "lists", weights, b"[" + b"[]," * 10**6 + b"1]"
    yield "dictionaries", weights, b"[" + b'{"":0},' * 599_000 + b"1]"
    names = b",".join(b'"%x":0' % n for n in range(400_000))
    yield "names", weights, b"{" + names + b"}"
    names = b",".join(b'"%x":0' % n for n in range(190_000))
    yield "fewer names", weights, b"{" + names + b"}"
    yield "fewer dictionaries", weights, b"[" + b'{"":0},' * 95_000 + b"1]"
    yield "models", weights, changed(layers=[nested] * 3)
    yield "long config", weights, b" " * (2**22 + 1)
    yield "no dictionary", weights, b"[1]"
    with h5py.File("many", "w", driver="core", backing_store=False) as file:
        for n in range(1000):
            file[f"layers/dense/vars/{n}"] = np.zeros(1, "f4")
        file.flush()
        many = file.id.get_file_image()
    yield "long name", many, changed(layers=[dense])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    numbers = itertools.count()
    files = {}

    def add(kind, name, write):
        path = folder / f"{next(numbers)}"
        write(path) if callable(write) else path.write_bytes(write)
        files[str(path)] = f"{kind}: {name}"

    for name, code in pickles():
        add("pickle", name, stored(data_pkl=code))
    for kind, found in (
        ("zip", zips()),
        ("legacy", legacy()),
        ("claims in HDF5", claims()),
        ("safetensors", safetensors()),
    ):
        for name, data in found:
            add(kind, name, data)
    for name, fill in hdf5():

        def write(path, fill=fill):
            with h5py.File(path, "w", libver="latest") as file:
                fill(file)

        add("HDF5", name, write)
    for count in (1, 3, 1500):
        write = functools.partial(overlapping, count, 64_000)
        add("overlapping headers", count, write)
    for name, weights, config in keras():

        def write(path, weights=weights, config=config):
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("config.json", config)
                archive.writestr("model.weights.h5", weights)

        add("keras", name, write)
    return {files[r["path"]]: r for r in isolated.read(files)}, files


def test_memory_and_time(results):
    found, files = results
    assert found.keys() == set(files.values())
    faults = [
        (name, result["status"], result["megabytes"], result["seconds"])
        for name, result in found.items()
        if result["status"]
        or result["megabytes"] > MEGABYTES
        or result["seconds"] > SECONDS
    ]
    assert not faults


def test_messages(results):
    found, _ = results
    for name, result in found.items():
        message = result.get("message", "")
        assert "message" in result or "arrays" in result, name
        assert len(message) < 2000 and message.isprintable(), name


def test_headers_that_overlap(results):
    found, _ = results
    assert found["overlapping headers: 1"]["arrays"] == 0
    for count in (3, 1500):
        message = found[f"overlapping headers: {count}"]["message"]
        assert "longer headers than any network's" in message


def test_damage(tmp_path):
    """As `python tests/fuzz.py`, which goes on for as long as one likes."""
    faults, accepted = fuzz.judge(tmp_path, 300, seed=0)
    assert not faults
    assert 50 < accepted < 250


@pytest.mark.parametrize("event", ["os.system", "open"])
def test_what_is_forbidden_is_seen(event, tmp_path, monkeypatch):
    """Without this, the tests above might see nothing."""
    path = tmp_path / "ran"
    seen = []
    monkeypatch.setattr(isolated.os, "_exit", seen.append)
    monkeypatch.setattr(isolated.os, "write", lambda *_: None)
    isolated._forbid(event, (str(path), "w", isolated.os.O_WRONLY))
    isolated._forbid("open", (str(path), "r", isolated.os.O_RDONLY))
    assert seen == [9]


@pytest.mark.parametrize(
    "shapes",
    [
        {"2_conv/kernel": (1, 1, 1, 1), "3_conv/kernel": (1, 1, 1, 40_000)},
        {"2_conv/kernel": (1, 1, 1, 9_000), "3_conv/kernel": (1, 1, 1, 4)},
        {"2_conv/kernel": (3, 3, 1, 9_000)},  # of a basic block
    ],
)
@pytest.mark.parametrize("depths", [[1], [3, 3, 3], [1] * 60])
def test_shapes_of_a_network_that_fills_all_memory(shapes, depths, tmp_path):
    arrays = {
        f"conv{stage}_block{depth}_2_conv/kernel": np.zeros((1, 1, 1, 1), "f2")
        for stage, depth in enumerate(depths, 2)
    }
    for name, shape in shapes.items():
        arrays[f"conv2_block1_{name}"] = np.zeros(shape, "f2")
    path = tmp_path / "net.safetensors"
    save_file(arrays, path)
    assert path.stat().st_size < 400_000
    with pytest.raises(ValueError, match=r"hold all of its network.* numbers"):
        assign.read(path)


def test_channels_of_a_file(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({"conv1_conv/kernel": np.zeros((1, 1, 200_000, 1), "f2")}, path)
    assert assign.read(path).channels == 3
