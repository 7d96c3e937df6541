"""Which model is measured on which clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.settings.fields import not_negative, positive
from training.settings.workers import Device


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Which model is measured on which clips."""

    model: str
    """Model folder, such as RUN/model, or `mini/NAME`."""
    data: Path
    """Data set folder; its clips give reference image, driving pose, caption and ground truth."""
    out: Path
    """Folder for metrics.json, index.html and the clips."""
    against: str = ""
    """A second model measured on the same clips, such as the one before fine-tuning."""
    samples: int = 8
    """Clips measured, the first of the data set's order; 0 takes all."""
    height: int = 0
    """Pixels; 0 takes the size that the model was trained at."""
    width: int = 0
    """Pixels; 0 takes the size that the model was trained at."""
    num_frames: int = 0
    """Frames; 0 takes the number that the model was trained at."""
    fps: float = -1.0
    """Frames per second; 0 keeps each clip's own, -1 takes the rate that the model was trained at."""
    num_inference_steps: int = 25
    """Denoising steps."""
    guidance_scale: float = 3.0
    """Classifier-free guidance on the caption; 1 is off."""
    seed: int = 42
    """Of the initial noise."""
    device: Device = "cpu"
    """Where the models run."""

    def __post_init__(self):
        not_negative(self, "samples", "height", "width", "num_frames")
        positive(self, "num_inference_steps")
