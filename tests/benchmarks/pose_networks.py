"""ONNX files with the arithmetic of the published pose models and the answers of the project's small ones.

YOLOX-L and RTMPose-l (whole body, 384x288: what DWPose-l is) are built layer by layer with random weights, batch norm
folded into convolutions as exporters do; their outputs, times 1e-30, are added to those of `mini/dwpose`, run on the
same input. So a runner's time is the real models' and its boxes and joints mean something. The detector has a fixed
batch of 1 and the pose model a free one, as the published files do. Needs the `onnx` package.

Checked against what is published (`PUBLISHED`): weights of YOLOX-L 54.2 M and 155.6 GFLOPs at 640 (YOLOX's README);
RTMPose-l for 17 joints at 256x192 27.66 M and 4.16 G multiply-adds (RTMPose's README); DWPose-l at 384x288 10.1 G
(its paper), its file 134 MB, so 33.6 M numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MINI = Path(__file__).parents[2] / "dynamictrl/mini/weights/dwpose"
OPSET = 17
FAINT = 1e-30
"""What the random networks' answers are multiplied by: more than nothing, so that no optimiser drops them."""
PUBLISHED = {
    "yolox-l, 640x640": (54.2e6, 155.6e9 / 2),
    "rtmpose-l, 17 joints, 256x192": (27.66e6, 4.16e9),
    "dwpose-l, 133 joints, 384x288": (33.6e6, 10.1e9),
}
"""Weights and multiply-adds."""


class Map(NamedTuple):
    """A tensor in the graph: [N, channels, height, width]."""

    name: str
    channels: int
    height: int
    width: int


