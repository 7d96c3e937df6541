"""Bytes of inputs and results as files in a data folder. Every name in it is ours: no path comes from a client.

DATA/files/ID                  what was sent to /v1/files
DATA/videos/ID/MEDIUM          a job's inputs, its own links: deleting the file leaves the job whole
DATA/videos/ID/TOKEN/NAME      what one attempt rendered; the job's row says which attempt is the result
DATA/incoming/NAME             uploads in flight; removed when they are too old to be alive
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from dynamictrl.errors import ConfigError

_ID = re.compile(r"[a-z]+_[0-9a-f]{32}")

RESULTS = {"video": ("video.mp4", "video/mp4"), "thumbnail": ("thumbnail.webp", "image/webp"),
           "spritesheet": ("spritesheet.jpg", "image/jpeg")}  # fmt: skip
"""What an attempt renders: variant -> file name, content type."""


def new_id(kind: str) -> str:
    """A name that cannot be guessed, such as `video_1f...`."""
    return f"{kind}_{secrets.token_hex(16)}"


def is_id(text: str, kind: str) -> bool:
    """Whether a client's word has the form of an id of ours, and so may be part of a path."""
    return bool(_ID.fullmatch(text)) and text.startswith(f"{kind}_")


class Blobs:
    """The data folder."""

    def __init__(self, root: Path):
        """Creates the folder where it is missing; ConfigError where that cannot be."""
        self.root = root.absolute()
        try:
            for name in ("files", "videos", "incoming"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise ConfigError(
                f"the data folder {self.root} cannot be made ({problem.strerror}); name one that can be written "
                "with --data-folder",
                code="data_folder",
                param="data_folder",
            ) from problem

    def incoming(self) -> Path:
        """A fresh name for an upload in flight."""
        return self.root / "incoming" / secrets.token_hex(16)

    def file(self, file_id: str) -> Path:
        assert is_id(file_id, "file"), file_id
        return self.root / "files" / file_id

    def video(self, video_id: str) -> Path:
        assert is_id(video_id, "video"), video_id
        return self.root / "videos" / video_id

    def medium(self, video_id: str, medium: str) -> Path:
        return self.video(video_id) / medium

    def attempt(self, video_id: str, token: int) -> Path:
        return self.video(video_id) / str(token)

    def result(self, video_id: str, token: int, variant: str) -> Path:
        return self.attempt(video_id, token) / RESULTS[variant][0]

    def keep_media(self, video_id: str, media: dict[str, Path]) -> None:
        """Links a job's inputs into its own folder, all or none of them."""
        folder = self.video(video_id)
        folder.mkdir(parents=True)
        for medium, source in media.items():
            _link(source, folder / medium)

    def drop_video(self, video_id: str) -> None:
        """Removes a job's inputs and results; a second call finds nothing to do."""
        shutil.rmtree(self.video(video_id), ignore_errors=True)

    def drop_attempts(self, video_id: str, keep: int | None) -> None:
        """Removes what other attempts than `keep` rendered."""
        folder = self.video(video_id)
        for child in folder.iterdir() if folder.is_dir() else ():
            if child.is_dir() and child.name != str(keep):
                shutil.rmtree(child, ignore_errors=True)

    def sweep(self, known: Iterable[str], *, older_than_s: float = 3600.0) -> int:
        """Removes what a crash left between a file and its row; returns how many entries went.

        Only entries older than `older_than_s` seconds: a younger one may be a request in flight.
        """
        known = set(known)
        limit = time.time() - older_than_s
        gone = 0
        for child in [*(self.root / "incoming").iterdir(), *(self.root / "videos").iterdir()]:
            if child.name in known or child.stat().st_mtime > limit:
                continue
            shutil.rmtree(child, ignore_errors=True) if child.is_dir() else child.unlink(missing_ok=True)
            gone += 1
        return gone


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Another file system, or one without hard links.
        partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
        shutil.copyfile(source, partial)
        partial.replace(target)
