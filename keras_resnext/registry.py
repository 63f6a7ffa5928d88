"""What exists: the architectures, and the public checkpoints of each.

Two tables and what finds their rows, standard library only. Preprocessing and
accuracy belong to a checkpoint, not to an architecture: one ResNeXt-50 wants
224 pixels cut from 232 with bilinear filtering, another one all of 288 with
bicubic.
"""

import dataclasses
import difflib
import functools
import math
import numbers
import re
import unicodedata

# Of the red, green and blue channel, for values in 0..1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic")
CROP_MODES = ("center", "squash", "border")
# What a `Checkpoint` says of how pictures are prepared.
PREPROCESSING = (
    *("resize", "crop", "crop_mode"),
    *("interpolation", "mean", "std"),
)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What makes one network: every number that its constructor needs.

    Attributes:
        name: Its name in torchvision and timm.
        constructor: Name of the public function that builds it, or `None`
            for a row of your own, which `keras_resnext.build` builds.
        depths: Number of residual blocks of each stage.
        block: `"bottleneck"` or `"basic"`.
        groups: Number of groups of the 3x3 convolutions, the paper's
            cardinality.
        width_per_group: Channels of one group in the first stage of 64
            planes, the paper's bottleneck width.
        stem: `"imagenet"` (7x7 at stride 2, then pooling), `"legacy"` (the
            same, pooled without padding), `"deep"` or `"tiered"` (three 3x3,
            then pooling), or `"cifar"` (3x3).
        stem_width: Channels of a deep stem's second convolution; the third
            has twice as many, the first as many, or 3/4 in a tiered stem.
        planes: Channels of the first stage's narrow convolutions; every
            further stage has twice as many, and outputs four times as many
            (basic: as many).
        squeeze_excite: Whether each block weights its channels by what it
            computes from their means.
        average_shortcut: Whether shortcuts are averaged, not strided.
        anti_aliased: Whether averages stand in place of the strides of 3x3
            convolutions, and of the stem's maximum.
        num_params: Number of trainable parameters with `classes` outputs.
        gmacs: Multiply-adds of the convolutions and the last layer for one
            image of 224x224 pixels (`"cifar"`: 32x32), in billions. timm
            counts further operations and publishes up to 1 % more.
        classes: Number of classes that `num_params` and `gmacs` stand for.
    """

    name: str
    constructor: str | None
    depths: tuple[int, ...]
    _: dataclasses.KW_ONLY
    block: str = "bottleneck"
    groups: int = 1
    width_per_group: int = 64
    stem: str = "imagenet"
    stem_width: int = 32
    planes: int = 64
    squeeze_excite: bool = False
    average_shortcut: bool = False
    anti_aliased: bool = False
    num_params: int | None = None
    gmacs: float | None = None
    classes: int = 1000


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One public weight file, and what it takes to reproduce its accuracy.

    Attributes:
        architecture: Key of `ARCHITECTURES`.
        tag: Its name among the architecture's checkpoints, in lower case.
        url: Where the file is, or `None` for a file or the hub.
        sha256: Of the file at `url` or in the package: all 64 hexadecimal
            digits, or the first 8 or more.
        licence: SPDX identifier in lower case, or `"unknown"`.
        source: URL of the page that says how the weights were made.
        resize: Length to which the shorter side is resized, in pixels.
        crop: Side of the square cut from the centre, in pixels.
        interpolation: `"bilinear"` or `"bicubic"`, antialiased.
        mean: Of the three RGB channels, for values in 0..1.
        std: Of the three RGB channels, for values in 0..1.
        top1: Published accuracy of the first guess with this preprocessing,
            %, or `None`.
        top5: Published accuracy of the first five guesses, %, or `None`.
        classes: Number of classes.
        file: Name of a packaged file, or path of another one, which then
            needs no download.
        hub: Repository on the Hugging Face hub, as `"timm/NAME"` or
            `"timm/NAME@REVISION"`, if the file comes from there.
        labels: Names of the classes, or `None` for those of ImageNet and
            CIFAR-10.
        crop_mode: What becomes of the picture's proportions: `"center"` cuts
            off what exceeds the square, `"squash"` makes it a square,
            `"border"` fills it up to one with the mean colour.
    """

    architecture: str
    tag: str
    url: str | None
    sha256: str | None
    licence: str
    source: str
    resize: int
    crop: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    top1: float | None
    top5: float | None
    classes: int = 1000
    file: str | None = None
    hub: str | None = None
    labels: tuple[str, ...] | None = None
    crop_mode: str = "center"

    @property
    def commercial(self):
        """Whether the licence does not forbid commercial use."""
        return "nc" not in self.licence.lower().split("-")


