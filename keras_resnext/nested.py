"""Looks into models: which stages are inside, and their feature maps.

A stage is the prefix of its layers' names: `conv1` is the stem, `conv2` to
`conv5` are ResNeXt-50's four stages of blocks. The network may be a layer of
a model, inside a wrapper as `TimeDistributed`, or called several times.
"""

import re

import keras

from keras_resnext.copies import graph, has_graph

_STAGE = re.compile(r"(conv\d+)_")
_END = re.compile(r"(conv\d+)_(relu|block\d+_out)")
# Keras's own, whose `strides` are a step for each axis.
_STRIDED = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
    keras.layers.AveragePooling2D,
    keras.layers.MaxPooling2D,
)
# Layers and operations of Keras behind which the axes may be others.
_REORDERING = {"Moveaxis", "Permute", "Reshape", "Swapaxes", "Transpose"}


def _children(layer):
    # Public only for models, and there only what `call` of Keras's own needs:
    # this one also knows what a person's layers hold in lists and dicts.
    return layer._flatten_layers(include_self=False, recursive=False)


def sublayers(layer):
    """Returns each layer inside of a layer once, those around others first."""
    seen = {id(layer)}

    def visit(outer):  # from the last to the first, those inside before
        for inner in _children(outer)[::-1]:
            if id(inner) not in seen:
                seen.add(id(inner))
                yield from visit(inner)
                yield inner

    return reversed(list(visit(layer)))


def paths(model):
    """Yields a model and each layer inside, and the names on the way to it.

    Yields:
        The layer, and a tuple of the names of the layers around it and its
        own; it is empty for the model, and those inside come last.
    """
    found = {id(model): ()}
    for outer in (model, *sublayers(model)):
        yield outer, found[id(outer)]
        for inner in _children(outer):
            found.setdefault(id(inner), (*found[id(outer)], inner.name))


def stages(model):
    """Returns the layers of each stage, wherever they are in the model.

    Returns:
        Dictionary from a stage to its layers, `conv1` first. A layer belongs
        to the innermost stage that it or a layer around it is named after.
    """
    found = {}

    def collect(layer, stage):
        match = _STAGE.match(layer.name)
        stage = match[1] if match else stage
        inside = {stage}.union(*(collect(v, stage) for v in _children(layer)))
        if inside == {stage} and stage is not None:
            found.setdefault(stage, {})[id(layer)] = layer
        return inside

    for layer in _children(model):
        collect(layer, None)
    ordered = sorted(found, key=lambda stage: int(stage[4:]))
    return {stage: list(found[stage].values()) for stage in ordered}


def source(x):
    """Returns the call of a layer, Keras's node, that made a Keras tensor."""
    return x._keras_history.operation._inbound_nodes[
        x._keras_history.node_index
    ]


def level(x):
    """Returns how often convolutions and pooling halve images up to maps."""
    stride = 1
    while (node := source(x)).input_tensors:
        layer = node.operation
        if has_graph(layer):
            output = layer.outputs[x._keras_history.tensor_index]
            stride *= 2 ** level(output)
        elif isinstance(layer, _STRIDED):
            stride *= layer.strides[0]
        x = node.input_tensors[0]
    return stride.bit_length() - 1


def data_format(x):
    """Returns the order of the axes of feature maps, or `None` if unknown.

    It is what the last layer before them says that knows one.
    """
    while (node := source(x)).input_tensors:
        layer = node.operation
        while isinstance(layer, keras.layers.TimeDistributed):
            layer = layer.layer
        if has_graph(layer):
            found = data_format(layer.outputs[x._keras_history.tensor_index])
        else:
            found = getattr(layer, "data_format", None)
        if found or type(layer).__name__ in _REORDERING:
            return found
        x = node.input_tensors[0]
    return None


def end(x):
    """Returns the layer that a Keras tensor comes from, the innermost one."""
    layer = source(x).operation
    while isinstance(layer, keras.layers.TimeDistributed):
        layer = layer.layer
    if has_graph(layer):
        return end(layer.outputs[x._keras_history.tensor_index])
    return layer


def _nodes(functional):
    """Returns the calls of a functional model's layers, in their order."""
    depths = functional._nodes_by_depth
    return [node for depth in sorted(depths)[::-1] for node in depths[depth]]


