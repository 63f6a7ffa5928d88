"""What network a file is of, read off the names and shapes in it."""

import re

from keras_resnext.nested import paths, sublayers
from keras_resnext.registry import ARCHITECTURES
from keras_resnext.weights.unread import short_names

_BLOCK = re.compile(r"conv(\d{1,2})_block(\d{1,3})_")
_AVERAGED = re.compile(r"conv\d+_block\d+_[12]_pool")
# What no array shows, and the values that another file may say.
UNSEEN = {
    "stem": ("imagenet", "legacy"),
    "average_shortcut": (False, True),
    "anti_aliased": (False, True),
}
_PACKAGE = "keras_resnext"
_MOST_CHARACTERS = 1000  # of what a file says of its network
_MOST_CHANNELS = 1024  # of a picture; a short file could claim any number


def describe(shapes):
    """Reads the fields of an `Architecture` off the weights of a network.

    Args:
        shapes: Dictionary from `layer/variable`, in this package's names, to
            a shape.

    Returns:
        Dictionary with `depths`, `block`, `groups`, `width_per_group`,
        `planes`, `squeeze_excite`, and as far as it shows `stem`,
        `stem_width` and `classes`; empty where it is no network of ours. How
        a network pools does not show: see `describe_pytorch`.
    """
    depths = {}
    for name in shapes:
        if match := _BLOCK.match(name):
            stage, block = map(int, match.groups())
            depths[stage] = max(block, depths.get(stage, 0))
    middle = _kernel(shapes, "conv2_block1_2_conv")
    if not middle or middle[3] % middle[2]:
        return {}
    if sorted(depths) != list(range(2, len(depths) + 2)):
        return {}
    facts = {
        "depths": tuple(depths[stage] for stage in sorted(depths)),
        "squeeze_excite": "conv2_block1_se_reduce/kernel" in shapes,
    }
    if last := _kernel(shapes, "conv2_block1_3_conv"):
        planes, deep = last[3] // 4, len(depths) - 1
        facts |= {"block": "bottleneck", "groups": middle[3] // middle[2]}
        # Rounded down in each stage, least of all in the deepest.
        kernel = _kernel(shapes, f"conv{deep + 2}_block1_2_conv") or middle
        facts["width_per_group"] = _width_per_group(kernel[2], planes << deep)
    else:
        planes = middle[3]
        facts |= {"block": "basic", "groups": 1, "width_per_group": 64}
    facts["planes"] = planes
    first, second = (_kernel(shapes, f"conv1_{i}_conv") for i in (1, 2))
    if first and second:
        facts["stem"] = "deep" if first[3] == second[3] else "tiered"
        facts["stem_width"] = second[3]
    elif _kernel(shapes, "conv1_conv")[:1] == (3,):
        facts["stem"] = "cifar"
    top = tuple(shapes.get("predictions/kernel", ()))
    return facts | ({"classes": top[1]} if len(top) == 2 else {})


def channels(shapes):
    """Returns how many channels the pictures have, 3 where it doesn't show."""
    first = _kernel(shapes, "conv1_1_conv") or _kernel(shapes, "conv1_conv")
    return first[2] if first and first[2] <= _MOST_CHANNELS else 3


def kernel_numbers(facts):
    """Counts the numbers in the kernels of a network's blocks.

    Args:
        facts: What `describe` returns of a network.

    Returns:
        An integer, also of networks that no machine can hold.
    """
    deep = facts.get("stem_width", 0)
    total, channels = 18 * deep**2, 2 * deep or facts["planes"]
    for stage, depth in enumerate(facts["depths"]):
        planes = facts["planes"] << stage
        if facts["block"] == "basic":
            filters, first, rest = planes, 9 * planes, 9 * planes**2
        else:
            group = planes * facts["width_per_group"] // 64
            filters, first = 4 * planes, group * facts["groups"]
            rest = first * (9 * group + filters)
        if facts["squeeze_excite"]:
            rest += 2 * filters * max(8, filters // 16)
        if stage or channels != filters:
            total += channels * filters
        total += channels * first + (depth - 1) * filters * first + depth * rest
        channels = filters
    return total


def describe_pytorch(shapes):
    """Reads off PyTorch's names what others do not show.

    Args:
        shapes: Dictionary from a name in a state dict to a shape.

    Returns:
        Dictionary with `average_shortcut` and `stem`, as far as they show.
    """
    facts = {}
    if any(".downsample.2." in name for name in shapes):
        facts["average_shortcut"] = True
    elif any(".downsample.0." in name for name in shapes):
        facts["average_shortcut"] = False
    if "layer0.conv1.weight" in shapes:
        facts["stem"] = "legacy"
    elif tuple(shapes.get("conv1.weight", ()))[2:] == (7, 7):
        facts["stem"] = "imagenet"
    return facts


def describe_metadata(texts):
    """Reads off a file's metadata what its arrays do not show.

    Args:
        texts: Dictionary of texts, as `metadata` returns it, or any other.

    Returns:
        Dictionary with those of `stem`, `average_shortcut` and `anti_aliased`
        that it says.
    """
    words = texts.get(_PACKAGE, "")[:_MOST_CHARACTERS].split()
    return {
        field: value
        for field, values in UNSEEN.items()
        for value in values
        if f"{field}={value}" in words
    }


def metadata(model):
    """Says what the arrays of a model do not show, in one text.

    With several, a file would not always have the same bytes: safetensors
    writes them in any order.
    """
    facts = describe_model(model)
    words = [f"{f}={facts[f]}" for f in UNSEEN if facts.get(f) in UNSEEN[f]]
    return {_PACKAGE: " ".join(words)}


def describe_layers(layers):
    """Reads off the layers without weights what the arrays do not show.

    Args:
        layers: Dictionary from a layer's name to its class, in any case, and
            its padding, `None` where it has none or it is not known.

    Returns:
        Dictionary with those of `stem`, `average_shortcut` and `anti_aliased`
        that they show.
    """
    facts = {}
    if "stack0_block0_out" in layers:  # KerasHub's, where no average has a name
        kinds = {kind.lower().replace("_", "") for kind, _ in layers.values()}
        facts["average_shortcut"] = "averagepooling2d" in kinds
    if "stack2_block1_shortcut_conv" in layers:  # keras_cv_attention_models'
        down = "stack2_block1_shortcut_down"
        facts["average_shortcut"] = down in layers
    if "conv2_block1_out" not in layers:  # only those with weights, or others
        return facts
    if "conv3_block1_0_conv" in layers:
        facts["average_shortcut"] = "conv3_block1_0_pool" in layers
    kind, _ = layers.get("pool1_pool", ("", None))
    averages = kind.lower().startswith("average")
    facts["anti_aliased"] = averages or any(map(_AVERAGED.fullmatch, layers))
    _, padding = layers.get("pool1_pad", ("", None))
    if padding and "conv1_1_conv" not in layers:
        legacy = padding in (((0, 1), (0, 1)), [[0, 1], [0, 1]])  # JSON's
        facts["stem"] = "legacy" if legacy else "imagenet"
    return facts


def owners(model):
    """Lists the layers that have weights, wherever in the model they are.

    Weights that several have count for the innermost of them. As in a file of
    Keras, the random states of dropout and what LoRA has added are left out.

    Returns:
        List of (name, layer, list of its weights). Layers of one name, as the
        `query` of each attention, have the names of those around them before
        theirs (`attention_1/query`); the model's own name is "".
    """
    found = list(paths(model))
    innermost = {id(v): layer for layer, _ in found for v in layer.weights}
    own = {
        id(layer): [
            v
            for v in layer.weights
            if innermost[id(v)] is layer and not v.name.startswith("lora_")
        ]
        for layer, _ in found
    }
    short = short_names({path for layer, path in found if own[id(layer)]})
    return [
        ("/".join(short[path]), layer, own[id(layer)])
        for layer, path in found
        if own[id(layer)]
    ]


def variables(model):
    """Returns a model's weights by name, wherever in it their layers are.

    The names are `layer/variable`, as `checkpoints.read` returns them for a
    Keras file of the model, and `owners` names the layers; `v.path` would have
    name scopes in it. Those that are the model's own have no `layer/`.

    Raises:
        ValueError: If two weights have the same name.
    """
    named = {}
    for layer, _, weights in owners(model):
        for variable in weights:
            name = f"{layer}/{variable.name}".removeprefix("/")
            if name in named:
                raise ValueError(
                    "Each layer with weights must have a name of its own, or "
                    "be in a layer that has one. Received: "
                    f"model={model.name!r} with {name!r} twice. Pass one "
                    "network of it, or give each layer another name."
                )
            named[name] = variable
    return named


def adapted(model):
    """Yields the layers with LoRA, their names, and what it adds to."""
    for name, layer, _ in owners(model):
        if getattr(layer, "lora_enabled", False):
            known = ("kernel", "embeddings")
            kind = next(n for n in known if hasattr(layer, f"lora_{n}_b"))
            yield layer, name, kind


def describe_model(model):
    """Reads the fields of an `Architecture` off a model of this package."""
    facts = describe({n: tuple(v.shape) for n, v in variables(model).items()})
    layers = {
        layer.name: (type(layer).__name__, getattr(layer, "padding", None))
        for layer in sublayers(model)
    }
    return facts and facts | describe_layers(layers)


def fitting(facts):
    """Returns the names of the architectures with these fields."""
    facts = {field: facts[field] for field in facts if field != "classes"}

    def fits(row):
        planes = row.planes << (len(row.depths) - 1)
        width = _width_per_group(planes * row.width_per_group // 64, planes)
        shown = vars(row) | {"width_per_group": width}
        return all(shown[field] == value for field, value in facts.items())

    return [name for name, row in ARCHITECTURES.items() if facts and fits(row)]


def refuse(facts, names, path):
    """Refuses networks with much the same arrays that compute other things.

    Both stride in their blocks' first convolution. Sources: timm's
    `SEResNetBottleneck` in `legacy_senet.py`; `keras/src/applications/
    resnet.py`.

    Raises:
        ValueError: If it is Cadene's SE-ResNet of bottlenecks, or Keras's
            own ResNet.
    """
    kind = (facts.get("stem"), facts.get("block"), facts.get("groups"))
    if kind == ("legacy", "bottleneck", 1):
        what = "Cadene's SE-ResNet, as timm's legacy_seresnet50"
        advice = "Use weights of seresnet50, or of a legacy_seresnext."
    elif "conv1_conv/bias" in names:
        what = "Keras's own ResNet, which also has biases"
        advice = "Build it by `keras.applications`, as its ResNet50."
    else:
        return
    raise ValueError(
        "The weights must be of a network that this package builds. Received: "
        f"weights='{path}', which looks like {what}: its strides are "
        f"elsewhere. {advice}"
    )


def require_backed(facts, path):
    """Checks that a file can hold the network that its shapes speak of.

    Networks are built by these facts, and a few numbers can have the shapes
    of one that fills all memory.

    Raises:
        ValueError: If the network has more numbers than the file bytes.
    """
    numbers, size = kernel_numbers(facts), path.stat().st_size
    if numbers > size:
        raise ValueError(
            "A file of weights must hold all of its network. Received: "
            f"weights='{path}' of {size:,} bytes, with shapes of a network of "
            f"{float(numbers):.3g} numbers. Download it again, or choose "
            "another one."
        )


def check(facts, row):
    """Checks that a file is of the network that a `Checkpoint` says it is.

    Raises:
        ValueError: If it is of another one, or has other classes.
    """
    names = fitting(facts)
    known = row.architecture in ARCHITECTURES
    if (
        not facts
        or facts.get("classes", row.classes) != row.classes
        or (known and row.architecture not in names)
    ):
        raise ValueError(
            f"The weights of hf://{row.hub} must be of {row.architecture} with "
            f"{row.classes} classes, as its config.json says. Received: "
            f"weights of {' or '.join(names) or 'another network'} with "
            f"{facts.get('classes', 'no')} classes. Choose another repository, "
            "or pass the file by its path."
        )


def _width_per_group(channels, planes):
    """Returns the least `width_per_group` of groups of so many channels."""
    return -(-64 * channels // max(planes, 1))


def _kernel(shapes, layer):
    """Returns the shape of a layer's kernel, or () where it is none."""
    shape = tuple(shapes.get(f"{layer}/kernel", ()))
    return shape if len(shape) == 4 and all(shape) else ()