_SHALLOW, _DEEP, _DEEPEST = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
_LEAST, _LARGEST = (2, 2, 2, 2), (3, 24, 36, 4)
_basic = functools.partial(Architecture, block="basic")
_wide = functools.partial(Architecture, width_per_group=128)
_resnext = functools.partial(Architecture, groups=32)
_deep = dict(stem="deep", average_shortcut=True)
_se = functools.partial(_resnext, width_per_group=4, squeeze_excite=True)
_se_deep = functools.partial(_se, **_deep)
_se_wide = functools.partial(_se_deep, width_per_group=8)

# Source: torchvision's metadata; where it has none, timm's parameters, and the
# formula of tests/test_registry.py, which reproduces all numbers of both.
# fmt: off
ARCHITECTURES = {row.name: row for row in (
    _resnext("resnext50_32x4d", "ResNeXt50", _SHALLOW,
             width_per_group=4, num_params=25_028_904, gmacs=4.230),
    _resnext("resnext101_32x4d", "ResNeXt101", _DEEP,
             width_per_group=4, num_params=44_177_704, gmacs=7.970),
    _resnext("resnext101_32x8d", "ResNeXt101_32x8d", _DEEP,
             width_per_group=8, num_params=88_791_336, gmacs=16.414),
    _resnext("resnext101_64x4d", "ResNeXt101_64x4d", _DEEP, groups=64,
             width_per_group=4, num_params=83_455_272, gmacs=15.460),
    _resnext("resnext101_32x16d", "ResNeXt101_32x16d", _DEEP,
             width_per_group=16, num_params=194_026_792, gmacs=36.163),
    _resnext("resnext101_32x32d", "ResNeXt101_32x32d", _DEEP,
             width_per_group=32, num_params=468_530_472, gmacs=87.107),
    _resnext("resnext101_32x48d", "ResNeXt101_32x48d", _DEEP,
             width_per_group=48, num_params=828_411_176, gmacs=153.310),
    _resnext("resnext152_32x4d", "ResNeXt152", _DEEPEST,
             width_per_group=4, num_params=59_951_400, gmacs=11.710),
    _basic("resnet18", "ResNet18", (2, 2, 2, 2),
              num_params=11_689_512, gmacs=1.814),
    _basic("resnet34", "ResNet34", _SHALLOW,
              num_params=21_797_672, gmacs=3.664),
    Architecture("resnet50", "ResNet50", _SHALLOW,
                 num_params=25_557_032, gmacs=4.089),
    Architecture("resnet101", "ResNet101", _DEEP,
                 num_params=44_549_160, gmacs=7.801),
    Architecture("resnet152", "ResNet152", _DEEPEST,
                 num_params=60_192_808, gmacs=11.514),
    _wide("wide_resnet50_2", "WideResNet50_2", _SHALLOW,
          num_params=68_883_240, gmacs=11.398),
    _wide("wide_resnet101_2", "WideResNet101_2", _DEEP,
          num_params=126_886_696, gmacs=22.753),
    _resnext("resnext50d_32x4d", "ResNeXt50D", _SHALLOW, **_deep,
             width_per_group=4, num_params=25_048_136, gmacs=4.470),
    _se_deep("seresnext26d_32x4d", "SEResNeXt26D", _LEAST,
             num_params=16_809_512, gmacs=2.712),
    _se_deep("seresnext26t_32x4d", "SEResNeXt26T", _LEAST, stem="tiered",
             num_params=16_806_976, gmacs=2.680),
    _se("seresnext50_32x4d", "SEResNeXt50", _SHALLOW,
        num_params=27_559_896, gmacs=4.233),
    _se("seresnext101_32x4d", "SEResNeXt101", _DEEP,
        num_params=48_955_416, gmacs=7.975),
    _se("seresnext101_32x8d", "SEResNeXt101_32x8d", _DEEP, width_per_group=8,
        num_params=93_569_048, gmacs=16.419),
    _se("seresnext101_64x4d", "SEResNeXt101_64x4d", _DEEP, groups=64,
        num_params=88_232_984, gmacs=15.465),
    _se_wide("seresnext101d_32x8d", "SEResNeXt101D_32x8d", _DEEP,
             num_params=93_588_280, gmacs=16.658),
    _se_wide("seresnextaa101d_32x8d", "SEResNeXtAA101D_32x8d", _DEEP,
             anti_aliased=True, num_params=93_588_280, gmacs=17.179),
    _se_wide("seresnextaa201d_32x8d", "SEResNeXtAA201D_32x8d", _LARGEST,
             anti_aliased=True, stem_width=64,
             num_params=149_394_904, gmacs=34.276),
    _se("legacy_seresnext26_32x4d", "LegacySEResNeXt26", _LEAST,
        stem="legacy", num_params=16_790_280, gmacs=2.472),
    _se("legacy_seresnext50_32x4d", "LegacySEResNeXt50", _SHALLOW,
        stem="legacy", num_params=27_559_896, gmacs=4.233),
    _se("legacy_seresnext101_32x4d", "LegacySEResNeXt101", _DEEP,
        stem="legacy", num_params=48_955_416, gmacs=7.975),
    Architecture("resnet50d", "ResNet50D", _SHALLOW, **_deep,
                 num_params=25_576_264, gmacs=4.329),
    Architecture("seresnet50", "SEResNet50", _SHALLOW, squeeze_excite=True,
                 num_params=28_088_024, gmacs=4.092),
    # The cardinality and width are those of the weights that ship.
    Architecture("resnext29", "ResNeXt29", (3, 3, 3), stem="cifar", classes=10,
                 groups=32, width_per_group=4,
                 num_params=4_775_754, gmacs=0.774),
)}
# fmt: on


