"""What travels to a GPU machine arrives whole or not at all."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import gpu_bundle  # noqa: E402


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / "run"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "state.npz").write_bytes(random.bytes(300_000))
    (folder / "log.csv").write_text("epoch,loss\n0,1.5\n")
    return folder


def read(folder):
    """Returns the content of all files by their paths in the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_parts_come_out_as_they_went_in(folder, tmp_path):
    out = tmp_path / "parts"
    gpu_bundle.pack(folder, out, mib=0.1)
    sizes = [path.stat().st_size for path in out.glob("part_*")]
    assert len(sizes) == 4
    assert max(sizes) <= 0.1 * 2**20
    gpu_bundle.unpack(out, tmp_path / "back")
    assert read(tmp_path / "back") == read(folder)


def test_parts_of_an_earlier_packing_go(folder, tmp_path):
    out = tmp_path / "parts"
    gpu_bundle.pack(folder, out, mib=0.1)
    gpu_bundle.pack(folder, out, mib=1)
    assert sorted(path.name for path in out.iterdir()) == [
        "part_00",
        "parts.json",
    ]


@pytest.mark.parametrize("change", ["missing", "damaged"])
def test_unpacks_nothing_if_a_part_is_not_as_packed(folder, tmp_path, change):
    out = tmp_path / "parts"
    gpu_bundle.pack(folder, out, mib=0.1)
    part = out / "part_02"
    content = part.read_bytes()
    part.unlink()
    if change == "damaged":
        part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"part_02, \d+ bytes, with another"):
        gpu_bundle.unpack(out, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_needs_the_standard_library_only(folder, tmp_path):
    # -S leaves out site-packages, -E the path to them.
    command = [sys.executable, "-S", "-E", SCRIPTS / "gpu_bundle.py"]
    for arguments in (
        ["pack", folder, "--out", tmp_path / "parts"],
        ["unpack", tmp_path / "parts", "--into", tmp_path / "back"],
    ):
        subprocess.run([*command, *arguments], check=True)
    assert read(tmp_path / "back") == read(folder)
    result = subprocess.run(
        [*command, "unpack", tmp_path / "back", "--into", tmp_path / "more"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("A folder with parts.json is required.")


def test_make_takes_all_along(tmp_path, monkeypatch):
    commands = []

    def pip(*arguments):  # stands in for the package index
        commands.append([str(argument) for argument in arguments])
        if arguments[0] == "wheel":
            wheels = arguments[arguments.index("--wheel-dir") + 1]
            wheels.mkdir()
            (wheels / "keras_resnext-0.1.0-py3-none-any.whl").touch()

    monkeypatch.setattr(gpu_bundle, "pip", pip)
    (tmp_path / "data.npz").write_bytes(b"pixels")
    out, back = tmp_path / "parts", tmp_path / "back"
    gpu_bundle.make("3.12", [tmp_path / "data.npz"], out, mib=60)
    subprocess.run(
        [
            *(sys.executable, "-S", "-E", out / "gpu_bundle.py", "unpack"),
            *(out, "--into", back),
        ],
        check=True,
    )
    wheel, download = commands
    assert wheel[0] == "wheel" and download[0] == "download"
    assert {"--python-version=3.12", "--only-binary=:all:"} <= set(download)
    assert any(name.endswith("none-any.whl") for name in download)
    assert (back / "data" / "data.npz").read_bytes() == b"pixels"
    needed = {"matplotlib", "tensorboard", "tqdm", "safetensors"}
    assert needed <= set(download)  # by training and the benchmark
    for path in ("scripts/train.py", "scripts/benchmark.py"):
        assert (back / path).read_bytes() == (
            SCRIPTS.parent / path
        ).read_bytes()
