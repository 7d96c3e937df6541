"""Changes to ONNX graphs without the onnx package, on models small enough to write by hand."""

import numpy as np
import onnxruntime
import pytest

from dynamictrl.errors import CheckpointError
from dynamictrl.poses.dwpose_networks import Batched
from dynamictrl.poses.onnx_edit import OnnxGraph, node, read_fields, value_info, whole_numbers, write_fields
from dynamictrl.weights import MINI

FLOAT = 1
IR_VERSION = (1, 0, 8)
OPSET_17 = (8, 2, write_fields([(2, 0, 17)]))
GRAPH_INPUT, GRAPH_OUTPUT = 11, 12


def model(*nodes, out: tuple, opset=OPSET_17) -> bytes:  # noqa: ANN001, ANN002
    """A model of these nodes from `images` [1, 3, 4, 4] to `answer`."""
    ends = [
        value_info(GRAPH_INPUT, "images", FLOAT, (1, 3, 4, 4)),
        value_info(GRAPH_OUTPUT, "answer", FLOAT, out),
    ]
    return OnnxGraph([IR_VERSION, opset], [*nodes, (2, 2, b"g"), *ends]).to_bytes()


def session(data: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


RESHAPED = model(
    whole_numbers("shape", (1, 3, 16)), node("Reshape", ["images", "shape"], ["answer"]), out=(1, 3, 16)
)  # fmt: skip
MIXED = model(
    whole_numbers("first", (0,)),
    node("ReduceSum", ["images", "first"], ["sum"]),
    node("Add", ["images", "sum"], ["answer"]),
    out=(1, 3, 4, 4),
)


def test_a_file_taken_apart_and_put_together_holds_the_same_fields():
    data = (MINI / "dwpose" / "dw-ll_ucoco_384.onnx").read_bytes()
    again = OnnxGraph.parse(data).to_bytes()
    assert sorted(map(repr, ((n, w, bytes(v) if not isinstance(v, int) else v) for n, w, v in read_fields(again)))) == (
        sorted(map(repr, ((n, w, bytes(v) if not isinstance(v, int) else v) for n, w, v in read_fields(data))))
    )


def test_negative_and_large_numbers_are_written_as_protobuf_has_them():
    fields = [(1, 0, 300), (2, 2, b"abc"), (3, 5, b"1234"), (4, 1, b"12345678")]
    again = [(n, w, v if isinstance(v, int) else bytes(v)) for n, w, v in read_fields(write_fields(fields))]
    assert again == fields
    assert list(read_fields(write_fields([(1, 0, -1)]))) == [(1, 0, 2**64 - 1)]


def test_a_fixed_batch_is_freed_and_each_picture_keeps_its_answer():
    graph = OnnxGraph.parse(RESHAPED)
    assert graph.batch() == 1
    graph.free_batch()
    freed = OnnxGraph.parse(graph.to_bytes())
    assert freed.batch() is None
    pictures = np.arange(5 * 48, dtype=np.float32).reshape(5, 3, 4, 4)
    answer = session(freed.to_bytes()).run(None, {"images": pictures})[0]
    np.testing.assert_array_equal(answer, pictures.reshape(5, 3, 16))


def test_a_graph_fed_with_bytes_does_what_was_done_to_floats_before():
    graph = OnnxGraph.parse(RESHAPED)
    graph.free_batch()
    mean, std = (10.0, 20.0, 30.0), (2.0, 3.0, 4.0)
    graph.feed_bytes(4, 4, mean, std)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    expected = ((pictures.astype(np.float32) - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2)
    answer = session(graph.to_bytes()).run(None, {"pixels": pictures})[0]
    np.testing.assert_array_equal(answer, expected.reshape(2, 3, 16))


def test_kept_channels_are_the_first_ones():
    graph = OnnxGraph.parse(RESHAPED)
    graph.keep_channels(6)
    picture = np.random.default_rng(0).standard_normal((1, 3, 4, 4), np.float32)
    ran = session(graph.to_bytes())
    assert [o.name for o in ran.get_outputs()] == ["kept"]
    np.testing.assert_array_equal(ran.run(None, {"images": picture})[0], picture.reshape(1, 3, 16)[..., :6])


def test_peaks_are_numpys_also_where_two_are_equal():
    graph = OnnxGraph.parse(RESHAPED)
    graph.keep_peaks()
    picture = np.random.default_rng(0).standard_normal((1, 3, 4, 4), np.float32)
    picture[0, 1] = 0
    picture[0, 2, 1, 2] = picture[0, 2, 3, 3] = 9
    peak, place = session(graph.to_bytes()).run(None, {"images": picture})
    rows = picture.reshape(1, 3, 16)
    np.testing.assert_array_equal(place[..., 0], rows.argmax(axis=-1))
    np.testing.assert_array_equal(peak[..., 0], rows.max(axis=-1))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x08\x08", "0 graphs"),
        (b"\x0b\x08", "wire type 3"),
        (RESHAPED[:-5], "cut off"),
        (model(out=(1, 3, 16), opset=(8, 2, write_fields([(2, 0, 9)]))), "opset 9"),
    ],
)
def test_what_is_no_such_file_is_refused(data: bytes, said: str):
    with pytest.raises(CheckpointError, match=said):
        OnnxGraph.parse(data)


@pytest.mark.parametrize(("data", "size", "noted"), [(RESHAPED, 4, False), (MIXED, 1, True)])
def test_a_freed_file_is_used_only_where_pictures_do_not_mix(data: bytes, size: int, noted: bool, tmp_path):  # noqa: ANN001
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    network = Batched(path, "cpu", 1, (4, 4), 4, lambda graph: graph.feed_bytes(4, 4), {})
    assert network.batch_size == size
    assert ("fixed batch" in network.note) == noted
    picture = np.full((4, 4, 3), 7, np.uint8)
    assert network.run([picture])[0].shape[0] == size
    assert network.run([picture])[0][0].max() == (14 if noted else 7)
