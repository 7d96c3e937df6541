"""Bytes of inputs and results by their place. Every name in it is ours: no path comes from a client.

files/ID                  what was sent to /v1/files
videos/ID/MEDIUM          a job's inputs, its own copy: deleting the file leaves the job whole
videos/ID/TOKEN/NAME      what one attempt rendered; the job's row says which attempt is the result

They lie in DATA itself, or in a bucket (`storage`). With a bucket DATA holds only what is in flight:

DATA/incoming/NAME        uploads on their way; removed when they are too old to be alive
DATA/here/KEY             copies of objects for those who need a file; removed once nobody has used them for an hour
DATA/scratch/ID/TOKEN     an attempt until it is published
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from dynamictrl.errors import ConfigError, StoreError
from serving.results.opening import open_storage
from serving.results.storage import Storage, Stored

_ID = re.compile(r"[a-z]+_[0-9a-f]{32}")

RESULTS = {"video": ("video.mp4", "video/mp4"), "thumbnail": ("thumbnail.webp", "image/webp"),
           "spritesheet": ("spritesheet.jpg", "image/jpeg"),
           "spritesheet_vtt": ("spritesheet.vtt", "text/vtt; charset=utf-8")}  # fmt: skip
"""What an attempt renders: variant -> file name, content type."""
HERE_S = 3600.0
"""Seconds after its last use for which a local copy of an object is kept."""
PUBLISH_TRIES = 3
"""Rounds of a storage's own retries that storing a result is worth."""
BUCKET_SWEEP_S = 3600.0
"""Seconds between two listings of a bucket in search of orphans: listing costs money and time."""


def new_id(kind: str) -> str:
    """A name that cannot be guessed, such as `video_1f...`."""
    return f"{kind}_{secrets.token_hex(16)}"


def is_id(text: str, kind: str) -> bool:
    """Whether a client's word has the form of an id of ours, and so may be part of a path."""
    return bool(_ID.fullmatch(text)) and text.startswith(f"{kind}_")


