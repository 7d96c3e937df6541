"""Small changes to ONNX files as bytes, without the `onnx` package: a free batch, bytes in, short answers out.

A published model says what goes in and comes out for one picture at a time. Run over many pictures on a GPU, most time
would go to sending floats up and whole heat maps down. These functions put the first and the last step into the graph.

An ONNX file is a protobuf message: fields of (number, wire type, payload). Only what is changed is taken apart; weights
are passed on untouched. Numbers are those of onnx/onnx.proto. Raises CheckpointError where a file is not as is needed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from dynamictrl.errors import CheckpointError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FLOAT, _UINT8, _INT64 = 1, 2, 7

# Fields of ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto, ValueInfoProto.
_MODEL_GRAPH, _MODEL_OPSET = 7, 8
_GRAPH_NODE, _GRAPH_WEIGHT, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_NOTE = 1, 5, 11, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP, _NODE_ATTRIBUTE = 1, 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR, _ATTRIBUTE_INTS, _ATTRIBUTE_TYPE = 1, 3, 5, 8, 20
_TYPE_INT, _TYPE_TENSOR, _TYPE_INTS = 2, 4, 7
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_INT64, _TENSOR_NAME, _TENSOR_RAW = 1, 2, 7, 8, 9

Field = tuple[int, int, int | bytes | memoryview]
"""Number, wire type, payload."""


def read_fields(data: bytes | memoryview) -> Iterator[Field]:
    """The fields of one message, in order; payloads of length are views, not copies."""
    view, at = memoryview(data), 0
    while at < len(view):
        tag, at = _read_varint(view, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _read_varint(view, at)
            yield number, wire, value
        elif wire in (_BYTES, _FIXED32, _FIXED64):
            size = {_FIXED32: 4, _FIXED64: 8}.get(wire)
            if size is None:
                size, at = _read_varint(view, at)
            if at + size > len(view):
                raise CheckpointError("the ONNX file is cut off; fetch it again")
            yield number, wire, view[at : at + size]
            at += size
        else:
            raise CheckpointError(f"the ONNX file has a field of wire type {wire}; is it an ONNX file?")


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while at < len(view):
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise CheckpointError("the ONNX file is cut off; fetch it again")


def write_fields(fields: Iterable[Field]) -> bytes:
    """The inverse of `read_fields`."""
    parts: list[bytes | memoryview] = []
    for number, wire, value in fields:
        parts.append(_varint(number << 3 | wire))
        if isinstance(value, int):
            parts.append(_varint(value))
        else:
            if wire == _BYTES:
                parts.append(_varint(len(value)))
            parts.append(value)
    return b"".join(parts)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # Negative numbers are written in two's complement.
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _text(number: int, value: str) -> Field:
    return number, _BYTES, value.encode()


def _message(number: int, *fields: Field) -> Field:
    return number, _BYTES, write_fields(fields)


def _first(data: bytes | memoryview, number: int) -> bytes:
    """The first payload of a number; empty where there is none."""
    return next((bytes(v) for n, _, v in read_fields(data) if n == number and not isinstance(v, int)), b"")


def _texts(data: bytes | memoryview, number: int) -> list[str]:
    return [bytes(v).decode() for n, _, v in read_fields(data) if n == number and not isinstance(v, int)]


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


@dataclass
class OnnxGraph:
    """One model, taken apart as far as its graph's fields; `to_bytes` puts it together again."""

    outside: list[Field]
    """The model's fields but the graph."""
    fields: list[Field]
    """The graph's."""
    before: list[Field] = field(default_factory=list)
    after: list[Field] = field(default_factory=list)

    @classmethod
    def parse(cls, model: bytes) -> OnnxGraph:
        """Raises CheckpointError where `model` is no ONNX file of opset 11 or later."""
        top = list(read_fields(model))
        graphs = [value for number, _, value in top if number == _MODEL_GRAPH and not isinstance(value, int)]
        opset = max((_opset(v) for n, _, v in top if n == _MODEL_OPSET and not isinstance(v, int)), default=0)
        if len(graphs) != 1 or opset < 11:
            raise CheckpointError(
                f"the ONNX file has {len(graphs)} graphs of opset {opset}; one of 11 or later is needed"
            )
        return cls([f for f in top if f[0] != _MODEL_GRAPH], list(read_fields(graphs[0])))

    def to_bytes(self) -> bytes:
        graph = write_fields([*self.before, *self.fields, *self.after])
        return write_fields([*self.outside, (_MODEL_GRAPH, _BYTES, graph)])

    # What goes in and comes out.

    def inputs(self) -> list[str]:
        """Names of what is fed; old files list their weights among the inputs, they are left out."""
        weights = {_first(v, _TENSOR_NAME) for v in self._all(_GRAPH_WEIGHT)}
        return [n.decode() for v in self._all(_GRAPH_INPUT) if (n := _first(v, 1)) not in weights]

    def outputs(self) -> list[str]:
        return [_first(v, 1).decode() for v in self._all(_GRAPH_OUTPUT)]

    def batch(self) -> int | None:
        """The first dimension of what is fed, None where it is free."""
        fed = self.inputs()
        (value,) = (v for v in self._all(_GRAPH_INPUT) if _first(v, 1).decode() == fed[0])
        first = _first(_first(_first(_first(value, 2), 1), 2), 1)
        return next((v for n, _, v in read_fields(first) if n == 1 and isinstance(v, int)), None)

    def _all(self, number: int) -> list[bytes | memoryview]:
        return [v for n, _, v in self.fields if n == number and not isinstance(v, int)]

    # Changes.

    def free_batch(self) -> None:
        """Lets the first dimension of what goes in and comes out be any; reshapes then keep the batch they are given.

        A file exported for one picture may hold the 1 elsewhere too: run the result on two pictures to be sure.
        """
        fed = set(self.inputs())
        shapes = self._shapes_of_reshapes()
        changed: list[Field] = []
        for number, wire, value in self.fields:
            if not isinstance(value, int):
                if number == _GRAPH_OUTPUT or (number == _GRAPH_INPUT and _first(value, 1).decode() in fed):
                    value = _free_first_dimension(value)
                elif number == _GRAPH_WEIGHT and _first(value, _TENSOR_NAME).decode() in shapes:
                    value = _batch_kept(value)
                elif number == _GRAPH_NODE and shapes & set(_texts(value, _NODE_OUTPUT)):
                    value = _constant_kept(value)
            # Notes on inner shapes would contradict; they are optional.
            if number != _GRAPH_NOTE:
                changed.append((number, wire, value))
        self.fields = changed

    def _shapes_of_reshapes(self) -> set[str]:
        nodes = [v for v in self._all(_GRAPH_NODE) if _first(v, _NODE_OP) == b"Reshape"]
        return {_texts(v, _NODE_INPUT)[1] for v in nodes}

    def feed_bytes(self, height: int, width: int, mean: Sequence[float] = (), std: Sequence[float] = ()) -> None:
        """The model now takes `pixels`, uint8 [N, height, width, 3]; they are made floats, and normed if so asked."""
        (name,) = self.inputs()
        self.fields = [f for f in self.fields if not self._is_input(f, name)]
        steps = [node("Cast", ["pixels"], ["pixels/float"], _int_attribute("to", _FLOAT))]
        last = "pixels/float"
        for op, values in (("Sub", mean), ("Div", std)):
            if len(values):
                steps.append(_floats(f"pixels/{op}/by", values))
                steps.append(node(op, [last, f"pixels/{op}/by"], [last := f"pixels/{op}"]))
        steps.append(node("Transpose", [last], [name], _ints_attribute("perm", (0, 3, 1, 2))))
        self.before += [*steps, value_info(_GRAPH_INPUT, "pixels", _UINT8, ("batch", height, width, 3))]

    def _is_input(self, item: Field, name: str) -> bool:
        number, _, value = item
        return number == _GRAPH_INPUT and not isinstance(value, int) and _first(value, 1).decode() == name

    def keep_channels(self, count: int) -> None:
        """Of the one output only the first `count` numbers of the last axis come out, as `kept`."""
        ((name, shape),) = self._taken_outputs().items()
        ends = [("kept/from", (0,)), ("kept/to", (count,)), ("kept/axis", (-1,))]
        constants = [whole_numbers(constant, values) for constant, values in ends]
        cut = node("Slice", [name, *(constant for constant, _ in ends)], ["kept"])
        self.after += [*constants, cut, value_info(_GRAPH_OUTPUT, "kept", _FLOAT, (*shape, count))]

    def keep_peaks(self) -> None:
        """Of each output the largest number of the last axis and its place come out: NAME/peak, NAME/place [..., 1].

        The first of equal ones, as numpy's argmax; TopK, because ArgMax has no CUDA kernel of these opsets.
        """
        self.after.append(whole_numbers("peaks/one", (1,)))
        for name, shape in self._taken_outputs().items():
            peak, place = f"{name}/peak", f"{name}/place"
            self.after.append(node("TopK", [name, "peaks/one"], [peak, place], _int_attribute("axis", -1)))
            for output, kind in ((peak, _FLOAT), (place, _INT64)):
                self.after.append(value_info(_GRAPH_OUTPUT, output, kind, (*shape, 1)))

    def _taken_outputs(self) -> dict[str, list[str]]:
        """The outputs, which are outputs no more: name and the dimensions but the last, under names."""
        taken = {_first(v, 1).decode(): _rank(v) for v in self._all(_GRAPH_OUTPUT)}
        self.fields = [f for f in self.fields if f[0] != _GRAPH_OUTPUT]
        return {name: ["batch", *(f"{name}/{d}" for d in range(1, rank - 1))] for name, rank in taken.items()}