def _row(architecture, tag, url, **facts):
    """Returns a row; PyTorch's hub puts the hash into the file's name."""
    if url:
        digest = re.search(r"-([0-9a-f]{8,})\.pth$", url)[1]
        facts.setdefault("sha256", digest)
    return Checkpoint(
        architecture=architecture,
        tag=tag,
        url=url,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        **facts,
    )


def _tv(architecture, version, digest, resize, top1, top5, recipe):
    """Returns the row of one of torchvision's weight enums."""
    return _row(
        architecture,
        f"imagenet1k_v{version}",
        f"https://download.pytorch.org/models/{architecture}-{digest}.pth",
        licence="bsd-3-clause",
        source=f"https://github.com/pytorch/vision/{recipe}",
        resize=resize,
        crop=224,
        interpolation="bilinear",
        top1=top1,
        top5=top5,
    )


def _timm(licence, interpolation, crop, crop_pct, name, top1, top5, url=None):
    """Returns the row of timm's `name`, at timm's best test setting.

    What has no URL is on the hub only.
    """
    architecture, _, tag = name.partition(".")
    hub = {} if url else {"hub": f"timm/{name}", "sha256": None}
    if tag.endswith("_in12k"):
        hub["classes"] = 11_821
    return _row(
        architecture,
        tag,
        url,
        **hub,
        licence=licence,
        source=f"https://huggingface.co/timm/{name}",
        resize=math.floor(crop / crop_pct),
        crop=crop,
        interpolation=interpolation,
        top1=top1,
        top5=top5,
    )


_apache = functools.partial(_timm, "apache-2.0", "bicubic")
_bsd = functools.partial(_timm, "bsd-3-clause", "bilinear")
_cadene = functools.partial(_timm, "apache-2.0", "bilinear", 224, 0.875)
_facebook = functools.partial(_timm, "cc-by-nc-4.0", "bilinear", 224, 0.875)

_RESNET = "tree/main/references/classification#resnet"
_RESNEXT = "tree/main/references/classification#resnext"
_WIDE = "pull/912#issue-445437439"
_NEW = "issues/3995#new-recipe"
_FIXRES = "issues/3995#new-recipe-with-fixres"
_COMMENT = "issues/3995#issuecomment-1013906621"

_TORCH = "https://download.pytorch.org/models"
_META = "https://dl.fbaipublicfiles.com/semiweaksupervision/model_files"
_RW = "https://github.com/rwightman/pytorch-image-models/releases/download"
_HF = "https://github.com/huggingface/pytorch-image-models/releases/download"
_TPU = f"{_RW}/v0.1-tpu-weights"
_GLUON = (
    "https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/"
    "download/v0.1"
)