@dataclass
class Network:
    """A graph under construction, which counts what it costs."""

    width: float = 1.0
    """Channels, over the published ones'; below 1 for a quick try."""
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    num_weights: int = 0
    multiply_adds: int = 0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def wide(self, channels: int) -> int:
        return max(8, int(channels * self.width) // 8 * 8) if self.width != 1 else channels

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"{kind}_{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, values: Any, kind: type = np.int64) -> str:
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def weight(self, *shape: int, fan_in: int) -> str:
        # As He et al. 2015: activations stay finite through the depth.
        values = self.rng.standard_normal(shape, np.float32) * math.sqrt(2 / fan_in)
        self.num_weights += values.size
        return self.constant(values, np.float32)

    def conv(
        self, x: Map, channels: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, act: bool = True
    ) -> Map:
        """Convolution with bias, and SiLU."""
        fan_in = x.channels // groups * kernel * kernel
        height, width = -(-x.height // stride), -(-x.width // stride)
        self.multiply_adds += channels * fan_in * height * width
        self.num_weights += channels
        name = self.op(
            "Conv", x.name, self.weight(channels, x.channels // groups, kernel, kernel, fan_in=fan_in),
            self.constant(np.zeros(channels), np.float32), kernel_shape=[kernel] * 2, strides=[stride] * 2,
            pads=[kernel // 2] * 4, group=groups,
        )  # fmt: skip
        return Map(self.silu(name) if act else name, channels, height, width)

    def silu(self, name: str) -> str:
        return self.op("Mul", name, self.op("Sigmoid", name))

    def linear(self, name: str, rows: int, fan_in: int, out: int) -> str:
        self.multiply_adds += rows * fan_in * out
        return self.op("MatMul", name, self.weight(fan_in, out, fan_in=fan_in))

    def product(self, one: str, other: str, rows: int, inner: int, columns: int) -> str:
        self.multiply_adds += rows * inner * columns
        return self.op("MatMul", one, other)

    def add(self, one: Map, other: Map) -> Map:
        return one._replace(name=self.op("Add", one.name, other.name))

    def join(self, *maps: Map) -> Map:
        name = self.op("Concat", *(m.name for m in maps), axis=1)
        return maps[0]._replace(name=name, channels=sum(m.channels for m in maps))

    def doubled(self, x: Map) -> Map:
        name = self.op(
            "Resize", x.name, "", self.constant([1, 1, 2, 2], np.float32), mode="nearest",
            coordinate_transformation_mode="asymmetric", nearest_mode="floor",
        )  # fmt: skip
        return Map(name, x.channels, 2 * x.height, 2 * x.width)

    def pyramid_pool(self, x: Map, channels: int) -> Map:
        """Spatial pyramid pooling over 5, 9 and 13 pixels."""
        x = self.conv(x, x.channels // 2)
        pools = [self.op("MaxPool", x.name, kernel_shape=[k, k], pads=[k // 2] * 4) for k in (5, 9, 13)]
        return self.conv(self.join(x, *(x._replace(name=p) for p in pools)), channels)


# YOLOX-L: Ge et al. 2021, depth 1 and width 1.


def yolox_l(net: Network) -> str:
    """`images` [1, 3, 640, 640] to the name of [1, 8400, 85]."""
    wide = net.wide
    x = net.conv(_focus(net, Map("images", 3, 640, 640)), wide(64), 3)
    levels = []
    for channels, blocks, last in ((128, 3, False), (256, 9, False), (512, 9, False), (1024, 3, True)):
        x = net.conv(x, wide(channels), 3, 2)
        if last:
            x = net.pyramid_pool(x, wide(channels))
        x = _csp(net, x, wide(channels), blocks, shortcut=not last)
        levels.append(x)
    _, small, middle, large = levels
    down_0 = net.conv(large, wide(512))
    middle_out = _csp(net, net.join(net.doubled(down_0), middle), wide(512), 3)
    down_1 = net.conv(middle_out, wide(256))
    out_8 = _csp(net, net.join(net.doubled(down_1), small), wide(256), 3)
    out_16 = _csp(net, net.join(net.conv(out_8, wide(256), 3, 2), down_1), wide(512), 3)
    out_32 = _csp(net, net.join(net.conv(out_16, wide(512), 3, 2), down_0), wide(1024), 3)
    heads = [_yolox_head(net, level) for level in (out_8, out_16, out_32)]
    return net.op("Transpose", net.op("Concat", *heads, axis=2), perm=[0, 2, 1])


def _focus(net: Network, x: Map) -> Map:
    ends, axes, steps = net.constant([2**31 - 1] * 2), net.constant([2, 3]), net.constant([2, 2])
    corners = ((0, 0), (1, 0), (0, 1), (1, 1))
    parts = [net.op("Slice", x.name, net.constant(list(corner)), ends, axes, steps) for corner in corners]
    return net.join(*(Map(part, 3, x.height // 2, x.width // 2) for part in parts))


def _csp(net: Network, x: Map, channels: int, blocks: int, *, shortcut: bool = False) -> Map:
    hidden = channels // 2
    main, side = net.conv(x, hidden), net.conv(x, hidden)
    for _ in range(blocks):
        inner = net.conv(net.conv(main, hidden), hidden, 3)
        main = net.add(inner, main) if shortcut else inner
    return net.conv(net.join(main, side), channels)


def _yolox_head(net: Network, x: Map) -> str:
    stem = net.conv(x, net.wide(256))
    kind = net.conv(net.conv(stem, stem.channels, 3), stem.channels, 3)
    place = net.conv(net.conv(stem, stem.channels, 3), stem.channels, 3)
    classes = net.op("Sigmoid", net.conv(kind, 80, act=False).name)
    thing = net.op("Sigmoid", net.conv(place, 1, act=False).name)
    joined = net.op("Concat", net.conv(place, 4, act=False).name, thing, classes, axis=1)
    # A batch of 1 written down, as exporters do.
    return net.op("Reshape", joined, net.constant([1, 85, x.height * x.width]))


# RTMPose-l: Jiang et al. 2023; CSPNeXt-l and a head of coordinate classification. DWPose-l is this with 133 joints.


def rtmpose_l(net: Network, joints: int, height: int, width: int) -> tuple[str, str]:
    """`input` [N, 3, height, width] to the names of SimCC [N, joints, 2 width] and [N, joints, 2 height]."""
    wide = net.wide
    x = net.conv(Map("input", 3, height, width), wide(32), 3, 2)
    x = net.conv(net.conv(x, wide(32), 3), wide(64), 3)
    for channels, blocks, last in ((128, 3, False), (256, 6, False), (512, 6, False), (1024, 3, True)):
        x = net.conv(x, wide(channels), 3, 2)
        if last:
            x = net.pyramid_pool(x, wide(channels))
        x = _cspnext(net, x, wide(channels), blocks, shortcut=not last)
    x = net.conv(x, joints, 7, act=False)
    cells = x.height * x.width
    token = net.op("Reshape", x.name, net.constant([0, joints, cells]))
    token = net.linear(_scale_norm(net, token, cells), joints, cells, 256)
    token = _gated_attention(net, token, joints)
    return net.linear(token, joints, 256, 2 * width), net.linear(token, joints, 256, 2 * height)


def _cspnext(net: Network, x: Map, channels: int, blocks: int, *, shortcut: bool) -> Map:
    hidden = channels // 2
    main, side = net.conv(x, hidden), net.conv(x, hidden)
    for _ in range(blocks):
        inner = net.conv(main, hidden, 3)
        inner = net.conv(net.conv(inner, hidden, 5, groups=hidden), hidden)
        main = net.add(inner, main) if shortcut else inner
    both = net.join(main, side)
    pooled = Map(net.op("GlobalAveragePool", both.name), both.channels, 1, 1)
    gate = net.op("HardSigmoid", net.conv(pooled, both.channels, act=False).name, alpha=1 / 6, beta=0.5)
    return net.conv(both._replace(name=net.op("Mul", both.name, gate)), channels)


def _scale_norm(net: Network, token: str, size: int) -> str:
    norm = net.op("Mul", net.op("ReduceL2", token, axes=[2], keepdims=1), net.constant(size**-0.5, np.float32))
    scaled = net.op("Div", token, net.op("Max", norm, net.constant(1e-5, np.float32)))
    return net.op("Mul", scaled, net.constant([1.0], np.float32))


def _gated_attention(net: Network, token: str, joints: int) -> str:
    """Of tokens 256 wide: 512 wide inside, queries and keys 128 wide."""
    inside = net.silu(net.linear(_scale_norm(net, token, 256), joints, 256, 2 * 512 + 128))
    gate, value, shared = net.op("Split", inside, net.constant([512, 512, 128]), outputs=3, axis=2)
    shared = net.op("Unsqueeze", shared, net.constant([2]))
    shared = net.op("Add", net.op("Mul", shared, net.weight(1, 1, 2, 128, fan_in=3)), net.weight(2, 128, fan_in=300))
    query, key = net.op("Split", shared, net.constant([1, 1]), outputs=2, axis=2)
    query, key = (net.op("Squeeze", one, net.constant([2])) for one in (query, key))
    likeness = net.product(query, net.op("Transpose", key, perm=[0, 2, 1]), joints, 128, joints)
    kernel = net.op("Relu", net.op("Div", likeness, net.constant(math.sqrt(128), np.float32)))
    mixed = net.product(net.op("Mul", kernel, kernel), value, joints, joints, 512)
    out = net.linear(net.op("Mul", gate, mixed), joints, 512, 256)
    return net.op("Add", out, net.op("Mul", token, net.weight(256, fan_in=3)))


# Files.


def write_detector(folder: Path, width: float = 1.0) -> Network:
    """`yolox_l.onnx`: images [1, 3, 640, 640] to output [1, 8400, 85]."""
    net = Network(width)
    small = _mini("yolox_l.onnx", "images")
    _free(small)
    answers = {"output": (yolox_l(net), [1, 8400, 85])}
    _write(folder / "yolox_l.onnx", net, small, ("images", [1, 3, 640, 640]), answers)
    return net


def write_pose_model(folder: Path, width: float = 1.0) -> Network:
    """`dw-ll_ucoco_384.onnx`: input [N, 3, 384, 288] to simcc_x [N, 133, 576] and simcc_y [N, 133, 768]."""
    net = Network(width)
    x, y = rtmpose_l(net, 133, 384, 288)
    answers = {"simcc_x": (x, ["batch", 133, 576]), "simcc_y": (y, ["batch", 133, 768])}
    small = _mini("dw-ll_ucoco_384.onnx", "input")
    _write(folder / "dw-ll_ucoco_384.onnx", net, small, ("input", ["batch", 3, 384, 288]), answers)
    return net


def _mini(name: str, fed: str) -> Any:
    """The small model's graph under names of its own, but for its input."""
    graph = onnx.load(str(MINI / name)).graph
    for node in graph.node:
        node.input[:] = [fed if i == fed else f"mini/{i}" if i else "" for i in node.input]
        node.output[:] = [f"mini/{o}" for o in node.output]
        node.name = ""
    for weight in graph.initializer:
        weight.name = f"mini/{weight.name}"
    return graph


def _free(graph: Any) -> None:
    """The small detector says "a person" by a constant of batch 1; here by arithmetic that gives the same 1."""
    join = next(n for n in graph.node if n.op_type == "Concat" and "mini//Sigmoid_output_0" in n.input)
    sure = join.input[1]
    zero = numpy_helper.from_array(np.zeros((), np.float32), "mini/zero")
    one = numpy_helper.from_array(np.ones((), np.float32), "mini/one")
    graph.initializer.extend([zero, one])
    constant = next(n for n in graph.node if join.input[2] in n.output)
    graph.node.remove(constant)
    at = list(graph.node).index(join)
    join.input[2] = "mini/sure"
    graph.node.insert(at, helper.make_node("Add", ["mini/nothing", "mini/one"], ["mini/sure"]))
    graph.node.insert(at, helper.make_node("Mul", [sure, "mini/zero"], ["mini/nothing"]))


def _write(path: Path, net: Network, small: Any, fed: tuple[str, list], answers: dict[str, tuple[str, list]]) -> None:
    nodes = [*net.nodes, *small.node]
    faint = numpy_helper.from_array(np.asarray(FAINT, np.float32), "faint")
    outputs = []
    for name, (large, shape) in answers.items():
        nodes.append(helper.make_node("Mul", [large, "faint"], [f"{name}/faint"]))
        nodes.append(helper.make_node("Add", [f"mini/{name}", f"{name}/faint"], [name]))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    inputs = [helper.make_tensor_value_info(*_float(fed))]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, [*net.weights, *small.initializer, faint])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.save(model, str(path))


def _float(named: tuple[str, list]) -> tuple[str, int, list]:
    return named[0], TensorProto.FLOAT, named[1]


def counts() -> dict[str, tuple[int, int]]:
    """Weights and multiply-adds of what `PUBLISHED` lists."""
    detector, body, whole = Network(), Network(), Network()
    yolox_l(detector)
    rtmpose_l(body, 17, 256, 192)
    rtmpose_l(whole, 133, 384, 288)
    return {n: (net.num_weights, net.multiply_adds) for n, net in zip(PUBLISHED, (detector, body, whole), strict=True)}