class Blobs:
    """A service's bytes."""

    def __init__(self, root: Path, storage: str = ""):
        """Creates the folder where it is missing; ConfigError where that cannot be, or the bucket's URL is none."""
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
        self.storage: Storage = open_storage(storage, self.root)
        self._next_bucket_sweep = 0.0

    # Places

    def incoming(self) -> Path:
        """A fresh name for an upload in flight."""
        return self.root / "incoming" / secrets.token_hex(16)

    def file(self, file_id: str) -> Path:
        """A local file with an upload's bytes; it is missing where they are."""
        return self._here(file_key(file_id))

    def medium(self, video_id: str, medium: str) -> Path:
        """A local file with the bytes of a job's input; it is missing where they are."""
        return self._here(f"{video_key(video_id)}{medium}")

    def video(self, video_id: str) -> Path:
        """A job's folder on this machine."""
        return self._local(video_key(video_id))

    def attempt(self, video_id: str, token: int) -> Path:
        """The local folder that an attempt writes its results to."""
        if self.storage.is_local:
            return self.video(video_id) / str(token)
        return self.root / "scratch" / _checked(video_id, "video") / str(token)

    def result(self, video_id: str, token: int, variant: str) -> Path:
        """A local file with a published result's bytes; it is missing where they are."""
        return self._here(f"{video_key(video_id)}{token}/{RESULTS[variant][0]}")

    def content(self, video_id: str, token: int, variant: str) -> Stored | None:
        """A result as it is stored; None where it is gone."""
        return self.storage.look(f"{video_key(video_id)}{token}/{RESULTS[variant][0]}")

    # Changes

    def keep_file(self, file_id: str, received: Path) -> None:
        """Stores an upload's bytes."""
        self.storage.adopt(received, file_key(file_id))

    def keep_media(self, video_id: str, media: dict[str, Path]) -> None:
        """Gives a job its own copy of its inputs: a link, or a copy inside the bucket, where that is possible."""
        for medium, source in media.items():
            target = f"{video_key(video_id)}{medium}"
            here = self.root / "here"
            if source.is_relative_to(here):
                self.storage.copy(str(source.relative_to(here)), target)
            else:
                self.storage.adopt(source, target)

    def publish(self, video_id: str, token: int) -> int:
        """Stores what an attempt has written, in every place but the job's row; returns its bytes."""
        kinds, size = dict(RESULTS.values()), 0
        for path in sorted(self.attempt(video_id, token).iterdir()):
            size += path.stat().st_size
            self._publish(path, f"{video_key(video_id)}{token}/{path.name}", kinds.get(path.name, ""))
        return size

    def _publish(self, path: Path, key: str, kind: str) -> None:
        # A clip has cost minutes of a GPU: more patience than anywhere else before it is given up.
        for left in reversed(range(PUBLISH_TRIES)):
            try:
                self.storage.adopt(path, key, content_type=kind)
            except StoreError:
                if not left:
                    raise
            else:
                return

    def drop_file(self, file_id: str) -> None:
        """Removes an upload; jobs made from it keep their own copy."""
        self.storage.drop([file_key(file_id)])
        self._local(file_key(file_id)).unlink(missing_ok=True)

    def drop_video(self, video_id: str) -> None:
        """Removes a job's inputs and results; a second call finds nothing to do."""
        shutil.rmtree(self.video(video_id), ignore_errors=True)
        if not self.storage.is_local:
            shutil.rmtree(self.root / "scratch" / video_id, ignore_errors=True)
            self.storage.drop([stored.key for stored in self.storage.walk(video_key(video_id))])

    def drop_attempts(self, video_id: str, keep: int | None) -> None:
        """Removes what other attempts than `keep` rendered, and what this machine holds in passing."""
        folder = self.video(video_id)
        for child in folder.iterdir() if folder.is_dir() else ():
            if child.is_dir() and child.name != str(keep):
                shutil.rmtree(child, ignore_errors=True)
        if self.storage.is_local:
            return
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(self.root / "scratch" / video_id, ignore_errors=True)
        prefix = video_key(video_id)
        attempts = [(stored.key, stored.key[len(prefix) :].partition("/")) for stored in self.storage.walk(prefix)]
        self.storage.drop([key for key, (token, slash, _) in attempts if slash and token != str(keep)])

    def sweep(self, videos: Iterable[str], files: Iterable[str], *, older_than_s: float = 3600.0) -> int:
        """Removes what a crash left between bytes and their row; returns how many entries went.

        `videos` and `files` are the ids that have a row. Only entries older than `older_than_s` seconds go: a younger
        one may be a request in flight.
        """
        known = {*videos, *files}
        limit = time.time() - older_than_s
        gone = self._sweep_folders(known, limit)
        if not self.storage.is_local and time.monotonic() >= self._next_bucket_sweep:
            self._next_bucket_sweep = time.monotonic() + BUCKET_SWEEP_S
            gone += self._sweep_bucket(known, limit)
        return gone

    def _sweep_folders(self, known: set[str], limit: float) -> int:
        gone = 0
        folders = ["incoming", "videos", "files"] if self.storage.is_local else ["incoming", "scratch"]
        for folder in folders:
            for child in (self.root / folder).iterdir() if (self.root / folder).is_dir() else ():
                if child.name in known or child.stat().st_mtime > limit:
                    continue
                shutil.rmtree(child, ignore_errors=True) if child.is_dir() else child.unlink(missing_ok=True)
                gone += 1
        self._forget_copies()
        return gone

    def _sweep_bucket(self, known: set[str], limit: float) -> int:
        orphans = [
            stored.key
            for prefix in ("videos/", "files/", "incoming/")
            for stored in self.storage.walk(prefix)
            if stored.modified <= limit and stored.key.split("/")[1] not in known
        ]
        self.storage.drop(orphans)
        return len(orphans)

    # Copies on this machine

    def _local(self, key: str) -> Path:
        return self.root / key if self.storage.is_local else self.root / "here" / key

    def _here(self, key: str) -> Path:
        path = self._local(key)
        if self.storage.is_local:
            return path
        if path.is_file():
            with suppress(OSError):
                os.utime(path)
            return path
        self._forget_copies()
        path.parent.mkdir(parents=True, exist_ok=True)
        os.utime(path.parent)  # or another thread would take it for an old one
        with suppress(FileNotFoundError):
            self.storage.fetch(key, path)
        return path

    def _forget_copies(self) -> None:
        limit = time.time() - HERE_S
        for folder, _, names in os.walk(self.root / "here", topdown=False):
            for name in names:
                path = Path(folder) / name
                with suppress(FileNotFoundError):
                    if path.stat().st_mtime <= limit:
                        path.unlink()
            with suppress(OSError):
                if Path(folder).stat().st_mtime <= limit:
                    Path(folder).rmdir()


def file_key(file_id: str) -> str:
    return f"files/{_checked(file_id, 'file')}"


def video_key(video_id: str) -> str:
    """The prefix of everything of one job, a slash at its end."""
    return f"videos/{_checked(video_id, 'video')}/"


def _checked(text: str, kind: str) -> str:
    assert is_id(text, kind), text
    return text