# Source: torchvision 0.28 (weight enums) and timm 1.0.31 (configurations, and
# results-imagenet.csv, measured anew: a file that both list has two numbers).
# The columns are those of `_tv` and `_timm`.
# fmt: off
CHECKPOINTS = {(row.architecture, row.tag): row for row in (
    _tv("resnext50_32x4d", 1, "7cdf4587", 256, 77.618, 93.698, _RESNEXT),
    _tv("resnext50_32x4d", 2, "1a0047aa", 232, 81.198, 95.340, _NEW),
    _tv("resnext101_32x8d", 1, "8ba56ff5", 256, 79.312, 94.526, _RESNEXT),
    _tv("resnext101_32x8d", 2, "110c445d", 232, 82.834, 96.228, _FIXRES),
    _tv("resnext101_64x4d", 1, "173b62eb", 232, 83.246, 96.454, "pull/5935"),
    _tv("resnet18", 1, "f37072fd", 256, 69.758, 89.078, _RESNET),
    _tv("resnet34", 1, "b627a593", 256, 73.314, 91.420, _RESNET),
    _tv("resnet50", 1, "0676ba61", 256, 76.130, 92.862, _RESNET),
    _tv("resnet50", 2, "11ad3fa6", 232, 80.858, 95.434, _COMMENT),
    _tv("resnet101", 1, "63fe2227", 256, 77.374, 93.546, _RESNET),
    _tv("resnet101", 2, "cd907fc2", 232, 81.886, 95.780, _NEW),
    _tv("resnet152", 1, "394f9c45", 256, 78.312, 94.046, _RESNET),
    _tv("resnet152", 2, "f82ba261", 232, 82.284, 96.002, _NEW),
    _tv("wide_resnet50_2", 1, "95faca4d", 256, 78.468, 94.086, _WIDE),
    _tv("wide_resnet50_2", 2, "9ba9bcbe", 232, 81.602, 95.758, _FIXRES),
    _tv("wide_resnet101_2", 1, "32ee1156", 256, 78.848, 94.284, _WIDE),
    _tv("wide_resnet101_2", 2, "d733dc28", 232, 82.510, 96.020, _NEW),
    _apache(288, 1.0, "resnext50_32x4d.a1h_in1k", 82.016, 95.934,
            f"{_RW}/v0.1-rsb-weights/resnext50_32x4d_a1h-0146ab0a.pth"),
    _apache(288, 1.0, "resnext50_32x4d.a1_in1k", 81.480, 95.152,
            f"{_HF}/v0.1-rsb-weights/resnext50_32x4d_a1_0-b5a91a1d.pth"),
    _apache(288, 1.0, "resnext50_32x4d.a2_in1k", 81.304, 95.114,
            f"{_HF}/v0.1-rsb-weights/resnext50_32x4d_a2_0-efc76add.pth"),
    _apache(224, 0.95, "resnext50_32x4d.a3_in1k", 79.258, 94.308,
            f"{_HF}/v0.1-rsb-weights/resnext50_32x4d_a3_0-3e450271.pth"),
    _apache(288, 0.95, "resnext50_32x4d.ra_in1k", 80.720, 95.344,
            f"{_HF}/v0.1-weights/resnext50_32x4d_ra-d733960d.pth"),
    _apache(288, 1.0, "resnext101_64x4d.c1_in1k", 83.158, 96.370,
            f"{_TPU}/resnext101_64x4d_c-0d0e0cc0.pth"),
    _apache(224, 0.875, "resnext50_32x4d.gluon_in1k", 79.354, 94.424,
            f"{_GLUON}/gluon_resnext50_32x4d-e6a097c1.pth"),
    _apache(224, 0.875, "resnext101_32x4d.gluon_in1k", 80.336, 94.908,
            f"{_GLUON}/gluon_resnext101_32x4d-b253c8c4.pth"),
    _apache(224, 0.875, "resnext101_64x4d.gluon_in1k", 80.640, 95.000,
            f"{_GLUON}/gluon_resnext101_64x4d-f9a8e184.pth"),
    _bsd(224, 0.875, "resnext50_32x4d.tv_in1k", 77.632, 93.674,
         f"{_TORCH}/resnext50_32x4d-7cdf4587.pth"),
    _bsd(224, 0.965, "resnext50_32x4d.tv2_in1k", 81.190, 95.344,
         f"{_TORCH}/resnext50_32x4d-1a0047aa.pth"),
    _bsd(224, 0.875, "resnext101_32x8d.tv_in1k", 79.308, 94.530,
         f"{_TORCH}/resnext101_32x8d-8ba56ff5.pth"),
    _bsd(224, 0.965, "resnext101_32x8d.tv2_in1k", 82.832, 96.234,
         f"{_TORCH}/resnext101_32x8d-110c445d.pth"),
    _bsd(224, 0.875, "resnext101_64x4d.tv_in1k", 82.978, 96.252,
         f"{_TORCH}/resnext101_64x4d-173b62eb.pth"),
    _facebook("resnext50_32x4d.fb_ssl_yfcc100m_ft_in1k", 80.316, 95.386,
              f"{_META}/semi_supervised_resnext50_32x4-ddb3e555.pth"),
    _facebook("resnext101_32x4d.fb_ssl_yfcc100m_ft_in1k", 80.936, 95.732,
              f"{_META}/semi_supervised_resnext101_32x4-dc43570a.pth"),
    _facebook("resnext101_32x8d.fb_ssl_yfcc100m_ft_in1k", 81.620, 96.036,
              f"{_META}/semi_supervised_resnext101_32x8-2cfe2f8b.pth"),
    _facebook("resnext101_32x16d.fb_ssl_yfcc100m_ft_in1k", 81.856, 96.084,
              f"{_META}/semi_supervised_resnext101_32x16-15fffa57.pth"),
    _facebook("resnext50_32x4d.fb_swsl_ig1b_ft_in1k", 82.162, 96.224,
              f"{_META}/semi_weakly_supervised_resnext50_32x4-72679e44.pth"),
    _facebook("resnext101_32x4d.fb_swsl_ig1b_ft_in1k", 83.268, 96.760,
              f"{_META}/semi_weakly_supervised_resnext101_32x4-3f87e46b.pth"),
    _facebook("resnext101_32x8d.fb_swsl_ig1b_ft_in1k", 84.276, 97.188,
              f"{_META}/semi_weakly_supervised_resnext101_32x8-b4712904.pth"),
    # Facebook's README claims 84.8 and 97.4 % for this one.
    _facebook("resnext101_32x16d.fb_swsl_ig1b_ft_in1k", 83.340, 96.844,
              f"{_META}/semi_weakly_supervised_resnext101_32x16-f3559a9c.pth"),
    _facebook("resnext101_32x8d.fb_wsl_ig1b_ft_in1k", 82.720, 96.624,
              f"{_TORCH}/ig_resnext101_32x8-c38310e5.pth"),
    _facebook("resnext101_32x16d.fb_wsl_ig1b_ft_in1k", 84.166, 97.192,
              f"{_TORCH}/ig_resnext101_32x16-c6f796b0.pth"),
    _facebook("resnext101_32x32d.fb_wsl_ig1b_ft_in1k", 85.090, 97.442,
              f"{_TORCH}/ig_resnext101_32x32-e4b90b00.pth"),
    _apache(288, 0.95, "resnext50d_32x4d.bt_in1k", 80.676, 95.426,
            f"{_RW}/v0.1-weights/resnext50d_32x4d-103e99f8.pth"),
    _apache(288, 0.95, "seresnext26d_32x4d.bt_in1k", 78.816, 94.266,
            f"{_RW}/v0.1-weights/seresnext26d_32x4d-80fa48a3.pth"),
    _apache(288, 0.95, "seresnext26t_32x4d.bt_in1k", 78.736, 94.318,
            f"{_RW}/v0.1-weights/seresnext26tn_32x4d-569cb627.pth"),
    _apache(224, 0.875, "seresnext50_32x4d.gluon_in1k", 79.916, 94.816,
            f"{_GLUON}/gluon_seresnext50_32x4d-90cf2d6e.pth"),
    _apache(288, 0.95, "seresnext50_32x4d.racm_in1k", 82.186, 96.146,
            f"{_RW}/v0.1-weights/seresnext50_32x4d_racm-a304a460.pth"),
    _apache(224, 0.875, "seresnext101_32x4d.gluon_in1k", 80.886, 95.268,
            f"{_GLUON}/gluon_seresnext101_32x4d-cf52900d.pth"),
    _apache(288, 1.0, "seresnext101_32x8d.ah_in1k", 84.192, 96.860,
            f"{_TPU}/seresnext101_32x8d_ah-e6bc4c0a.pth"),
    _apache(224, 0.875, "seresnext101_64x4d.gluon_in1k", 80.884, 95.308,
            f"{_GLUON}/gluon_seresnext101_64x4d-f9926f93.pth"),
    _apache(288, 1.0, "seresnext101d_32x8d.ah_in1k", 84.380, 96.918,
            f"{_TPU}/seresnext101d_32x8d_ah-191d7b94.pth"),
    _apache(288, 1.0, "seresnextaa101d_32x8d.ah_in1k", 84.580, 97.062,
            f"{_TPU}/seresnextaa101d_32x8d_ah-83c8ae12.pth"),
    _apache(320, 1.0, "seresnextaa101d_32x8d.sw_in12k_ft_in1k_288",
            86.722, 98.184),
    _apache(288, 1.0, "seresnextaa101d_32x8d.sw_in12k_ft_in1k",
            86.524, 98.034),
    # Of 11,821 classes of ImageNet-12k, without published accuracy.
    _apache(288, 1.0, "seresnextaa101d_32x8d.sw_in12k", None, None),
    _apache(384, 1.0, "seresnextaa201d_32x8d.sw_in12k_ft_in1k_384",
            87.304, 98.334),
    _apache(384, 1.0, "seresnextaa201d_32x8d.sw_in12k", None, None),
    _apache(224, 0.875, "legacy_seresnext26_32x4d.in1k", 77.100, 93.332,
            f"{_RW}/v0.1-weights/seresnext26_32x4d-65ebdb501.pth"),
    _cadene("legacy_seresnext50_32x4d.in1k", 79.080, 94.428,
            f"{_RW}/v0.1-weights/legacy_se_resnext50_32x4d-f3651bad.pth"),
    _cadene("legacy_seresnext101_32x4d.in1k", 80.274, 95.032,
            f"{_RW}/v0.1-weights/legacy_se_resnext101_32x4d-37725eac.pth"),
    # timm has no model of this one any more; its documentation has the numbers.
    dataclasses.replace(
        _facebook("resnext101_32x48d.fb_wsl_ig1b_ft_in1k", 85.420, 97.580,
                  f"{_TORCH}/ig_resnext101_32x48-3e41cc8a.pth"),
        source="https://github.com/facebookresearch/WSL-Images"),
    # Trained by this project; docs/train.md has the commands.
    _row("resnext29", "cifar10", None, file="resnext29_cifar10.safetensors",
         sha256="fc88679155d3bc3fc66d150a83725b73"
                "fb6e7288108ba5e39c649d457a71d8fe",
         licence="apache-2.0", source="scripts/train.py",
         resize=32, crop=32, interpolation="bilinear", classes=10,
         top1=95.32, top5=99.72),
)}
# fmt: on


