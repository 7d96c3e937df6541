"""The files that `python -m serving animate` names, looked at in an instant: before a model, before a network."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from dynamictrl.errors import InputError


class NamedFiles(Protocol):
    """What both ways of `animate` ask for."""

    @property
    def image(self) -> Path | None: ...
    @property
    def driving(self) -> Path | None: ...
    @property
    def pose_video(self) -> Path | None: ...
    @property
    def mask(self) -> Path | None: ...
    @property
    def out(self) -> Path: ...


def check_paths(wish: NamedFiles) -> None:
    """Refuses inputs that are not there and an output that could not be written."""
    if (wish.driving is None) == (wish.pose_video is None):
        raise InputError("give one of --driving (a video of a person) and --pose-video (a DWPose rendering)")
    for name in ("image", "driving", "pose_video", "mask"):
        path = getattr(wish, name)
        if path is not None and not path.is_file():
            raise InputError(f"--{name.replace('_', '-')} {path}: there is no such file", code="not_found", param=name)
    if wish.out.suffix.lower() != ".mp4":
        raise InputError(f"--out {wish.out}: the clip is written as .mp4; give a name that ends so", param="out")
    if wish.out.is_dir() or not wish.out.absolute().parent.is_dir():
        raise InputError(f"--out {wish.out}: its folder does not exist; make it first", param="out")
