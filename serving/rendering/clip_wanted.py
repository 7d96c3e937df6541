"""What `python -m serving animate` is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Show = Callable[[str, int, int], None]
"""Told of each stage: its name, the steps done, the steps in all."""


@dataclass(frozen=True, kw_only=True)
class Animate:
    """Renders one clip: the person of an image, moving as a video does."""

    image: Path
    """The person: any image file."""
    out: Path
    """The mp4 to write."""
    model: str = ""
    """Model folder, hub id, `mini/dynamictrl`, or an MLflow URI such as models:/dynamictrl@champion; needed, except
    with --manifest."""
    prompt: str | None = None
    """What the clip shows; needed, except with --manifest."""
    manifest: Path | None = None
    """A clip's manifest (GET /v1/videos/ID/content?variant=manifest): renders that clip again from the same media, and
    says whether the frames are equal. Prompt, size, seed and the like are the manifest's."""
    driving: Path | None = None
    """A video of a person whose motion is taken over."""
    pose_video: Path | None = None
    """A ready-made DWPose rendering of the motion, instead of --driving."""
    mask: Path | None = None
    """An image of the person image's size: white is kept, the rest is drawn anew from the prompt."""
    transformer: str = ""
    """Folder or hub id whose transformer takes the place of the model's own, as released masked models need it."""
    compatibility: Literal["none", "released"] = "none"
    """`released` renders as the published inference does, its lag of three frames included (docs/method.md)."""
    alignment: Literal["auto", "limbs", "affine", "released", "none"] = "auto"
    """How a driving video's poses are brought onto the person: `auto` is `limbs`, the person's own bone lengths, or
    `released` with that compatibility (docs/driving.md)."""
    pose_model: str = ""
    """DWPose folder, hub id or mini/dwpose; empty means the one that goes with the model."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels, multiples of 16. Default: the pose video's own size, or the model's with --driving."""
    num_frames: int | None = None
    """5, 9, 13, ... Default: as many as the video has, up to the model's length."""
    num_inference_steps: int = 25
    """Denoising steps."""
    guidance_scale: float = 3.0
    """Strength of the prompt; 1 turns guidance off."""
    seed: int = 0
    """The same seed and inputs give the same clip."""
    fps: float | None = None
    """Frames per second of the clip; the video is resampled to it. Default: the video's own."""
    lora: str = ""
    """A LoRA file, folder or hub id to put on the model, such as RUN/model/lora."""
    lora_scale: float = 1.0
    """How strongly the LoRA acts; 0 is not at all."""
    keep_audio: bool = False
    """The clip keeps the video's sound, cut to exactly its frames; where there is none it is silent, with a note."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it is rendered; auto takes a GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights; auto is bfloat16 on a GPU and float32 elsewhere."""
