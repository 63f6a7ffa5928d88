"""Names of other PyTorch libraries, written out by hand from their sources."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_weights import FIXTURES, assert_same, tiny, values

from keras_resnext.weights import checkpoints, torch_names
from keras_resnext.weights.unread import Unread

pytestmark = pytest.mark.anywhere

# Torchvision's names, and in the same order those of each library: of the
# stem, of a block by its stage and number from 0, of its layers, of the
# classifier.
STEM = ("conv1", "bn1")
BLOCK = (
    *("conv1", "bn1", "conv2", "bn2", "conv3", "bn3"),
    *("downsample.0", "downsample.1", "se.fc1", "se.fc2"),
)
_PYTORCHCV = (
    lambda stage, block: f"features.stage{stage + 1}.unit{block + 1}",
    (
        *("body.conv1.conv", "body.conv1.bn", "body.conv2.conv"),
        *("body.conv2.bn", "body.conv3.conv", "body.conv3.bn"),
        *("identity_conv.conv", "identity_conv.bn", "se.conv1", "se.conv2"),
    ),
    "output",
)
_LUA = ("0.0.0", "0.0.1", "0.0.3", "0.0.4", "0.1", "0.2", "1.0", "1.1")
LIBRARIES = {
    "prlz77": (
        ("conv_1_3x3", "bn_1"),
        lambda stage, block: (
            f"stage_{stage + 1}.stage_{stage + 1}_bottleneck_{block}"
        ),
        (
            *("conv_reduce", "bn_reduce", "conv_conv", "bn"),
            *("conv_expand", "bn_expand"),
            *("shortcut.shortcut_conv", "shortcut.shortcut_bn"),
        ),
        "classifier",
    ),
    "augmix": (
        ("conv_1_3x3", "bn_1"),
        lambda stage, block: f"stage_{stage + 1}.{block}",
        (
            *("conv_reduce", "bn_reduce", "conv_conv", "bn"),
            *("conv_expand", "bn_expand", "downsample.0", "downsample.1"),
        ),
        "classifier",
    ),
    "pytorchcv": (
        ("features.init_block.conv.conv", "features.init_block.conv.bn"),
        *_PYTORCHCV,
    ),
    "pytorchcv_cifar": (
        ("features.init_block.conv", "features.init_block.bn"),
        *_PYTORCHCV,
    ),
    "detectron2": (
        ("stem.conv1", "stem.conv1.norm"),
        lambda stage, block: f"res{stage + 2}.{block}",
        (
            *("conv1", "conv1.norm", "conv2", "conv2.norm"),
            *("conv3", "conv3.norm", "shortcut", "shortcut.norm"),
        ),
        "linear",
    ),
    "transformers": (
        ("embedder.embedder.convolution", "embedder.embedder.normalization"),
        lambda stage, block: f"encoder.stages.{stage}.layers.{block}",
        (
            *("layer.0.convolution", "layer.0.normalization"),
            *("layer.1.convolution", "layer.1.normalization"),
            *("layer.2.convolution", "layer.2.normalization"),
            *("shortcut.convolution", "shortcut.normalization"),
        ),
        "classifier.1",
    ),
    "weiaicunzai": (
        ("conv1.0", "conv1.1"),
        lambda stage, block: f"conv{stage + 2}_x.{block}",
        (
            *("residual_function.0", "residual_function.1"),
            *("residual_function.3", "residual_function.4"),
            *("residual_function.6", "residual_function.7"),
            *("shortcut.0", "shortcut.1"),
        ),
        "fc",
    ),
    "pretrainedmodels": (
        ("features.0", "features.1"),
        lambda stage, block: f"features.{stage + 4}.{block}.0",
        _LUA,
        "last_linear",
    ),
    "lua": (
        ("0", "1"),
        lambda stage, block: f"{stage + 4}.{block}.0",
        _LUA,
        "10.1",
    ),
    "hysts": (
        ("conv", "bn"),
        lambda stage, block: f"stage{stage + 1}.block{block + 1}",
        (*BLOCK[:6], "shortcut.conv", "shortcut.bn"),
        "fc",
    ),
    "classyvision": (
        ("initial_block._module.0", "initial_block._module.1"),
        lambda stage, block: f"blocks.{stage}.block{stage}-{block}",
        (
            *("convolutional_block.0", "convolutional_block.1"),
            *("convolutional_block.3", "convolutional_block.4"),
            *("convolutional_block.6", "bn", "downsample.0", "downsample.1"),
            *("se.excitation.0", "se.excitation.2"),
        ),
        "fc",
    ),
    "nvidia": (
        STEM,
        lambda stage, block: f"layers.{stage}.{block}",
        BLOCK[:8],
        "fc",
    ),
    "mmpretrain": (
        STEM,
        lambda stage, block: f"layer{stage + 1}.{block}",
        (*BLOCK[:8], "se_layer.conv1.conv", "se_layer.conv2.conv"),
        "head.fc",
    ),
    "kuangliu": (
        STEM,
        lambda stage, block: f"layer{stage + 1}.{block}",
        (*BLOCK[:6], "shortcut.0", "shortcut.1"),
        "linear",
    ),
}
each = pytest.mark.parametrize("library", LIBRARIES)


@pytest.fixture
def net():
    """What PyTorch wrote, by torchvision's names."""
    arrays = load_file(FIXTURES / "net.safetensors")
    return {n: a for n, a in arrays.items() if "num_batches" not in n}


