import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import shutil
import string

import numpy as np
import pytest

import keras_resnext
from keras_resnext import arguments, registry
from keras_resnext.commands import listing
from keras_resnext.registry import ARCHITECTURES, CHECKPOINTS, resolve

# Tag, SHA-256 prefix, resize/crop, filter, top-1 and top-5 in %, licence:
# torchvision 0.28's enums and timm 1.0.31's configurations, written down anew.
FACTS = """
resnext50_32x4d
imagenet1k_v1           7cdf4587 256/224 bilinear 77.618 93.698 bsd-3-clause
imagenet1k_v2           1a0047aa 232/224 bilinear 81.198 95.340 bsd-3-clause
a1_in1k                 b5a91a1d 288/288 bicubic  81.480 95.152 apache-2.0
a1h_in1k                0146ab0a 288/288 bicubic  82.016 95.934 apache-2.0
a2_in1k                 efc76add 288/288 bicubic  81.304 95.114 apache-2.0
a3_in1k                 3e450271 235/224 bicubic  79.258 94.308 apache-2.0
fb_ssl_yfcc100m_ft_in1k ddb3e555 256/224 bilinear 80.316 95.386 cc-by-nc-4.0
fb_swsl_ig1b_ft_in1k    72679e44 256/224 bilinear 82.162 96.224 cc-by-nc-4.0
gluon_in1k              e6a097c1 256/224 bicubic  79.354 94.424 apache-2.0
ra_in1k                 d733960d 303/288 bicubic  80.720 95.344 apache-2.0
tv2_in1k                1a0047aa 232/224 bilinear 81.190 95.344 bsd-3-clause
tv_in1k                 7cdf4587 256/224 bilinear 77.632 93.674 bsd-3-clause
resnext101_32x4d
fb_ssl_yfcc100m_ft_in1k dc43570a 256/224 bilinear 80.936 95.732 cc-by-nc-4.0
fb_swsl_ig1b_ft_in1k    3f87e46b 256/224 bilinear 83.268 96.760 cc-by-nc-4.0
gluon_in1k              b253c8c4 256/224 bicubic  80.336 94.908 apache-2.0
resnext101_32x8d
imagenet1k_v1           8ba56ff5 256/224 bilinear 79.312 94.526 bsd-3-clause
imagenet1k_v2           110c445d 232/224 bilinear 82.834 96.228 bsd-3-clause
fb_ssl_yfcc100m_ft_in1k 2cfe2f8b 256/224 bilinear 81.620 96.036 cc-by-nc-4.0
fb_swsl_ig1b_ft_in1k    b4712904 256/224 bilinear 84.276 97.188 cc-by-nc-4.0
fb_wsl_ig1b_ft_in1k     c38310e5 256/224 bilinear 82.720 96.624 cc-by-nc-4.0
tv2_in1k                110c445d 232/224 bilinear 82.832 96.234 bsd-3-clause
tv_in1k                 8ba56ff5 256/224 bilinear 79.308 94.530 bsd-3-clause
resnext101_64x4d
imagenet1k_v1           173b62eb 232/224 bilinear 83.246 96.454 bsd-3-clause
c1_in1k                 0d0e0cc0 288/288 bicubic  83.158 96.370 apache-2.0
gluon_in1k              f9a8e184 256/224 bicubic  80.640 95.000 apache-2.0
tv_in1k                 173b62eb 256/224 bilinear 82.978 96.252 bsd-3-clause
resnext101_32x16d
fb_ssl_yfcc100m_ft_in1k 15fffa57 256/224 bilinear 81.856 96.084 cc-by-nc-4.0
fb_swsl_ig1b_ft_in1k    f3559a9c 256/224 bilinear 83.340 96.844 cc-by-nc-4.0
fb_wsl_ig1b_ft_in1k     c6f796b0 256/224 bilinear 84.166 97.192 cc-by-nc-4.0
resnext101_32x32d
fb_wsl_ig1b_ft_in1k     e4b90b00 256/224 bilinear 85.090 97.442 cc-by-nc-4.0
resnext101_32x48d
fb_wsl_ig1b_ft_in1k     3e41cc8a 256/224 bilinear 85.420 97.580 cc-by-nc-4.0
resnext152_32x4d
resnext50d_32x4d
bt_in1k                 103e99f8 303/288 bicubic  80.676 95.426 apache-2.0
seresnext26d_32x4d
bt_in1k                 80fa48a3 303/288 bicubic  78.816 94.266 apache-2.0
seresnext26t_32x4d
bt_in1k                 569cb627 303/288 bicubic  78.736 94.318 apache-2.0
seresnext50_32x4d
gluon_in1k              90cf2d6e 256/224 bicubic  79.916 94.816 apache-2.0
racm_in1k               a304a460 303/288 bicubic  82.186 96.146 apache-2.0
seresnext101_32x4d
gluon_in1k              cf52900d 256/224 bicubic  80.886 95.268 apache-2.0
seresnext101_32x8d
ah_in1k                 e6bc4c0a 288/288 bicubic  84.192 96.860 apache-2.0
seresnext101_64x4d
gluon_in1k              f9926f93 256/224 bicubic  80.884 95.308 apache-2.0
seresnext101d_32x8d
ah_in1k                 191d7b94 288/288 bicubic  84.380 96.918 apache-2.0
seresnextaa101d_32x8d
ah_in1k                 83c8ae12 288/288 bicubic  84.580 97.062 apache-2.0
sw_in12k_ft_in1k_288    hub      320/320 bicubic  86.722 98.184 apache-2.0
sw_in12k_ft_in1k        hub      288/288 bicubic  86.524 98.034 apache-2.0
sw_in12k                hub      288/288 bicubic  None   None   apache-2.0
seresnextaa201d_32x8d
sw_in12k_ft_in1k_384    hub      384/384 bicubic  87.304 98.334 apache-2.0
sw_in12k                hub      384/384 bicubic  None   None   apache-2.0
legacy_seresnext26_32x4d
in1k                    65ebdb501 256/224 bicubic 77.100 93.332 apache-2.0
legacy_seresnext50_32x4d
in1k                    f3651bad 256/224 bilinear 79.080 94.428 apache-2.0
legacy_seresnext101_32x4d
in1k                    37725eac 256/224 bilinear 80.274 95.032 apache-2.0
resnet50d
seresnet50
resnext29
resnet18
imagenet1k_v1           f37072fd 256/224 bilinear 69.758 89.078 bsd-3-clause
resnet34
imagenet1k_v1           b627a593 256/224 bilinear 73.314 91.420 bsd-3-clause
resnet50
imagenet1k_v1           0676ba61 256/224 bilinear 76.130 92.862 bsd-3-clause
imagenet1k_v2           11ad3fa6 232/224 bilinear 80.858 95.434 bsd-3-clause
resnet101
imagenet1k_v1           63fe2227 256/224 bilinear 77.374 93.546 bsd-3-clause
imagenet1k_v2           cd907fc2 232/224 bilinear 81.886 95.780 bsd-3-clause
resnet152
imagenet1k_v1           394f9c45 256/224 bilinear 78.312 94.046 bsd-3-clause
imagenet1k_v2           f82ba261 232/224 bilinear 82.284 96.002 bsd-3-clause
wide_resnet50_2
imagenet1k_v1           95faca4d 256/224 bilinear 78.468 94.086 bsd-3-clause
imagenet1k_v2           9ba9bcbe 232/224 bilinear 81.602 95.758 bsd-3-clause
wide_resnet101_2
imagenet1k_v1           32ee1156 256/224 bilinear 78.848 94.284 bsd-3-clause
imagenet1k_v2           d733dc28 232/224 bilinear 82.510 96.020 bsd-3-clause
"""
# Trainable parameters as torchvision, timm and (resnext29) the formula have
# them, and torchvision's GMACs.
PARAMETERS = {
    "resnext50_32x4d": (25_028_904, 4.23),
    "resnext101_32x4d": (44_177_704, None),
    "resnext101_32x8d": (88_791_336, 16.414),
    "resnext101_64x4d": (83_455_272, 15.46),
    "resnext101_32x16d": (194_026_792, None),
    "resnext101_32x32d": (468_530_472, None),
    "resnext101_32x48d": (828_411_176, None),
    "resnext152_32x4d": (59_951_400, None),
    "resnext50d_32x4d": (25_048_136, None),
    "seresnext26d_32x4d": (16_809_512, None),
    "seresnext26t_32x4d": (16_806_976, None),
    "seresnext50_32x4d": (27_559_896, None),
    "seresnext101_32x4d": (48_955_416, None),
    "seresnext101_32x8d": (93_569_048, None),
    "seresnext101_64x4d": (88_232_984, None),
    "seresnext101d_32x8d": (93_588_280, None),
    "seresnextaa101d_32x8d": (93_588_280, None),
    "seresnextaa201d_32x8d": (149_394_904, None),
    "legacy_seresnext26_32x4d": (16_790_280, None),
    "legacy_seresnext50_32x4d": (27_559_896, None),
    "legacy_seresnext101_32x4d": (48_955_416, None),
    "resnet50d": (25_576_264, None),
    "seresnet50": (28_088_024, None),
    "resnet18": (11_689_512, 1.814),
    "resnet34": (21_797_672, 3.664),
    "resnet50": (25_557_032, 4.089),
    "resnet101": (44_549_160, 7.801),
    "resnet152": (60_192_808, 11.514),
    "wide_resnet50_2": (68_883_240, 11.398),
    "wide_resnet101_2": (126_886_696, 22.753),
    "resnext29": (4_775_754, None),
}


