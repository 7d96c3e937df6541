"""Which pixels of persons are clothes: by a parser of people, or by SAM 3 asked in words.

Shape suffixes: F frames, K instances, C classes, H W pixels.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamictrl.errors import ConfigError

Segment = Callable[[NDArray[np.uint8]], NDArray[np.bool_]]
"""[F, H, W, 3] RGB -> [F, H, W], True on clothes, whoever wears them."""

AT_ONCE = 8
"""Frames in one forward pass."""


def clothes_model(folder: str | Path, device: str, *, labels: Sequence[str], prompt: str) -> Segment:
    """The model in a folder or under a hub id, told by its config: SAM 3 (`prompt`) or a parser (`labels`).

    Raises CheckpointError where the weights cannot be had (SAM 3's are gated), ConfigError where the parser knows no
    such label.
    """
    from dynamictrl.weights import resolve

    path = resolve(folder, ("config.json", "*.safetensors"))
    kind = json.loads((path / "config.json").read_text()).get("model_type", "")
    if kind == "sam3_video":
        return Sam3VideoClothes(path, device, prompt)
    if kind == "sam3":
        return Sam3Clothes(path, device, prompt)
    return ParsedClothes(path, device, labels)


def _dtype(device: str) -> Any:  # noqa: ANN401 - torch is not imported here
    import torch

    return torch.bfloat16 if device.startswith("cuda") else torch.float32


class ParsedClothes:
    """Clothes by a semantic segmentation of people, such as a SegFormer trained on clothes."""

    def __init__(self, path: Path, device: str, labels: Sequence[str]):
        from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

        self.device, self.dtype = device, _dtype(device)
        self.preparation: Any = AutoImageProcessor.from_pretrained(path, local_files_only=True)
        model: Any = AutoModelForSemanticSegmentation.from_pretrained(path, local_files_only=True, dtype=self.dtype)
        self.model = model.to(device).eval()
        known: dict[str, int] = {name: int(index) for index, name in model.config.id2label.items()}
        self._classes = [known[_known(label, known)] for label in labels]

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.bool_]:
        import torch

        found = np.zeros(frames.shape[:3], bool)
        height, width = frames.shape[1:3]
        for start in range(0, len(frames), AT_ONCE):
            part = frames[start : start + AT_ONCE]
            inputs = self.preparation(images=list(part), return_tensors="pt").to(self.device, self.dtype)
            with torch.inference_mode():
                logits_FChw = self.model(**inputs).logits
                full = torch.nn.functional.interpolate(logits_FChw.float(), (height, width), mode="bilinear")
                classes_FHW = full.argmax(dim=1)
                is_clothes = torch.isin(classes_FHW, torch.tensor(self._classes, device=classes_FHW.device))
            found[start : start + len(part)] = is_clothes.cpu().numpy()
        return found


def _known(label: str, known: dict[str, int]) -> str:
    if label in known:
        return label
    near = difflib.get_close_matches(label, known, 1, 0.5)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"the parser knows no label {label!r}{meant} It knows {sorted(known)}", param="clothes_labels")


class Sam3Clothes:
    """Clothes by SAM 3 on single frames (Carion et al. 2025): all instances of what the prompt names."""

    def __init__(self, path: Path, device: str, prompt: str):
        from transformers import Sam3Model, Sam3Processor

        self.device, self.dtype, self.prompt = device, _dtype(device), prompt
        self.preparation: Any = Sam3Processor.from_pretrained(path, local_files_only=True)
        model: Any = Sam3Model.from_pretrained(path, local_files_only=True, dtype=self.dtype)
        self.model = model.to(device).eval()

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.bool_]:
        import torch

        found = np.zeros(frames.shape[:3], bool)
        for index, picture in enumerate(frames):
            inputs = self.preparation(images=picture, text=self.prompt, return_tensors="pt").to(self.device)
            inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
            with torch.inference_mode():
                seen = self.model(**inputs)
            masks_KHW = self.preparation.post_process_instance_segmentation(seen, target_sizes=[picture.shape[:2]])[0]
            found[index] = masks_KHW["masks"].bool().any(dim=0).cpu().numpy() if len(masks_KHW["masks"]) else False
        return found


class Sam3VideoClothes:
    """Clothes by SAM 3 video: what the prompt names is found and then followed, which flickers less."""

    def __init__(self, path: Path, device: str, prompt: str):
        from transformers import Sam3VideoModel, Sam3VideoProcessor

        self.device, self.dtype, self.prompt = device, _dtype(device), prompt
        self.preparation: Any = Sam3VideoProcessor.from_pretrained(path, local_files_only=True)
        model: Any = Sam3VideoModel.from_pretrained(path, local_files_only=True, dtype=self.dtype)
        self.model = model.to(device).eval()

    def __call__(self, frames: NDArray[np.uint8]) -> NDArray[np.bool_]:
        import torch

        found = np.zeros(frames.shape[:3], bool)
        session = self.preparation.init_video_session(
            video=frames, inference_device=self.device, video_storage_device="cpu", dtype=self.dtype
        )
        session = self.preparation.add_text_prompt(session, self.prompt)
        with torch.inference_mode():
            for output in self.model.propagate_in_video_iterator(session):
                masks_KHW = self.preparation.postprocess_outputs(session, output)["masks"]
                found[output.frame_idx] = masks_KHW.any(dim=0).cpu().numpy() if len(masks_KHW) else False
        return found