@keras.saving.register_keras_serializable("keras_resnext")
class EachStep(keras.layers.TimeDistributed):
    """Applies a layer to each step of sequences, all of them at once.

    As `keras.layers.TimeDistributed`, but the layer's outputs may have any
    structure.
    """

    def call(self, inputs, training=None, mask=None):
        """Takes `(batch, steps, ...)`, and returns such tensors."""
        ops = keras.ops
        sizes = ops.shape(inputs)
        outputs = self.layer(
            ops.reshape(inputs, (-1, *sizes[2:])), training=training
        )
        return self._split(
            lambda x: ops.reshape(x, (-1, sizes[1], *ops.shape(x)[1:])), outputs
        )

    def compute_output_spec(self, inputs, training=None, mask=None):
        """Returns Keras tensors of the outputs' shapes and types."""
        batch, steps, *shape = inputs.shape
        outputs = self.layer.compute_output_spec(
            keras.KerasTensor((None, *shape), inputs.dtype)
        )
        return self._split(
            lambda x: keras.KerasTensor((batch, steps, *x.shape[1:]), x.dtype),
            outputs,
        )

    def _split(self, split, outputs):
        return keras.tree.map_structure(split, outputs)


class _TappedSteps(EachStep):
    """Leaves the maps in one batch: only of those are the outputs made."""

    def _split(self, split, outputs):
        maps, outputs = outputs
        return maps, super()._split(split, outputs)


def rewrap(layer, change, each=EachStep):
    """Changes a model that is a layer, also below `TimeDistributed`.

    Args:
        layer: Any layer.
        change: What returns another model, or `None` for none.
        each: What takes the place of `TimeDistributed`.

    Returns:
        The other layer, or `None`.
    """
    if isinstance(layer, keras.layers.TimeDistributed):
        inner = rewrap(layer.layer, change, each)
        return inner and each(inner, name=layer.name)
    return change(layer) if has_graph(layer) else None


def tap(model, chosen=None, outputs=False):
    """Opens a model at the last feature maps of its stages.

    The layers are shared with `model`.

    Args:
        model: Functional or sequential model. Stages may be in models and
            `TimeDistributed` layers inside.
        chosen: Names of stages; all by default.
        outputs: Whether to return the model's outputs, too, computed from
            these very maps. Those below `TimeDistributed` are in one batch
            then, step after step.

    Returns:
        A functional `keras.Model` from the inputs of `model` to a dictionary:
        from a stage to a list of its maps, one for each call of the network;
        if asked for, in a tuple before the outputs. `None` if the graph has
        no such stage.
    """
    network = graph(model)
    each = _TappedSteps if outputs else EachStep
    opened = {
        id(layer): rewrap(
            layer, lambda inner: tap(inner, chosen, outputs), each
        )
        for layer in network.layers
    }
    direct, nested, new = {}, {}, {}  # `new`: what replaces a tensor

    def renew(x):
        return new.get(id(x), x)

    for node in _nodes(network):
        layer, results = node.operation, node.outputs
        args, kwargs = node.arguments.convert(renew)
        if opened.get(id(layer)) is not None:
            maps = opened[id(layer)](*args, **kwargs)
            if outputs:
                maps, results = maps
            for stage, found in maps.items():
                nested.setdefault(stage, []).extend(found)
        elif any(id(x) in new for x in node.input_tensors):
            results = layer(*args, **kwargs)
        results = keras.tree.flatten(results)
        for old, result in zip(node.outputs, results, strict=True):
            if result is not old:
                new[id(old)] = result
        match = _END.fullmatch(layer.name)
        if match and (chosen is None or match[1] in chosen):
            # Only of the last block, which comes last.
            if direct.get(match[1], [None])[0] is not layer:
                direct[match[1]] = [layer]
            direct[match[1]] += results
    maps = {stage: found[1:] for stage, found in direct.items()}
    for stage, found in nested.items():
        maps.setdefault(stage, []).extend(found)
    if not maps:
        return None
    if outputs:
        maps = maps, keras.tree.map_structure(renew, network.output)
    return keras.Model(network.input, maps, name=model.name)
