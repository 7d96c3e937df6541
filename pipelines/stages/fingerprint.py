"""Takes the hash by which copies of a clip are known again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from pipelines.clip import Clip
from pipelines.stage import Stage


@dataclass(frozen=True)
class Fingerprint(Stage):
    """Hashes how a clip looks and moves, on its row: for `DropLeaks` and `DropDuplicates`.

    Costs one decoding; the text takes about 210 bytes for each second of video. Refuses nothing.
    """

    reads: ClassVar[tuple[str, ...] | None] = ("mp4",)

    def process(self, clip: Clip) -> Iterable[Clip]:
        """Hashes the clip's mp4, or the source itself where nothing has been cut from it."""
        from dynamictrl.media.video_hash import hash_video

        path = clip.file("mp4") if "mp4" in clip.files else Path(clip.path)
        yield replace(clip, video_hash=hash_video(path).to_text())