def find_architecture(name):
    """Returns the architecture of a name.

    Args:
        name: Key of `ARCHITECTURES`, or a constructor's name; case, hyphens
            and underscores do not matter: `"ResNeXt-50"`, `"resnext50"`.

    Returns:
        An `Architecture`.

    Raises:
        ValueError: If there is none of that name.
    """
    wanted = _plain(name)
    for row in ARCHITECTURES.values():
        if wanted in map(_plain, filter(None, (row.name, row.constructor))):
            return row
    raise ValueError(
        "`architecture` must be a known one. Received: architecture="
        f"{name!r}. {advise(name)}"
    )


def advise(name):
    """Returns a sentence that says which architectures may have been meant."""
    known = {
        _plain(text): row.name
        for row in ARCHITECTURES.values()
        for text in (row.name, row.constructor or row.name)
    }
    near = difflib.get_close_matches(_plain(name), known, 5, 0.7)
    names = dict.fromkeys(known[text] for text in near)
    if not names:
        return f"Pass one of {', '.join(ARCHITECTURES)}."
    return (
        f"Pass one of {', '.join(names)}, or another one that `python -m "
        "keras_resnext list` prints."
    )


def _plain(name):
    return re.sub(r"[\W_]", "", str(name)).lower()


def usual(resize, crop=None):
    """Returns a checkpoint with ImageNet's usual preprocessing at a size.

    Args:
        resize: Length of the shorter side of the resized picture, in pixels.
        crop: Side of what is cut out of it, by default all of that.

    Returns:
        A `Checkpoint` of which only the preprocessing counts: bilinear, with
        the mean and deviation of `preprocess_input`.
    """
    row = CHECKPOINTS["resnext50_32x4d", "imagenet1k_v1"]
    return dataclasses.replace(row, resize=resize, crop=crop or resize)


