"""Quantizes linear layers of an ONNX file to 8 bits. Their inputs are scaled anew in every plan.

Weights have one scale for each output. Inputs have one scale, from their largest and smallest value, so that no
calibration data are needed. Convolutions over images, embeddings and attention stay in fp32.

Weights are stored as unsigned numbers with the zero at 128. With signed ones, sums of two products overflow in ONNX
Runtime on processors without VNNI, and the result depends on the processor.

References:
    Jacob et al. (2018), Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
    arXiv:1712.05877.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

ZERO = 128  # the number that stands for a weight of zero
ZERO_NAME = "int8.zero"
MIN_WEIGHTS = 4096  # smallest number of weights that are rounded: smaller layers save nothing


def quantize_file(path: Path | str) -> int:
    """Rounds the linear layers of an ONNX file to 8 bits, in place and in the bodies of loops too.

    A product x W + b becomes ``scale(x) * scale(W) * (int(x) int(W)) + b``. Returns the number of products.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    weights = {x.name: x for x in model.graph.initializer}
    _split_weights(model.graph, weights)
    model.graph.initializer.append(numpy_helper.from_array(np.array(ZERO, np.uint8), ZERO_NAME))
    rounded: dict[tuple[str, bool], tuple[str, str]] = {}
    count = 0
    for graph in reversed(list(_graphs(model.graph))):  # a graph copies the nodes that it gets, so bodies come first
        nodes = []
        for node in graph.node:
            weight, turned = _weight_of(node, weights)
            if weight is None or weight.ByteSize() < MIN_WEIGHTS * 4 or len(weight.dims) != 2:
                nodes.append(node)
                continue
            if (key := (weight.name, turned)) not in rounded:
                rounded[key] = _round_weight(model.graph, weight, turned)
            nodes += _integer_product(node, *rounded[key], f"int8_{count}")
            count += 1
        del graph.node[:]
        graph.node.extend(nodes)
    used = {name for graph in _graphs(model.graph) for node in graph.node for name in node.input}
    used |= {x.name for graph in _graphs(model.graph) for x in graph.output}
    kept = [x for x in model.graph.initializer if x.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.value_info[:]
    onnx.save(model, path)
    return count


def _graphs(graph) -> Iterator:
    """Yields the graph and the bodies of its loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _split_weights(graph, weights: dict) -> None:
    """Replaces slices of a weight, such as the columns that read the time, by separate weights."""
    from onnx import numpy_helper

    nodes = []
    for node in graph.node:
        if node.op_type != "Slice" or len(node.input) != 5 or not all(name in weights for name in node.input):
            nodes.append(node)
            continue
        exact, *options = (numpy_helper.to_array(weights[name]) for name in node.input)
        part = [slice(None)] * exact.ndim
        for start, end, axis, step in zip(*(option.tolist() for option in options), strict=True):
            part[axis] = slice(start, end, step)
        name = node.output[0]
        weights[name] = numpy_helper.from_array(np.ascontiguousarray(exact[tuple(part)]), name)
        graph.initializer.append(weights[name])
    del graph.node[:]
    graph.node.extend(nodes)


def _weight_of(node, weights: dict):
    """Returns the weight of a product with a constant, and whether it is transposed. None for other nodes."""
    if node.op_type not in ("Gemm", "MatMul") or node.input[1] not in weights:
        return None, False
    options = {a.name: a for a in node.attribute}
    plain = all(options[k].f == 1 for k in ("alpha", "beta") if k in options)
    if not plain or ("transA" in options and options["transA"].i):
        return None, False
    return weights[node.input[1]], "transB" in options and options["transB"].i == 1


def _round_weight(graph, weight, turned: bool) -> tuple[str, str]:
    """Stores a weight in 8 bits, (inputs, outputs), and its scales, (outputs,). Returns their names."""
    from onnx import numpy_helper

    exact = numpy_helper.to_array(weight)
    exact = exact.T if turned else exact
    scale = np.maximum(np.abs(exact).max(0) / 127, np.finfo(np.float32).tiny).astype(np.float32)
    whole = (np.clip(np.rint(exact / scale), -127, 127) + ZERO).astype(np.uint8)
    names = (f"{weight.name}.int8{'.turned' if turned else ''}", f"{weight.name}.scale{'.turned' if turned else ''}")
    graph.initializer.extend(
        [numpy_helper.from_array(np.ascontiguousarray(x), name) for x, name in zip((whole, scale), names, strict=True)]
    )
    return names


def _integer_product(node, weight: str, scale: str, name: str) -> list:
    """Returns the nodes of an integer product, which replace a product."""
    from onnx import TensorProto, helper

    def new_node(kind: str, inputs: list[str], outputs: list[str], **options):
        return helper.make_node(kind, inputs, outputs, name=f"{name}.{outputs[0]}", **options)

    x, bias = node.input[0], node.input[2] if len(node.input) > 2 else ""
    whole, size, zero, product, number, both, scaled = (f"{name}.{k}" for k in "qszpnbm")
    out = node.output[0]
    return [
        new_node("DynamicQuantizeLinear", [x], [whole, size, zero]),
        new_node("MatMulInteger", [whole, weight, zero, ZERO_NAME], [product]),
        new_node("Cast", [product], [number], to=TensorProto.FLOAT),
        new_node("Mul", [size, scale], [both]),
        new_node("Mul", [number, both], [scaled if bias else out]),
        *([new_node("Add", [scaled, bias], [out])] if bias else []),
    ]
