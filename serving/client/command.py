"""`python -m serving animate --url URL`: one clip from a running service, with the flags of the local command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serving.named_files import check_paths

Show = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class AnimateOnline:
    """Renders one clip on a running service: the person of an image, moving as a video does."""

    url: str
    """The service, such as http://127.0.0.1:8000."""
    image: Path
    """The person: any image file."""
    prompt: str
    """What the clip shows."""
    out: Path
    """The mp4 to write."""
    api_key: str = ""
    """Key of the service; empty takes DYNAMICTRL_API_KEY of the environment."""
    driving: Path | None = None
    """A video of a person whose motion is taken over."""
    pose_video: Path | None = None
    """A ready-made DWPose rendering of the motion, instead of --driving."""
    mask: Path | None = None
    """An image of the person image's size: white is kept, the rest is drawn anew from the prompt."""
    model: str | None = None
    """A name of the service's /v1/models. Default: the one it serves."""
    size: str | None = None
    """WIDTHxHEIGHT in pixels, multiples of 16. Default: the pose video's own size, or the service's."""
    num_frames: int | None = None
    """5, 9, 13, ... Default: as many as the video has, up to the service's length."""
    num_inference_steps: int | None = None
    """Denoising steps. Default: the service's."""
    guidance_scale: float | None = None
    """Strength of the prompt; 1 turns guidance off. Default: the service's."""
    seed: int | None = None
    """The same seed and inputs give the same clip. Default: drawn by the service."""
    fps: float | None = None
    """Frames per second of the clip; the video is resampled to it. Default: the video's own."""
    quality: Literal["exact", "balanced", "fast"] = "exact"
    """How it is rendered."""
    keep_audio: bool = False
    """The clip keeps the video's sound, cut to exactly its frames."""
    timeout: float | None = None
    """Seconds after which the job is cancelled. Default: none; Ctrl-C cancels it, too."""


def animate_online(wish: AnimateOnline, show: Show) -> str:
    """Renders one clip and writes it, whole or not at all; returns a note for people."""
    from serving.client import Client, Job

    check_paths(wish)
    names = ("model", "size", "num_frames", "num_inference_steps", "guidance_scale", "seed", "fps", "quality")
    fields = {name: getattr(wish, name) for name in names}
    media = {"driving": wish.driving, "pose_video": wish.pose_video, "mask": wish.mask}

    def on_progress(job: Job) -> None:
        waits = job.status == "queued" and job.queue_position
        show(f"queued ({job.queue_position})" if waits else job.stage, job.progress, 100)

    with Client(wish.url, wish.api_key or None) as client:
        show("sending", 0, 100)
        job = client.animate(
            wish.image, wish.prompt, timeout=wish.timeout, on_progress=on_progress, keep_audio=wish.keep_audio,
            **media, **fields
        )  # fmt: skip
        client.download(job.id, wish.out)
    show("written", 100, 100)
    return f"{job.id}: seed {job.seed}, {job.num_frames} frames of {job.size}"
