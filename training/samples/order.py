"""Which sample stands at which global index, and everything random about it.

The global sample index counts the samples a run has seen over all workers. It alone says which clip comes
(`arrangement.py`), which window of it, what is dropped and which noise is drawn, so a run is the same whatever the
number of workers and threads. A run's whole place in its data is therefore {epoch, index}: after optimizer step s the
index is s x batch_size, and the epoch is `Order.state`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dynamictrl.samples.buckets import Bucket
from dynamictrl.samples.windows import Masked, Window
from training.samples.arrangement import DRAWS, SUBSTITUTES, Arrangement, keyed
from training.settings.clips import Clips


@dataclass(frozen=True)
class Entry:
    """One clip that can be trained on."""

    key: str
    shard: Path
    offset: int
    """Byte offset in the shard."""
    fps: float
    starts: Sequence[int]
    """Frames that a window may begin at."""
    bucket: Bucket
    has_clothes: bool = False
    """Whether there is a clothes mask."""
    latents: tuple[int, int] | None = None
    """First byte and number of bytes of the encodings in the shard; None where none may be used."""
    encoded_start: int = -1
    """Start of the window whose encodings lie in the shard and may be used; -1 where none do."""
    encoded_mask: Masked = "none"
    """What of the encoded reference is blacked out already."""


@dataclass(frozen=True)
class Draw:
    """What is random about one sample."""

    position: int
    """Global sample index."""
    entry: Entry
    window: Window
    drops_caption: bool
    drops_image: bool
    noise_seed: int
    """Of everything that is drawn as tensors."""
    masked: Masked = "none"
    """What of the reference is blacked out."""


@dataclass(frozen=True)
class Order:
    """Which sample stands at which global index."""

    seed: int
    clips: Clips
    entries: tuple[Entry, ...]
    batch_size: int = 1
    """Matters where there are several buckets."""
    costs: Mapping[Bucket, float] = field(default_factory=dict)
    """Of one sample of each bucket, in any unit; frames x pixels where they are not said."""

    @cached_property
    def arrangement(self) -> Arrangement:
        """Which clip of which bucket stands where."""
        buckets, members = self._members
        row = self.clips.samples_in_a_row(self.batch_size)
        costs = (self.costs.get(b, float(b.num_frames * b.height * b.width)) for b in buckets)
        return Arrangement(self.seed, tuple(map(len, members)), tuple(costs), row, self.batch_size)

    @cached_property
    def _members(self) -> tuple[list[Bucket], list[list[int]]]:
        """The buckets that hold clips, and the clips of each as numbers of entries."""
        members: dict[Bucket, list[int]] = {}
        for number, entry in enumerate(self.entries):
            members.setdefault(entry.bucket, []).append(number)
        buckets = sorted(members)
        return buckets, [members[bucket] for bucket in buckets]

    def draw(self, position: int, attempt: int = 0) -> Draw:
        """Everything random about the sample at a global index but its tensors.

        `attempt` counts the clips that could not be read here: the next ones stand in, others of the same bucket.
        """
        place = self.arrangement.place(position)
        members = self._members[1][place.bucket]
        substitutes = keyed(self.seed, SUBSTITUTES, position).integers(len(members), size=attempt)
        entry = self.entries[members[int(substitutes[-1]) if attempt else place.clip]]
        drawn = keyed(self.seed, DRAWS, position)
        start = entry.starts[int(drawn.integers(len(entry.starts)))]
        caption, image = drawn.random(2)
        noise_seed = int(drawn.integers(2**63))
        return Draw(
            position=position,
            entry=entry,
            window=self.window(entry.encoded_start if entry.encoded_start >= 0 else start, entry.bucket),
            drops_caption=bool(caption < self.clips.caption_dropout),
            drops_image=bool(image < self.clips.image_dropout),
            noise_seed=noise_seed,
            masked=self._masked(entry, float(drawn.random())),
        )

    def state(self, step: int) -> dict[str, int]:
        """Where a run is in its data when so many optimizer steps are done."""
        index = step * self.batch_size
        return {"epoch": self.arrangement.place(index).epoch, "index": index}

    def window(self, start: int, bucket: Bucket | None = None) -> Window:
        """A window in a size of this run, the first where none is named."""
        size = bucket or self.clips.sizes[0]
        return Window(start, size.num_frames, size.height, size.width, self.clips.fps, self.clips.crop)

    def _masked(self, entry: Entry, share: float) -> Masked:
        if self.clips.masked_reference != "mixed":
            return self.clips.masked_reference
        if share < self.clips.mixed_background:
            return "background"
        if share < self.clips.mixed_background + self.clips.mixed_clothes:
            return "clothes" if entry.has_clothes else "background"
        return "none"
