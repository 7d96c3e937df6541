"""Writes small ONNX files: half-size weights, full-size arithmetic, and what the model is in its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn


def write_onnx(
    model: nn.Module,
    example: Tensor,
    path: Path,
    *,
    inputs: str,
    outputs: list[str],
    dynamic_batch: bool,
    metadata: Mapping[str, str],
) -> None:
    """Exports `model` (opset 17) with weights stored as float16, widened once when a file is loaded."""
    import onnx  # pyright: ignore[reportMissingImports] (needed only to retrain)

    axes = {name: {0: "batch"} for name in (inputs, *outputs)} if dynamic_batch else None
    partial = path.with_suffix(".partial")
    with torch.inference_mode():
        torch.onnx.export(
            model.cpu().float().eval(),
            (example,),
            str(partial),
            input_names=[inputs],
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    graph = onnx.load(str(partial))
    _halve(graph)
    for key, value in metadata.items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, str(partial))
    partial.replace(path)


def _halve(model) -> None:  # noqa: ANN001 (onnx is not a dependency of the library)
    """Stores float32 weights of more than 64 numbers as float16, each behind a Cast back to float32."""
    import numpy as np
    import onnx  # pyright: ignore[reportMissingImports] (needed only to retrain)
    from onnx import TensorProto, helper, numpy_helper  # pyright: ignore[reportMissingImports]

    graph = model.graph
    casts = []
    for weight in list(graph.initializer):
        values = numpy_helper.to_array(weight)
        if weight.data_type != TensorProto.FLOAT or values.size <= 64:
            continue
        small = numpy_helper.from_array(values.astype(np.float16), weight.name + "_half")
        graph.initializer.remove(weight)
        graph.initializer.append(small)
        casts.append(helper.make_node("Cast", [small.name], [weight.name], to=onnx.TensorProto.FLOAT))
    for index, cast in enumerate(casts):
        graph.node.insert(index, cast)