def _opset(data: bytes | memoryview) -> int:
    """Of ONNX's own operators; 0 for another domain."""
    if _first(data, 1) not in (b"", b"ai.onnx"):
        return 0
    return next((v for n, _, v in read_fields(data) if n == 2 and isinstance(v, int)), 0)


# Messages of our own.


def node(op: str, inputs: Sequence[str], outputs: Sequence[str], *attributes: Field) -> Field:
    names = [_text(_NODE_INPUT, name) for name in inputs] + [_text(_NODE_OUTPUT, name) for name in outputs]
    return _message(_GRAPH_NODE, *names, _text(3, outputs[0]), _text(_NODE_OP, op), *attributes)


def _int_attribute(name: str, value: int) -> Field:
    kind: Field = (_ATTRIBUTE_TYPE, _VARINT, _TYPE_INT)
    return _message(_NODE_ATTRIBUTE, _text(_ATTRIBUTE_NAME, name), (_ATTRIBUTE_INT, _VARINT, value), kind)


def _ints_attribute(name: str, values: Sequence[int]) -> Field:
    numbers: list[Field] = [(_ATTRIBUTE_INTS, _VARINT, value) for value in values]
    kind: Field = (_ATTRIBUTE_TYPE, _VARINT, _TYPE_INTS)
    return _message(_NODE_ATTRIBUTE, _text(_ATTRIBUTE_NAME, name), *numbers, kind)


