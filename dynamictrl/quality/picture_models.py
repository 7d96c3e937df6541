"""Optional judgements of pictures by models that the user names: how pleasing they are, and whether they are safe.

The project ships no such weights and has not measured any: what these say is what the named model says.

Shape suffixes: F frames, H W picture size, C channels, N pictures, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamictrl import weights
from dynamictrl.errors import CheckpointError, ConfigError

Image = NDArray[np.uint8]


def spread_frames(frames_FHWC: Image, count: int) -> Image:
    """At most `count` of the frames, evenly over the clip, from the middle of each stretch."""
    number = min(count, len(frames_FHWC))
    return frames_FHWC[((np.arange(number) + 0.5) * len(frames_FHWC) / number).astype(int)]


class AestheticScorer:
    """How pleasing pictures are, as LAION's aesthetic predictors say it: a head on a CLIP model's image embedding.

    Heads in use give about 1 to 10. A head is a safetensors file with the weights of linear layers, applied one after
    the other to the embedding of length 1: LAION's first predictor has one such layer, its "improved" one five without
    activations between them.
    """

    def __init__(self, model: str | Path, head: str | Path, device: str = "cpu"):
        """`model`: folder or hub id of a CLIP model; `head`: a safetensors file, or a folder or hub id that holds one.

        Raises CheckpointError where either cannot be had or they do not fit, ConfigError for a head without layers.
        """
        from transformers import AutoImageProcessor, CLIPModel

        folder = weights.resolve(model, ("config.json", "*.safetensors"))
        self.device = device
        self._preparation: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        clip_model: Any = CLIPModel.from_pretrained(folder, local_files_only=True)
        self._model = clip_model.to(device).eval()
        self._layers = _linear_layers(_head_file(head), self._model.config.projection_dim, device)

    def __call__(self, frames_FHWC: Image) -> NDArray[np.float64]:
        """[F], a score for each picture."""
        import torch

        inputs = self._preparation(images=list(frames_FHWC), return_tensors="pt").to(self.device)
        with torch.inference_mode():
            value_FD = self._model.get_image_features(**inputs).pooler_output
            value_FD = value_FD / value_FD.norm(dim=-1, keepdim=True)
            for weight, bias in self._layers:
                value_FD = torch.nn.functional.linear(value_FD, weight, bias)
        return value_FD[:, 0].double().cpu().numpy()


def _head_file(head: str | Path) -> Path:
    path = Path(head).expanduser()
    if path.is_file():
        return path
    return min(weights.resolve(head, ("*.safetensors",)).glob("*.safetensors"))


def _linear_layers(path: Path, width: int, device: str) -> list[tuple[Any, Any]]:
    """Weight and bias of each layer, in the order of the numbers in their names."""
    from safetensors.torch import load_file

    tensors = load_file(path, device=device)
    names = [name for name in tensors if name.endswith("weight") and tensors[name].ndim == 2]
    names.sort(key=lambda name: [int(part) for part in name.split(".") if part.isdigit()])
    if not names:
        raise ConfigError(f"{path.name} holds no linear layer (tensors: {', '.join(sorted(tensors)) or 'none'})")
    layers = [(tensors[name], tensors.get(f"{name.removesuffix('weight')}bias")) for name in names]
    for (weight, _), name in zip(layers, names, strict=True):
        if weight.shape[1] != width:
            raise CheckpointError(
                f"layer {name} of {path.name} takes {weight.shape[1]} numbers, but gets {width}: the head was made for "
                f"another CLIP model",
                code="weights_mismatch",
            )
        width = weight.shape[0]
    return layers


class PictureClassifier:
    """Any image classifier of transformers, asked how likely some of its labels are together."""

    def __init__(self, model: str | Path, labels: Sequence[str], device: str = "cpu"):
        """`model`: folder or hub id; `labels`: names in its `id2label`, case ignored.

        Raises CheckpointError where it cannot be had, ConfigError for a label it does not have.
        """
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        folder = weights.resolve(model, ("config.json", "*.safetensors"))
        self.device = device
        self._preparation: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        classifier: Any = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)
        self._model = classifier.to(device).eval()
        known = {name.lower(): int(index) for index, name in self._model.config.id2label.items()}
        missing = [label for label in labels if label.lower() not in known]
        if missing or not labels:
            raise ConfigError(
                f"labels are {', '.join(labels) or 'none'}; {model} knows {', '.join(known)}", param="labels"
            )
        self._chosen = [known[label.lower()] for label in labels]

    def __call__(self, frames_FHWC: Image) -> NDArray[np.float64]:
        """[F], the labels' probabilities added up, for each picture."""
        import torch

        inputs = self._preparation(images=list(frames_FHWC), return_tensors="pt").to(self.device)
        with torch.inference_mode():
            likely_FN = self._model(**inputs).logits.softmax(dim=-1)
        return likely_FN[:, self._chosen].sum(dim=-1).double().cpu().numpy()