def require(condition, requirement, advice, **received):
    """Raises a `ValueError` of one form unless the condition holds."""
    if not condition:
        ((name, value),) = received.items()
        raise ValueError(f"{requirement}. Received: {name}={value!r}. {advice}")


def is_line(text):
    """Tells whether a text is one line that terminals and files take as it is.

    Not `str.isprintable`, which knows no character newer than Python, and
    refuses those that words of Persian, or names with wide spaces, have.
    """
    bad = {"Cc", "Cs", "Zl", "Zp"}  # controls, what UTF-8 lacks, ends of lines
    return not bad.intersection(map(unicodedata.category, text))


def is_count(value):
    """Tells whether a value is a positive integer; NumPy's are welcome."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and value > 0


def require_count(advice, **received):
    """Raises a `ValueError` unless an argument is a positive integer."""
    ((name, value),) = received.items()
    require(
        is_count(value),
        f"`{name}` must be a positive integer",
        advice,
        **received,
    )


def register(row):
    """Adds a row of your own to `ARCHITECTURES` or `CHECKPOINTS`.

    From then on its name works in `keras_resnext.build`, `eval_transform`,
    `export` and wherever else a name is taken:

        register(Architecture("mine", None, (2, 2, 2), groups=8,
                              width_per_group=8, stem="cifar", classes=7))
        register(Checkpoint("mine", "first", None, None, "mit", "me",
                            64, 64, "bilinear", IMAGENET_MEAN, IMAGENET_STD,
                            None, None, 7, file="/models/mine.safetensors"))
        model = keras_resnext.build("mine", weights="first", classes=7)

    Args:
        row: An `Architecture`, or a `Checkpoint` of a known architecture with
            one of `url` (with its `sha256`), `file` and `hub`.

    Returns:
        The row, with Python's own numbers in it.

    Raises:
        ValueError: If the name is taken by another row, or if what the row
            says is incomplete.
        TypeError: If it is neither an architecture nor a checkpoint.
    """
    if isinstance(row, Architecture):
        depths = () if row.depths is None else tuple(row.depths)
        row = dataclasses.replace(row, depths=depths)
        table, key = ARCHITECTURES, row.name
        taken = [r for r in table.values() if r != row and _same(r, row)]
        require(
            re.fullmatch(r"[\w. -]*\w[\w. -]*", row.name) and not taken,
            "An architecture must have a name of its own",
            "Choose another one.",
            name=row.name,
        )
        require(row.depths, "`depths` are required", "See ResNeXt.", row=row)
    elif isinstance(row, Checkpoint):
        row = _check_labels(check_preprocessing(row))
        key = find_architecture(row.architecture).name, row.tag
        table = CHECKPOINTS
        require(
            table.get(key, row) == row
            and row.tag == row.tag.lower() not in ("", "imagenet"),
            "A checkpoint must have a tag of its own, in lower case",
            "Choose another one.",
            tag=row.tag,
        )
        require(
            [row.url, row.file, row.hub].count(None) == 2
            and (not row.url or re.fullmatch("[0-9a-f]{8,64}", str(row.sha256)))
            and row.architecture == key[0],
            "A checkpoint must have the key of its architecture and one of "
            "`file`, `hub` and `url`, which needs its `sha256`",
            "See `keras_resnext.registry.Checkpoint`.",
            row=row,
        )
    else:
        raise TypeError(
            "`row` must be an Architecture or a Checkpoint. Received: "
            f"row={row!r}. See `keras_resnext.registry`."
        )
    table[key] = row
    return row


def _check_labels(row):
    """Checks a row's `labels` and `licence`; makes a tuple of the labels."""
    labels = row.labels
    require(
        labels is None
        or (
            isinstance(labels, (list, tuple))
            and len(labels) == row.classes
            and all(isinstance(label, str) for label in labels)
        ),
        f"`labels` must be None, or the names of {row.classes} classes",
        "Pass a tuple of texts, one for each class.",
        labels=str(labels)[:40],
    )
    require(
        isinstance(row.licence, str),
        "`licence` must be a text",
        "Pass its SPDX identifier, or 'unknown'.",
        licence=row.licence,
    )
    labels = None if labels is None else tuple(labels)
    return dataclasses.replace(row, labels=labels)