def _constant(name: str, kind: int, count: int, raw: bytes) -> Field:
    """A Constant node and no initializer: files of before IR 4 want initializers among the inputs."""
    dims: list[Field] = [(_TENSOR_DIMS, _VARINT, count), (_TENSOR_TYPE, _VARINT, kind), (_TENSOR_RAW, _BYTES, raw)]
    tensor = _message(_ATTRIBUTE_TENSOR, *dims)
    what: Field = (_ATTRIBUTE_TYPE, _VARINT, _TYPE_TENSOR)
    return node("Constant", [], [name], _message(_NODE_ATTRIBUTE, _text(_ATTRIBUTE_NAME, "value"), tensor, what))


def _floats(name: str, values: Sequence[float]) -> Field:
    return _constant(name, _FLOAT, len(values), struct.pack(f"<{len(values)}f", *values))


def whole_numbers(name: str, values: Sequence[int]) -> Field:
    return _constant(name, _INT64, len(values), struct.pack(f"<{len(values)}q", *values))


def value_info(number: int, name: str, kind: int, shape: Sequence[int | str]) -> Field:
    dims = [_message(1, _text(2, d) if isinstance(d, str) else (1, _VARINT, d)) for d in shape]
    return _message(number, _text(1, name), _message(2, _message(1, (1, _VARINT, kind), _message(2, *dims))))


def _rank(value_info: bytes | memoryview) -> int:
    shape = _first(_first(_first(value_info, 2), 1), 2)
    return sum(1 for _ in read_fields(shape))


# Changes to messages of the file.


def _within(data: bytes | memoryview, number: int, change) -> bytes:  # noqa: ANN001 - a function of bytes
    """The message with its first field of this number changed by a function of its payload."""
    out: list[Field] = []
    done = False
    for n, wire, value in read_fields(data):
        if n == number and not done and not isinstance(value, int):
            value, done = change(value), True
        out.append((n, wire, value))
    return write_fields(out)


def _free_first_dimension(value_info: bytes | memoryview) -> bytes:
    """A ValueInfoProto whose first dimension has a name instead of a number."""
    dimension = lambda data: write_fields([_text(2, "batch")])  # noqa: ARG005, E731
    shape = lambda data: _within(data, 1, dimension)  # noqa: E731
    tensor = lambda data: _within(data, 2, shape)  # noqa: E731
    return _within(value_info, 2, lambda data: _within(data, 1, tensor))


def _constant_kept(node: bytes | memoryview) -> bytes | memoryview:
    if _first(node, _NODE_OP) != b"Constant":
        return node
    return _within(node, _NODE_ATTRIBUTE, lambda data: _within(data, _ATTRIBUTE_TENSOR, _batch_kept))


def _batch_kept(tensor: bytes | memoryview) -> bytes | memoryview:
    """A reshape's shape [1, ...] as [-1, ...]; where there is a -1 as [0, ...], which is what comes in."""
    values = _int64s(tensor)
    if len(values) < 2 or values[0] != 1:
        return tensor
    kept = [f for f in read_fields(tensor) if f[0] not in (_TENSOR_RAW, _TENSOR_INT64)]
    first = 0 if -1 in values else -1
    raw: Field = (_TENSOR_RAW, _BYTES, struct.pack(f"<{len(values)}q", first, *values[1:]))
    return write_fields([*kept, raw])


def _int64s(tensor: bytes | memoryview) -> list[int]:
    """A TensorProto's numbers, raw or listed (packed or not)."""
    raw = _first(tensor, _TENSOR_RAW)
    if raw:
        return list(struct.unpack(f"<{len(raw) // 8}q", raw))
    numbers: list[int] = []
    for number, _, value in read_fields(tensor):
        if number == _TENSOR_INT64 and isinstance(value, int):
            numbers.append(_signed(value))
        elif number == _TENSOR_INT64 and not isinstance(value, int):
            at = 0
            while at < len(value):
                one, at = _read_varint(memoryview(value), at)
                numbers.append(_signed(one))
    return numbers
