"""What of a sample is shown, and at which size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dynamictrl.errors import ConfigError
from training.settings.fields import free, not_negative, positive, share

if TYPE_CHECKING:
    from dynamictrl.samples.buckets import Bucket

Masked = Literal["none", "background", "clothes", "mixed"]
UsedEncodings = Literal["auto", "precomputed", "online"]


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
    buckets: tuple[str, ...] = ()
    """Sizes as FRAMESxHEIGHTxWIDTH in place of the three above, such as `49x480x720 25x720x480`; a clip is shown in the
    one that keeps most of it. Empty: one size."""
    bucket_samples: int = 0
    """Samples in a row of one bucket: a divisor of batch_size, and a multiple of workers x micro_batch_size where all
    workers shall do equal work at once. 0: the whole batch. Buckets of fewer clips are not used."""
    largest_upscale: float = 2.0
    """Most that a clip's pictures may be enlarged to fill a size; clips that need more are left out. 0: no limit."""
    crop: Literal["persons", "centre"] = "persons"
    """What stays where a picture is cut to its size: the persons of the window, or the middle."""
    windows_per_clip: int = 0
    """Training windows a clip offers, evenly spread; 0: any frame may be the first. Few windows let a cache work."""
    caption_dropout: float = 0.1
    """Share of samples shown without their caption; 1.0 trains the Non-text baseline."""
    image_dropout: float = 0.05
    """Share of samples shown without their reference image."""
    image_noise: bool = True
    """Noise of random strength exp(N(-3, 0.5)) on the reference image, in pixel space (CogVideoX I2V recipe)."""
    masked_reference: Masked = "none"
    """Region of the reference image that is blacked out, for the caption to fill; `mixed` draws one for each sample.
    Clips without a clothes mask are left out of `clothes`; in `mixed` their background is taken in its place."""
    mixed_background: float = 0.25
    """Share of samples whose background is blacked out, where masked_reference is mixed."""
    mixed_clothes: float = 0.25
    """Share of samples whose clothes are blacked out, where masked_reference is mixed; the rest is shown whole."""
    encodings: UsedEncodings = "auto"
    """Precomputed encodings (recipe `encode`): used where they fit, demanded of every clip, or passed over."""
    max_bad_samples: int = free(100)
    """Clips that may turn out unreadable on the way; each is replaced by another and noted in RUN/skipped.jsonl."""
    cache_gib: float = free(8.0)
    """GiB of host memory per worker for what was encoded online; 0 encodes every time."""
    share_encodings: bool = free(False)
    """Encoded clips are also kept in the run folder until its end, so that each is encoded once for all workers."""
    loader_threads: int = free(2)
    """Threads per worker that read and draw clips ahead; 0 reads in the training thread."""
    batches_ahead: int = free(2)
    """Micro-batches per worker made ready before their turn, by a thread with a CUDA stream of its own; never more than
    one step's. None on the CPU, where they would take the training's cores."""

    def __post_init__(self):
        positive(self, "height", "width", "num_frames")
        share(self, "caption_dropout", "image_dropout", "mixed_background", "mixed_clothes")
        not_negative(self, "fps", "windows_per_clip", "cache_gib", "loader_threads", "batches_ahead")
        not_negative(self, "bucket_samples", "largest_upscale", "max_bad_samples")
        if self.mixed_background + self.mixed_clothes > 1:
            raise ConfigError(
                f"mixed_background {self.mixed_background} and mixed_clothes {self.mixed_clothes} are more than 1 "
                "together; lower one",
                code="setting_conflict",
                param="mixed_clothes",
            )
        if self.buckets:
            _ = self.sizes

    @property
    def sizes(self) -> tuple[Bucket, ...]:
        """The buckets, or the one size; ConfigError for one that no base can render."""
        from dynamictrl.samples.buckets import Bucket, parse_bucket

        named = tuple(dict.fromkeys(parse_bucket(text) for text in self.buckets))
        return named or (Bucket(self.num_frames, self.height, self.width),)

    def samples_in_a_row(self, batch_size: int) -> int:
        """How many samples one after another are of one bucket; 1 where there is one bucket alone."""
        return 1 if len(self.buckets) < 2 else self.bucket_samples or batch_size
