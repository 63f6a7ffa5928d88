"""Damages files of every format at random, and judges how they are read.

    python tests/fuzz.py --files 20000 --seed 1

reads so many files, about a hundred a second, each in a process of its own,
and prints what must not be: a crash, an error that is no sentence, something
that was run or written, more than 100 MB, numbers that moved. The default
test run has a few hundred of them, always the same.
"""

import argparse
import io
import itertools
import pathlib
import pickletools
import random
import tempfile
import zipfile

import h5py
import isolated
import numpy as np

MEGABYTES = 100
_OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]


def originals():
    """Returns the sound files by name, small ones of every format."""
    names = (
        *("torch_zip.pth", "torch_legacy.pth", "training.pth"),
        *("tiny.safetensors", "tiny.keras", "tiny.weights.h5"),
    )
    files = {n: (isolated.FIXTURES / n).read_bytes() for n in names}
    with h5py.File("keras2", "w", driver="core", backing_store=False) as file:
        file.attrs["layer_names"] = [b"conv1_conv", b"conv1_bn"]
        file["conv1_conv/a/kernel:0"] = np.ones((3, 3, 3, 4), "f4")
        file["conv1_bn/a/gamma:0"] = np.arange(4, dtype="f4")
        file.flush()
        files["keras2.h5"] = file.id.get_file_image()
    return files


def damaged(data, rng, places=None):
    """Returns the data with a few bytes, or a piece, spoilt.

    Args:
        data: bytes of a file or of a part of it.
        rng: `random.Random`.
        places: positions that may be spoilt; all by default.
    """
    data = bytearray(data)
    kind = rng.choice(("flip", "flip", "number", "cut", "insert", "copy"))
    if places or kind == "flip":
        for _ in range(rng.choice((1, 1, 1, 3, 9))):
            # Half of the flips in what describes the arrays.
            end = rng.choice((len(data), min(len(data), 1500)))
            place = rng.choice(places) if places else rng.randrange(end)
            data[place] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        return bytes(data)
    place, size = rng.randrange(len(data)), rng.choice((1, 2, 8, 100, 4000))
    if kind == "number":
        number = rng.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
        data[place : place + 8] = number.to_bytes(8, "little")
    elif kind == "cut":
        del data[place : place + size]
    elif kind == "insert":
        data[place:place] = rng.choice((rng.choice(_OPCODES), bytes(size)))
    else:
        other = rng.randrange(len(data))
        data[place : place + size] = data[other : other + size]
    return bytes(data)


def _in_zip(data, rng):
    """Damages an entry, not the archive: its checksum would hide the rest."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice([n for n in entries if len(entries[n]) > 50])
    entries[name] = damaged(entries[name], rng)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for key, content in entries.items():
            archive.writestr(key, content)
    return file.getvalue()


def _structure(data):
    """Returns the positions in an HDF5 file that belong to no array."""
    places = set(range(len(data)))

    def remove(_, item):
        if isinstance(item, h5py.Dataset):
            start = item.id.get_offset()
            places.difference_update(range(start, start + item.nbytes))

    with h5py.File(io.BytesIO(data)) as file:
        file.visititems(remove)
    return sorted(places)


def mutants(files, seed):
    """Yields without end (name of the original, what is kept, bytes)."""
    rng = random.Random(seed)
    structures = {n: _structure(d) for n, d in files.items() if ".h5" in n}
    for name in itertools.cycle(files):
        data = files[name]
        if data.startswith(b"PK") and rng.random() < 0.7:
            yield name, "", _in_zip(data, rng)
        elif name in structures and rng.random() < 0.7:
            spoilt = damaged(data, rng, structures[name])
            yield name, "numbers", spoilt
        else:
            yield name, "", damaged(data, rng)


def judge(folder, count, seed):
    """Reads so many damaged files, and lists those that show a fault.

    Args:
        folder: pathlib.Path of an empty folder, where faulty files stay.
        count: number of files.
        seed: number that decides all of them.

    Returns:
        List of (path, text), and the number of files that were accepted.
    """
    files = originals()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    found = isolated.read(folder / name for name in files)
    sums = {n: r["sums"] for n, r in zip(files, found, strict=True)}
    faults, accepted = [], 0
    stream = itertools.islice(mutants(files, seed), count)
    numbers = itertools.count()
    while batch := list(itertools.islice(stream, 500)):
        paths = []
        for name, _, data in batch:
            paths.append(folder / f"{next(numbers)}-{name}")
            paths[-1].write_bytes(data)
        results = list(isolated.read(paths))
        for (name, kept, data), path, result in zip(
            batch, paths, results, strict=True
        ):
            text = _fault(result, sums[name], kept, len(data))
            if text:
                faults.append((path, text))
            else:
                path.unlink()
            accepted += "arrays" in result
    return faults, accepted


def _fault(result, sums, kept, size):
    message = result.get("message")
    if result["status"]:
        return f"ended with {result['status']}"
    if result["megabytes"] > MEGABYTES:
        return f"took {result['megabytes']} MB"
    if message is not None:
        is_sentence = "Received: path=" in message and message.isprintable()
        return None if is_sentence and len(message) < 2000 else message[:500]
    if result["bytes"] > 4 * size:
        return f"{result['bytes']} bytes of arrays from {size}"
    found = result["sums"]
    moved = [n for n in found.keys() & sums if found[n] != sums[n]]
    return f"{moved} have other numbers" if kept and moved else None


def main():
    """Judges as many files as the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp())
    faults, accepted = judge(folder, options.files, options.seed)
    for path, text in faults:
        print(f"{path}: {text}")
    print(
        f"{options.files} files, seed {options.seed}: {accepted} were read, "
        f"{options.files - accepted - len(faults)} refused, "
        f"{len(faults)} faults"
    )
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