def check_preprocessing(row):
    """Checks what a `Checkpoint` says of how pictures are prepared.

    Returns:
        The row, with Python's own numbers in it.

    Raises:
        ValueError: If it is none of what `eval_transform` does.
    """
    for name, known in (
        ("interpolation", INTERPOLATIONS),
        ("crop_mode", CROP_MODES),
    ):
        value = getattr(row, name)
        require(
            value in known,
            f"`{name}` must be one of {known}",
            "Take what the weights were evaluated with.",
            **{name: value},
        )
    for name in ("resize", "crop"):
        require_count("It is a length in pixels.", **{name: getattr(row, name)})
    for name, least, words in (
        ("mean", -math.inf, "three numbers"),
        ("std", 0, "three numbers, above 0"),
    ):
        value = getattr(row, name)
        require(
            hasattr(value, "__len__")
            and len(value) == 3
            and all(isinstance(v, numbers.Real) for v in value)
            and all(least < v < math.inf for v in value),
            f"`{name}` must be {words}",
            "They are of red, green and blue, for values in 0..1.",
            **{name: value},
        )
    return dataclasses.replace(
        row,
        resize=int(row.resize),
        crop=int(row.crop),
        mean=tuple(map(float, row.mean)),
        std=tuple(map(float, row.std)),
    )