def renamed(net, library, prefix=""):
    """Returns a state dict with a library's names."""
    stem, block, layers, top = LIBRARIES[library]
    theirs = dict(zip(STEM, stem, strict=True)) | {"fc": top}
    for usual, layer in zip(BLOCK, layers, strict=False):
        theirs[f"layer1.0.{usual}"] = f"{block(0, 0)}.{layer}"
    parts = {name: name.rpartition(".") for name in net}
    return {
        f"{prefix}{theirs[layer]}.{variable}": net[name]
        for name, (layer, _, variable) in parts.items()
    }


@each
@pytest.mark.parametrize("prefix", ["", "module.", "model.net."])
def test_stage_and_block(library, prefix):
    stem, block, layers, _ = LIBRARIES[library]
    names = [*stem, *(f"{block(2, 11)}.{layer}" for layer in layers)]
    usual = [*STEM, *(f"layer3.11.{layer}" for layer in BLOCK)]
    arrays = {f"{prefix}{n}.weight": np.zeros(1, "float32") for n in names}
    found = torch_names.strip(arrays)
    assert list(found) == [f"{name}.weight" for name in usual[: len(names)]]


@pytest.fixture(scope="module")
def expected():
    return values(tiny(weights=FIXTURES / "net.safetensors"))


@each
def test_a_whole_network(library, net, expected, tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(renamed(net, library, "module."), path)
    assert_same(values(tiny(weights=path)), expected)


@each
def test_which_of_several_dictionaries(library, net, tmp_path):
    torch = pytest.importorskip("torch")
    state = {
        name: torch.from_numpy(array)
        for name, array in renamed(net, library).items()
    }
    path = tmp_path / "net.pth"
    torch.save({"scores": {"best": torch.ones(1)}, "mine": state}, path)
    assert len(checkpoints.read(path)) == len(net)


@pytest.mark.parametrize("library", ["pytorchcv", "detectron2"])
def test_strides_elsewhere_are_refused(library, net, tmp_path):
    kernel = net["layer1.0.conv2.weight"]
    net["layer1.0.conv2.weight"] = np.concatenate([kernel, kernel], axis=1)
    path = tmp_path / "net.safetensors"
    save_file(renamed(net, library), path)
    with pytest.raises(ValueError, match=r"ResNets stride elsewhere.*Use the"):
        tiny(weights=path)


@each
@pytest.mark.parametrize("name", ["extra", "cbam.fc.weight"])
def test_more_in_a_block_is_not_left_out(library, name, net, tmp_path):
    path = tmp_path / "net.safetensors"
    block = LIBRARIES[library][1](0, 0)
    arrays = renamed({n: a for n, a in net.items() if "fc" not in n}, library)
    save_file(arrays | {f"{block}.{name}": np.ones(3, "float32")}, path)
    with pytest.raises(ValueError, match=rf"unexpected: layer1\.0\.{name}"):
        tiny(weights=path, include_top=False)


@each
@pytest.mark.parametrize(
    ("part", "wrapper"),
    [
        *((part, "_orig_mod") for part in range(3)),
        (1, "_checkpoint_wrapped_module"),
        (2, "_fsdp_wrapped_module._checkpoint_wrapped_module"),
    ],
)
def test_a_wrapped_part(library, part, wrapper, net, expected, tmp_path):
    """`torch.compile` of a stage, a block or a layer puts a name between."""
    path = tmp_path / "net.safetensors"
    block = LIBRARIES[library][1](0, 0)
    parts = block.split(".")
    parts.insert(part, wrapper)
    wrapped = ".".join(parts)
    arrays = renamed(net, library)
    save_file({n.replace(block, wrapped): a for n, a in arrays.items()}, path)
    assert_same(values(tiny(weights=path)), expected)


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone."])
def test_a_deep_stem_of_mmpretrain(prefix):
    stem = {0: "conv1.0", 1: "conv1.1", 3: "conv1.3", 4: "conv1.4"}
    stem |= {6: "conv1.6", 7: "bn1"}
    names = [*(f"stem.{number}" for number in stem), "layer1.0.conv1"]
    arrays = {f"{prefix}{n}.weight": np.zeros(1, "float32") for n in names}
    usual = [f"{name}.weight" for name in (*stem.values(), "layer1.0.conv1")]
    assert list(torch_names.strip(arrays)) == usual


@pytest.mark.parametrize("prefix", ["", "module.encoder."])
@pytest.mark.parametrize(("block", "renamed"), [(16, 1), (32, 0), (None, 1)])
def test_a_deep_stem_beside_the_stages(prefix, block, renamed):
    """CSAIL's; CLIP's, of a quarter of the block's channels, is another."""
    stem = {"conv1": "conv1.0", "bn1": "conv1.1", "conv2": "conv1.3"}
    stem |= {"bn2": "conv1.4", "conv3": "conv1.6", "bn3": "bn1"}
    channels = dict.fromkeys((*stem, "layer1.0.conv1", "layer1.0.bn3"), 8)
    channels["layer1.0.bn3"] = block
    if block is None:  # a basic block
        del channels["layer1.0.bn3"]
    arrays = {
        f"{prefix}{layer}.weight": np.zeros(n, "float32")
        for layer, n in channels.items()
    }
    usual = [stem.get(n, n) if renamed else n for n in channels]
    assert list(torch_names.strip(arrays)) == [f"{n}.weight" for n in usual]


def test_similar_names_stay(net):
    """What has such names outside of a network of that library."""
    others = ("head.shortcut.0.weight", "neck.res2.conv1.weight", "bn_1.bias")
    arrays = net | {name: np.zeros(3, "float32") for name in others}
    assert list(torch_names.strip(arrays)) == list(arrays)


@pytest.mark.parametrize("prefix", ["", "net."])
@pytest.mark.parametrize("first", [2, 3, 4])
@pytest.mark.parametrize("side", [3, 7])
def test_numbers_tell_of_a_max_pooling(first, side, prefix):
    """Behind a convolution, 0, its normalisation, 1, and ReLU, 2."""
    arrays = {
        f"{prefix}0.weight": np.zeros((8, 3, side, side), "float32"),
        f"{prefix}1.weight": np.zeros(8, "float32"),
        f"{prefix}{first}.0.conv1.weight": np.zeros((8, 8, 3, 3), "float32"),
    }
    if side == 7 and first < 4:
        with pytest.raises(Unread, match=f"number {first} .*max pooling"):
            torch_names.strip(arrays)
    else:
        usual = ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight"]
        assert list(torch_names.strip(arrays)) == usual
