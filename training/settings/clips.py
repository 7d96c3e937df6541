"""What of a sample is shown, and at which size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from training.settings.fields import free, not_negative, positive, share

Masked = Literal["none", "background", "clothes"]


@dataclass(frozen=True, kw_only=True)
class Clips:
    """What of a sample is shown, and at which size."""

    height: int = 1360
    """Pixels."""
    width: int = 768
    """Pixels."""
    num_frames: int = 37
    """Frames of a training clip."""
    fps: float = 16.0
    """Frames per second; clips are resampled by their time stamps. 0 keeps each clip's own."""
    windows_per_clip: int = 0
    """Training windows a clip offers, evenly spread; 0: any frame may be the first. Few windows let a cache work."""
    caption_dropout: float = 0.1
    """Share of samples shown without their caption; 1.0 trains the Non-text baseline."""
    image_dropout: float = 0.05
    """Share of samples shown without their reference image."""
    image_noise: bool = True
    """Noise of random strength exp(N(-3, 0.5)) on the reference image, in pixel space (CogVideoX I2V recipe)."""
    masked_reference: Masked = "none"
    """Region of the reference image that is blacked out, for the caption to fill."""
    cache_gib: float = free(8.0)
    """GiB of host memory per worker for encoded clips and captions; 0 encodes every time."""
    share_encodings: bool = free(False)
    """Encoded clips are also kept in the run folder until its end, so that each is encoded once for all workers."""
    loader_threads: int = free(2)
    """Threads per worker that read and draw clips ahead; 0 reads in the training thread."""

    def __post_init__(self):
        positive(self, "height", "width", "num_frames")
        share(self, "caption_dropout", "image_dropout")
        not_negative(self, "fps", "windows_per_clip", "cache_gib", "loader_threads")