def facts():
    rows = {}
    for line in FACTS.split("\n"):
        words = line.split()
        if len(words) == 1:
            (architecture,) = words
        elif words:
            tag, *row = words
            rows[architecture, tag] = row
    return rows


def count(net):
    """Returns trainable parameters and GMACs of an architecture."""
    parameters = macs = 0

    def conv(inputs, outputs, kernel, size, groups=1):
        nonlocal parameters, macs
        weights = kernel**2 * inputs // groups * outputs
        parameters += weights + 2 * outputs
        macs += weights * size**2

    def dense(inputs, outputs):
        nonlocal parameters, macs
        parameters += inputs * outputs + outputs
        macs += inputs * outputs

    width = net.stem_width
    stems = {
        "cifar": [(3, 64, 3, 32)],
        "deep": [
            (3, width, 3, 112),
            (width, width, 3, 112),
            (width, 2 * width, 3, 112),
        ],
        "tiered": [(3, 24, 3, 112), (24, 32, 3, 112), (32, 64, 3, 112)],
    }
    stem = stems.get(net.stem, [(3, 64, 7, 112)])
    for layer in stem:
        conv(*layer)
    size, inputs = (32 if net.stem == "cifar" else 56), stem[-1][1]
    for stage, depth in enumerate(net.depths):
        planes = 64 * 2**stage
        for block in range(depth):
            before, size = size, size // 2 if stage and not block else size
            if net.block == "basic":
                outputs = planes
                conv(inputs, planes, 3, size)
                conv(planes, planes, 3, size)
            else:
                outputs = 4 * planes
                width = planes * net.width_per_group // 64 * net.groups
                conv(inputs, width, 1, before)
                # Anti-aliased, what strides is the average behind it.
                aliased = size if not net.anti_aliased else before
                conv(width, width, 3, aliased, net.groups)
                conv(width, outputs, 1, size)
            if net.squeeze_excite:
                dense(outputs, outputs // 16)
                dense(outputs // 16, outputs)
            if (inputs, before) != (outputs, size):
                conv(inputs, outputs, 1, size)
            inputs = outputs
    dense(inputs, net.classes)
    return parameters, macs / 1e9


def test_every_architecture_has_a_golden_count():
    assert set(ARCHITECTURES) == set(PARAMETERS)
    assert set(ARCHITECTURES) == {
        line for line in FACTS.split("\n") if line and " " not in line
    }


@pytest.mark.parametrize("name", PARAMETERS)
def test_architecture(name):
    net = ARCHITECTURES[name]
    parameters, gmacs = PARAMETERS[name]
    assert net.name == name
    assert re.fullmatch(
        "(Wide|(Legacy)?SE)?ResNeX?t(AA)?[0-9]+[DT]?(_[0-9x]+d?)?",
        net.constructor,
    )
    assert net.num_params == parameters
    assert gmacs in (None, net.gmacs)
    assert count(net) == (parameters, pytest.approx(net.gmacs, abs=6e-4))
    assert net.block in ("basic", "bottleneck")
    assert len(net.depths) == (3 if net.stem == "cifar" else 4)
    assert net.classes == (10 if net.stem == "cifar" else 1000)


def test_names_say_what_the_numbers_are():
    for name, net in ARCHITECTURES.items():
        layers = 2 + sum(net.depths) * (2 if net.block == "basic" else 3)
        if name != "seresnextaa201d_32x8d":  # has 203
            assert re.search("[0-9]+", name)[0] == str(layers)
        kind = re.search("[0-9]+([dt]?)(_|$)", name)[1]
        legacy = name.startswith("legacy_")
        assert net.squeeze_excite == name.removeprefix("legacy_").startswith(
            "se"
        )
        assert net.average_shortcut == (kind != "")
        assert net.anti_aliased == ("aa" in name)
        assert legacy == (net.stem == "legacy")
        assert {"d": "deep", "t": "tiered"}.get(kind, net.stem) == net.stem
        if match := re.search(r"_(\d+)x(\d+)d", name):
            sizes = net.groups, net.width_per_group
            assert tuple(map(int, match.groups())) == sizes
    constructors = [net.constructor for net in ARCHITECTURES.values()]
    assert len(set(constructors)) == len(constructors)


def test_every_published_checkpoint_is_there():
    published = {key for key, row in CHECKPOINTS.items() if not row.file}
    assert published == set(facts())
    assert set(CHECKPOINTS) - published == {("resnext29", "cifar10")}


@pytest.mark.parametrize(("key", "row"), facts().items(), ids="/".join)
def test_published_checkpoint(key, row):
    checkpoint = CHECKPOINTS[key]
    digest, size, interpolation, top1, top5, licence = row
    assert f"{checkpoint.resize}/{checkpoint.crop}" == size
    assert checkpoint.interpolation == interpolation
    published = [None if v == "None" else float(v) for v in (top1, top5)]
    assert [checkpoint.top1, checkpoint.top5] == published
    assert checkpoint.licence == licence
    assert checkpoint.mean == (0.485, 0.456, 0.406)
    assert checkpoint.std == (0.229, 0.224, 0.225)
    twelve = checkpoint.tag.endswith("_in12k")
    assert checkpoint.classes == (11_821 if twelve else 1000)
    assert checkpoint.file is None
    if digest == "hub":
        assert checkpoint.url is checkpoint.sha256 is None
        assert checkpoint.hub == f"timm/{'.'.join(key)}"
        return
    assert checkpoint.sha256.startswith(digest)
    host, name = checkpoint.url.removeprefix("https://").split("/", 1)
    assert host in (
        "download.pytorch.org",
        "dl.fbaipublicfiles.com",
        "github.com",
    )
    assert name.endswith(f"-{digest}.pth")


@pytest.mark.parametrize("key", CHECKPOINTS, ids="/".join)
def test_schema(key):
    row = CHECKPOINTS[key]
    assert key == (row.architecture, row.tag)
    assert row.architecture in ARCHITECTURES
    assert row.tag == row.tag.lower() != "imagenet"
    assert [row.url, row.file, row.hub].count(None) == 2
    if not row.hub:
        assert 8 <= len(row.sha256) <= 64
        assert set(row.sha256) <= set(string.hexdigits.lower())
    assert row.licence in (
        "apache-2.0",
        "bsd-3-clause",
        "cc-by-4.0",
        "cc-by-nc-4.0",
        "mit",
    )
    assert row.commercial == (row.licence != "cc-by-nc-4.0")
    assert re.match("https?://", row.source) or row.file
    assert row.resize >= row.crop >= 32
    assert row.interpolation in ("bilinear", "bicubic")
    assert len(row.mean) == len(row.std) == 3
    assert all(0 < value < 1 for value in row.mean + row.std)
    assert row.labels is None and row.crop_mode == "center"
    if row.classes == 11_821:
        assert row.top1 is row.top5 is None
        return
    assert 0 < row.top1 < row.top5 < 100
    assert row.classes == ARCHITECTURES[row.architecture].classes


def test_files_of_one_digest_are_one_file():
    urls = {}
    for row in CHECKPOINTS.values():
        if row.sha256:
            assert urls.setdefault(row.sha256[:8], row.url) == row.url


@pytest.mark.parametrize(
    ("architecture", "tag"),
    [
        ("resnext50_32x4d", "a1h_in1k"),
        ("resnext101_32x4d", "gluon_in1k"),
        # timm measured the same file, and found less.
        ("resnext101_32x8d", "imagenet1k_v2"),
        ("resnext101_64x4d", "imagenet1k_v1"),
        ("resnet18", "imagenet1k_v1"),
        ("resnet34", "imagenet1k_v1"),
        ("resnet50", "imagenet1k_v2"),
        ("resnet101", "imagenet1k_v2"),
        ("resnet152", "imagenet1k_v2"),
        ("wide_resnet50_2", "imagenet1k_v2"),
        ("wide_resnet101_2", "imagenet1k_v2"),
        ("seresnext50_32x4d", "racm_in1k"),
        ("seresnextaa101d_32x8d", "sw_in12k_ft_in1k_288"),
        ("seresnextaa201d_32x8d", "sw_in12k_ft_in1k_384"),
        ("legacy_seresnext26_32x4d", "in1k"),
    ],
)
def test_imagenet_is_the_best_permissive_checkpoint(architecture, tag):
    row = resolve(architecture, "imagenet")
    assert (row.architecture, row.tag, row.commercial) == (
        architecture,
        tag,
        True,
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_permissive_checkpoint_is_better_than_imagenet(architecture):
    rows = [
        row
        for row in CHECKPOINTS.values()
        if row.architecture == architecture
        and row.licence != "cc-by-nc-4.0"
        and row.classes == 1000
    ]
    if rows:
        best = resolve(architecture, "imagenet")
        assert best in rows and best.top1 == max(row.top1 for row in rows)


def test_of_equals_imagenet_is_torchvisions(tables):
    for tag, changes in (
        ("even", {}),
        ("better_of_others", {"top1": 99.0, "labels": ("a",) * 1000}),
        ("better_for_nobody", {"top1": 99.0, "licence": "cc-by-nc-sa-4.0"}),
    ):
        best = CHECKPOINTS["resnet50", "imagenet1k_v2"]
        row = dataclasses.replace(best, tag=tag, **changes)
        registry.CHECKPOINTS = {(row.architecture, tag): row} | (
            registry.CHECKPOINTS
        )
    assert resolve("resnet50", "imagenet") is best


@pytest.mark.parametrize(
    "architecture",
    ["resnext101_32x16d", "resnext101_32x32d", "resnext101_32x48d"],
)
def test_imagenet_is_never_non_commercial(architecture):
    for accept in (False, True):
        with pytest.raises(
            ValueError,
            match=r"no permissively licensed ImageNet one\. Received: weights="
            r"'imagenet'\. Pass one of .*'fb_wsl_ig1b_ft_in1k' \(cc-by-nc-4.0\)"
            r".*`accept_noncommercial=True`",
        ):
            resolve(architecture, "imagenet", accept_noncommercial=accept)


def test_tags_in_any_case():
    row = CHECKPOINTS["resnext50_32x4d", "imagenet1k_v1"]
    assert resolve("resnext50_32x4d", "IMAGENET1K_V1") is row
    assert resolve("resnext50_32x4d", "imagenet1k_v1") is row


def test_non_commercial_weights_need_consent():
    call = "resnext50_32x4d", "fb_swsl_ig1b_ft_in1k"
    assert resolve(*call, accept_noncommercial=True) is CHECKPOINTS[call]
    with pytest.raises(
        ValueError,
        match=r"cc-by-nc-4.0, which forbids .* weights='fb_swsl_ig1b_ft_in1k'\."
        " Pass `accept_noncommercial=True`, or choose one of 'imagenet1k_v1'",
    ):
        resolve(*call)


def test_unknown_tag_lists_the_known_ones():
    with pytest.raises(
        ValueError,
        match=r"must be a checkpoint of resnet50, and .*weights='a1_in1k'\. "
        r"Pass one of 'imagenet1k_v1' \(bsd-3-clause\), 'imagenet1k_v2'",
    ):
        resolve("resnet50", "a1_in1k")


def test_unknown_architecture_lists_the_known_ones():
    with pytest.raises(
        ValueError, match=r"architecture='resnext51'\. Pass one of resnext50_"
    ):
        resolve("resnext51", "imagenet")


def test_architecture_without_checkpoints():
    bare = set(ARCHITECTURES).difference(name for name, _ in CHECKPOINTS)
    for name in bare:
        with pytest.raises(
            ValueError, match=r"weights='imagenet'\. Pass None, or the path of"
        ):
            resolve(name, "imagenet")


def test_packaged_checkpoint():
    row = resolve("resnext29", "cifar10")
    file = pathlib.Path(registry.__file__).with_name(row.file)
    assert file.stat().st_size < 12_000_000
    assert hashlib.sha256(file.read_bytes()).hexdigest() == row.sha256
    assert row.classes == 10
    assert 80 < row.top1 < row.top5 < 100


@pytest.mark.parametrize(
    "name",
    [
        "resnext50_32x4d",
        "ResNeXt50",
        "resnext50",
        "RESNEXT-50",
        "ResNeXt-50 32x4d",
    ],
)
def test_names_forgive_case_and_hyphens(name):
    row = ARCHITECTURES["resnext50_32x4d"]
    assert registry.find_architecture(name) is row
    assert resolve(name, "imagenet").architecture == row.name
    transform = keras_resnext.eval_transform(f"{name}/IMAGENET1K_V1")
    assert transform.checkpoint == CHECKPOINTS[row.name, "imagenet1k_v1"]


def test_no_two_architectures_share_a_name():
    for row in ARCHITECTURES.values():
        for name in (row.name, row.constructor):
            assert registry.find_architecture(name) is row


@pytest.fixture
def tables(monkeypatch):
    for table in ("ARCHITECTURES", "CHECKPOINTS"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))


OWN = registry.Architecture(
    "mine", None, (1,), groups=2, width_per_group=1, stem="cifar", classes=16
)


def own(**changes):
    facts = dict(
        architecture="mine",
        tag="first",
        url=None,
        sha256=None,
        licence="mit",
        source="me",
        resize=40,
        crop=32,
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        top1=None,
        top5=None,
        classes=16,
        file=str(pathlib.Path(__file__).with_name("fixtures") / "net_zip.pth"),
    )
    return registry.Checkpoint(**(facts | changes))


def test_rows_of_ones_own(tables):
    assert registry.register(OWN) == OWN == registry.register(OWN)
    row = registry.register(own())
    model = keras_resnext.build("Mine", weights="First")
    assert (model.name, model.output_shape) == ("mine", (None, 16))
    assert keras_resnext.eval_transform("mine/first").checkpoint == row
    with pytest.raises(ValueError, match="`classes` must be 16"):
        keras_resnext.build("mine", weights="first", classes=3)
    with pytest.raises(ValueError, match=r"Pass one of 'first' \(mit\)"):
        keras_resnext.build("mine")
    pairs = [pair for pair in listing.checkpoints() if pair[0] == OWN]
    assert pairs == [(OWN, row)]
    assert listing.cells(pairs[0])[2:5] == ("-", "-", "- / -")


def test_rows_of_other_kinds_of_numbers(tables, tmp_path, monkeypatch):
    """Lists, NumPy's numbers, and a path from where Python runs."""
    net = registry.register(dataclasses.replace(OWN, depths=[1]))
    assert net == OWN  # a list would differ from what a file tells
    shutil.copy(own().file, tmp_path / "own.pth")
    monkeypatch.chdir(tmp_path)
    numbers = {"crop": np.int64(32), "mean": [0.5] * 3, "std": np.full(3, 0.2)}
    row = own(file="own.pth", **numbers)
    for found in (
        registry.register(row),
        keras_resnext.eval_transform(row).checkpoint,
    ):
        assert found == own(file="own.pth", crop=32)
        assert json.loads(json.dumps(dataclasses.asdict(found)))["crop"] == 32
    assert keras_resnext.build("mine", weights="first").name == "mine"


def test_networks_take_what_the_transform_makes(tables):
    registry.register(OWN)
    registry.register(own(tag="larger", resize=48, crop=48))
    build = functools.partial(keras_resnext.build, "mine")
    transform = keras_resnext.eval_transform("mine/larger")
    image = transform(np.zeros((60, 50, 3), "uint8"))
    assert build(weights="larger").input_shape[1:] == image.shape
    for weights, options, side in (
        ("larger", {"input_shape": (40, 40, 3)}, 40),
        ("larger", {"include_top": False}, None),
        (None, {}, 32),
    ):
        assert build(weights=weights, **options).input_shape[1] == side


@pytest.mark.parametrize("key", CHECKPOINTS, ids="/".join)
def test_every_network_takes_its_checkpoints_pictures(key):
    row, net = CHECKPOINTS[key], ARCHITECTURES[key[0]]
    least = arguments.check_structure(net)
    shape = arguments.check_input_shape(None, True, net, least, least, row)
    assert sorted(shape) == [3, row.crop, row.crop]


@pytest.mark.parametrize(
    "row, message",
    [
        (dataclasses.replace(OWN, name="ResNeXt_50"), "a name of its own"),
        (dataclasses.replace(OWN, name="-"), "a name of its own"),
        (dataclasses.replace(OWN, name="a/b"), "a name of its own"),
        (
            dataclasses.replace(OWN, name="other", depths=()),
            "`depths` are required",
        ),
        (own(architecture="none"), "must be a known one"),
        (own(tag="imagenet"), "a tag of its own"),
        (own(tag="First"), "a tag of its own"),
        (own(file=None), "one of `file`, `hub` and `url`"),
        (own(hub="a/b"), "one of `file`, `hub` and `url`"),
        (own(file=None, url="https://a.b/c.pth"), "needs its `sha256`"),
        (own(labels=("a", "b")), "the names of 16 classes. Received: labels="),
        (own(labels="abcdefghijklmnop"), "the names of 16 classes. Received"),
        (own(labels=list(range(16))), "the names of 16 classes. Received: la"),
        (own(licence=None), "`licence` must be a text. Received: licence=None"),
    ],
)
def test_incomplete_rows(row, message, tables):
    registry.register(OWN)
    with pytest.raises(ValueError, match=message):
        registry.register(row)
    with pytest.raises(TypeError, match="an Architecture or a Checkpoint"):
        registry.register("mine")


def test_a_row_is_registered_again(tables):
    """As by the second run of a notebook's cell."""
    registry.register(OWN)
    row = own(mean=[0.5] * 3, labels=[str(i) for i in range(16)])
    for _ in range(2):
        assert registry.register(row).labels[15] == "15"


def test_identifiers_of_licences_in_capitals():
    assert not own(licence="CC-BY-NC-4.0").commercial
    assert own(licence="BSD-3-Clause").commercial


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"interpolation": "lanczos"}, "one of ('bilinear', 'bicubic'). Recei"),
        ({"crop_mode": "centre"}, "one of ('center', 'squash', 'border'). Rec"),
        ({"resize": 40.0}, "`resize` must be a positive integer. Received: re"),
        ({"crop": 0}, "`crop` must be a positive integer. Received: crop=0."),
        ({"mean": 0.5}, "`mean` must be three numbers. Received: mean=0.5."),
        ({"mean": (0.5,)}, "`mean` must be three numbers. Received: mean=(0."),
        ({"mean": (0.5, 0.5, float("nan"))}, "`mean` must be three numbers."),
        ({"mean": "abc"}, "`mean` must be three numbers. Received: mean='abc"),
        ({"std": (0.2, 0.2, 0)}, "`std` must be three numbers, above 0. Recei"),
    ],
    ids=str,
)
def test_pictures_that_nobody_can_prepare(changes, message, tables):
    registry.register(OWN)
    for function in (registry.register, keras_resnext.eval_transform):
        with pytest.raises(ValueError, match=re.escape(message)):
            function(own(**changes))


def test_imagenet_of_a_cifar_network_names_cifar10():
    with pytest.raises(ValueError, match=r"Pass one of 'cifar10'"):
        resolve("resnext29", "imagenet")
