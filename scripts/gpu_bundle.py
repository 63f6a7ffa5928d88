r"""Carries training to a GPU machine without a package index, and back.

    python scripts/gpu_bundle.py make --python 3.12 --data cifar10.npz \
        --out runs/bundle
    python bundle/gpu_bundle.py unpack bundle --into work --install
    python gpu_bundle.py pack runs/32x4d --out back

The GPU machine has Python with JAX or PyTorch, and neither Keras nor a way to
download it. `make` packs, where there is an index, what must travel: wheels of
this project and of what it needs but for the backends, the scripts, and the
data. The result is parts of at most --mib, their SHA-256 and this file, which
needs the standard library only. `unpack` verifies and unpacks them there, and
installs the wheels; `pack` makes parts of any folder, such as a training that
goes on elsewhere or has ended. README has the commands from end to end.
"""

import argparse
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
# With manylinux, the newest first, as pip takes no "or older".
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (28, 27, 17)]
MANIFEST = "parts.json"
# Beside this project's own needs: curves, records, progress, files of weights.
PACKAGES = ("matplotlib", "tensorboard", "tqdm", "safetensors")


def parse_arguments():
    """Returns the command line's options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("make", help="pack what training needs")
    make.add_argument("--python", default="3.12", help="version there")
    make.add_argument("--data", nargs="+", type=pathlib.Path, default=[])
    pack = commands.add_parser("pack", help="pack a folder")
    pack.add_argument("folder", type=pathlib.Path)
    for command in (make, pack):
        command.add_argument("--out", required=True, type=pathlib.Path)
        command.add_argument("--mib", type=float, default=60, help="of a part")
    unpack = commands.add_parser("unpack", help="verify and unpack parts")
    unpack.add_argument("parts", type=pathlib.Path, help="folder of them")
    unpack.add_argument("--into", required=True, type=pathlib.Path)
    unpack.add_argument(
        "--install", action="store_true", help="the wheels, for this Python"
    )
    return parser.parse_args()


def make(python, data, out, mib):
    """Packs wheels, scripts and data.

    Args:
        python: Version of the other machine's Python, as `"3.12"`.
        data: Paths of files to take along.
        out: Folder for the parts.
        mib: Most MiB of a part.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        wheels = folder / "wheels"
        pip("wheel", "--no-deps", "--wheel-dir", wheels, ROOT)
        platforms = [f"--platform={platform}" for platform in PLATFORMS]
        pip(
            *("download", "--only-binary=:all:", "--dest", wheels),
            *(f"--python-version={python}", *platforms),
            *wheels.glob("keras_resnext-*.whl"),
            *PACKAGES,
        )
        shutil.copytree(
            ROOT / "scripts",
            folder / "scripts",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        (folder / "data").mkdir()
        for path in data:
            shutil.copy(path, folder / "data")
        pack(folder, out, mib)
    shutil.copy(__file__, out)


def pip(*arguments):
    """Runs pip of this Python."""
    subprocess.run(
        [sys.executable, "-m", "pip", *map(str, arguments), "--quiet"],
        check=True,
    )


def pack(folder, out, mib):
    """Writes a folder's content as numbered parts, with their SHA-256.

    Args:
        folder: Folder to pack.
        out: Folder for the parts; the manifest comes last, so that parts
            without one are incomplete.
        mib: Most MiB of a part.
    """
    if not folder.is_dir():
        raise ValueError(
            f"A folder to pack is required. Received: {folder}. Check the path."
        )
    out.mkdir(parents=True, exist_ok=True)
    for old in (out / MANIFEST, *out.glob("part_*")):
        old.unlink(missing_ok=True)
    digests = {}
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as archive:
            archive.add(folder, arcname="")
        whole.seek(0)
        while piece := whole.read(int(mib * 2**20)):
            name = f"part_{len(digests):02}"
            (out / name).write_bytes(piece)
            digests[name] = hashlib.sha256(piece).hexdigest()
    (out / MANIFEST).write_text(json.dumps(digests, indent=2))
    print(f"{out}: {len(digests)} parts of at most {mib:g} MiB")


def unpack(parts, into):
    """Verifies all parts, then unpacks them.

    Args:
        parts: Folder of what `pack` wrote.
        into: Folder for the content.

    Raises:
        ValueError: If a part is missing or not as it was packed.
    """
    if not (parts / MANIFEST).is_file():
        raise ValueError(
            f"A folder with {MANIFEST} is required. Received: {parts} without "
            "it. Bring it, too."
        )
    with tempfile.TemporaryFile() as whole:
        for name, digest in json.loads((parts / MANIFEST).read_text()).items():
            path = parts / name
            piece = path.read_bytes() if path.is_file() else b""
            if hashlib.sha256(piece).hexdigest() != digest:
                raise ValueError(
                    "All parts must be there as they were packed. Received: "
                    f"{path}, {len(piece)} bytes, with another SHA-256. Bring "
                    "this part again."
                )
            whole.write(piece)
        whole.seek(0)
        with tarfile.open(fileobj=whole) as archive:
            archive.extractall(into, filter="data")  # nothing outside `into`


def install(folder):
    """Installs the project from the wheels of a folder, and nothing else."""
    wheels = folder / "wheels"
    pip(
        *("install", "--no-index", "--find-links", wheels),
        *("keras_resnext", *PACKAGES),
    )


def main():
    """Runs one of the commands."""
    args = parse_arguments()
    try:
        if args.command == "make":
            make(args.python, args.data, args.out, args.mib)
        elif args.command == "pack":
            pack(args.folder, args.out, args.mib)
        else:
            unpack(args.parts, args.into)
            if args.install:
                install(args.into)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