def _same(one, other):
    """Tells whether a name would stand for both architectures."""
    names = [
        {_plain(name) for name in (row.name, row.constructor) if name}
        for row in (one, other)
    ]
    return bool(names[0] & names[1])


def resolve(architecture, weights, accept_noncommercial=False):
    """Returns the checkpoint that `weights` stands for.

    Args:
        architecture: Name of an architecture, see `find_architecture`.
        weights: A tag of the architecture in any case, or `"imagenet"`: the
            checkpoint of ImageNet's 1000 classes with a permissive licence
            that has the greatest `top1`, each with its own preprocessing.
        accept_noncommercial: Whether a licence that forbids commercial use is
            welcome, too. `"imagenet"` never stands for such a checkpoint.

    Returns:
        A `Checkpoint`.

    Raises:
        ValueError: If the architecture is unknown, if it has no such
            checkpoint, or if that one's licence has not been accepted.
    """
    architecture = find_architecture(architecture).name
    rows = {
        tag: row
        for (name, tag), row in CHECKPOINTS.items()
        if name == architecture
    }
    options = ", ".join(f"{tag!r} ({row.licence})" for tag, row in rows.items())
    tag = str(weights).lower()
    if tag == "imagenet":
        ranks = {
            # Of equals torchvision's.
            tag: (row.top1 or 0, tag.startswith("imagenet1k_v"))
            for tag, row in rows.items()
            if row.commercial and row.classes == 1000 and row.labels is None
        }
        tag = max(ranks, key=ranks.get, default=tag)
    if tag not in rows:
        kind = "permissively licensed ImageNet" if tag == "imagenet" else "such"
        advice = "None, or the path of a weight file"
        if rows:
            advice = f"one of {options}; non-commercial ones (nc) also need "
            advice += "`accept_noncommercial=True`"
        raise ValueError(
            f"`weights` must be a checkpoint of {architecture}, and there is "
            f"no {kind} one. Received: weights={weights!r}. Pass {advice}."
        )
    others = f"one of {options}"
    return accepted(rows[tag], weights, accept_noncommercial, others)


def accepted(row, weights, accept_noncommercial, others="others"):
    """Returns a checkpoint whose licence has been accepted, if it has to be.

    Raises:
        ValueError: If it has not; the message names `weights` and `others`.
    """
    require(
        row.commercial or accept_noncommercial,
        f"{row.licence}, which forbids commercial use, must be accepted for "
        "these weights",
        f"Pass `accept_noncommercial=True`, or choose {others}.",
        weights=weights,
    )
    return row
