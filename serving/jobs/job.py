"""What a job is: what was wished, what that comes to, and the states it passes through. No HTTP, no Ray, no torch."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from dynamictrl import geometry
from dynamictrl.errors import InputError
from serving.config import Defaults, Limits

Medium = Literal["input_reference", "driving_video", "pose_video", "mask"]
MEDIA: tuple[Medium, ...] = ("input_reference", "driving_video", "pose_video", "mask")
"""What a sender may attach: the person image, one of the two videos, and a mask of the image."""
CLIP_BEFORE = "clip_before"
"""What an extension's inputs have besides: the clip that it goes on from."""

QUALITIES = ("exact", "balanced", "fast")
"""Ways to render (`serving.rendering.tiers`): the later, the quicker and the farther from the first."""


class Status(StrEnum):
    """queued -> in_progress -> completed | failed | cancelled; a dead worker's job goes back to queued."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (Status.COMPLETED, Status.FAILED, Status.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a sender asked for; None is left to the service."""

    prompt: str
    width: int | None = None
    height: int | None = None
    seconds: float | None = None
    num_frames: int | None = None
    fps: float | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    quality: str = "exact"
    keep_audio: bool = False
    loras: tuple[tuple[str, float], ...] = ()
    """Names of LoRAs and the weight of each."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is rendered, with nothing left open: the same settings and media give the same clip."""

    prompt: str
    width: int
    height: int
    num_frames: int
    fps: float
    """Frames per second of the clip, and of the driving video after resampling."""
    resample: bool
    """Whether the video is resampled to `fps`; otherwise its own frames are taken one by one."""
    num_inference_steps: int
    guidance_scale: float
    seed: int
    quality: str = "exact"
    keep_audio: bool = False
    """Whether the clip gets the sound of the stretch of video that it was rendered from."""
    start_frame: int = 0
    """Frames of the motion that are passed over first: an extension goes on where the clip before it ended."""
    frames_before: int = 0
    """Frames of the clip that this one goes on from; its last is this one's first, so they are joined there."""
    loras: tuple[tuple[str, float], ...] = ()
    """Names of LoRAs that the model wears, and the weight of each."""

    def __post_init__(self):
        # From the store they come as JSON's lists.
        object.__setattr__(self, "loras", tuple((str(name), float(weight)) for name, weight in self.loras))

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def total_frames(self) -> int:
        """Frames of the whole clip, what it goes on from included."""
        return self.frames_before + self.num_frames - 1 if self.frames_before else self.num_frames

    @property
    def seconds(self) -> str:
        """Length of the whole clip as the Videos API has it: a string."""
        return f"{self.total_frames / self.fps:.3f}".rstrip("0").rstrip(".")

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class VideoFacts:
    """What is known of a driving or pose video before it is decoded."""

    width: int
    height: int
    fps: float
    frames: int
    """Frames it has, by its container's index; 0 where that is not known."""
    duration: float
    """Seconds; 0 where that is not known."""

    def available(self, fps: float | None) -> int | None:
        """Frames it gives at its own rate, or resampled to `fps`, by its container's word, if it has one."""
        if fps is None and self.frames:
            return self.frames
        length = self.duration or self.frames / self.fps
        return int(length * (fps or self.fps) + 0.5) or None

    def after(self, start_frame: int, fps: float | None) -> VideoFacts:
        """What is left behind so many frames; InputError where that is too little for any clip."""
        available = self.available(fps)
        if available is None:
            return self
        if available - start_frame < 5:
            raise InputError(
                f"the motion goes on for {max(0, available - start_frame)} frames more, and a clip has at least 5; "
                "give a driving_video or pose_video with the motion to come",
                code="too_few_frames",
                param="num_frames",
            )
        seconds = start_frame / (fps or self.fps)
        frames = max(1, self.frames - round(seconds * self.fps)) if self.frames else 0
        return replace(self, frames=frames, duration=max(0.0, self.duration - seconds))


@dataclass(frozen=True, kw_only=True)
class AnimationJob:
    """One clip to be rendered: settings and the files it is made from."""

    settings: Settings
    image: Path
    """The person."""
    driving_video: Path | None = None
    """A video of the motion; its poses are estimated and aligned to the image."""
    pose_video: Path | None = None
    """A ready-made DWPose rendering of the motion, taken as it is."""
    mask: Path | None = None
    """White where the image is kept; the rest of it is blacked out and drawn anew from the prompt."""
    clip_before: Path | None = None
    """The clip that this one goes on from; the result begins with it."""
    model: str = ""
    """Name of the model that renders it; empty is the engine's default."""
    vae: Literal["", "whole", "tiled"] = ""
    """Whether the VAE works in tiles, which shows in the frames; empty leaves it to the memory there is."""

    def __post_init__(self):
        check_media({"input_reference": self.image, "driving_video": self.driving_video, "pose_video": self.pose_video})

    @property
    def sound_source(self) -> Path | None:
        """The video whose sound the clip keeps, if it shall."""
        return (self.driving_video or self.pose_video) if self.settings.keep_audio else None


def check_media(given: Mapping[Any, object | None]) -> None:
    """Refuses a job without its person image, or without exactly one video."""
    if not given.get("input_reference"):
        raise InputError(
            "there is no person image: give `input_reference`", code="missing_input_reference", param="input_reference"
        )
    videos = [name for name in ("driving_video", "pose_video") if given.get(name)]
    if not videos:
        raise InputError(
            "there is no motion: give `driving_video` (a video of a person) or `pose_video` (a DWPose rendering)",
            code="missing_video",
            param="driving_video",
        )
    if len(videos) == 2:
        raise InputError(
            "`driving_video` and `pose_video` were both given; the motion can come from one only",
            code="two_videos",
            param="pose_video",
        )


def settle(wish: Wish, facts: VideoFacts, *, is_pose_video: bool, defaults: Defaults, limits: Limits) -> Settings:
    """Every open question answered, every bound checked; raises InputError with the parameter at fault.

    Without a wished size the clip takes a pose video's own, or with a driving video the service's default.
    """
    check_wish(wish, limits)
    fps = wish.fps or facts.fps
    width, height = _size(wish, facts, is_pose_video, defaults)
    _check_output(width, height, limits)
    return Settings(
        prompt=wish.prompt,
        width=width,
        height=height,
        num_frames=_num_frames(wish, facts, fps, defaults, limits),
        fps=fps,
        resample=wish.fps is not None,
        num_inference_steps=wish.num_inference_steps or defaults.num_inference_steps,
        guidance_scale=defaults.guidance_scale if wish.guidance_scale is None else wish.guidance_scale,
        seed=secrets.randbits(31) if wish.seed is None else wish.seed,
        quality=wish.quality,
        keep_audio=wish.keep_audio,
        loras=wish.loras,
    )


def check_wish(wish: Wish, limits: Limits) -> None:
    """Refuses what no video could make right: called before any file is looked at."""
    if len(wish.prompt) > limits.prompt_chars:
        raise InputError(
            f"the prompt has {len(wish.prompt)} characters; at most {limits.prompt_chars} are taken",
            code="prompt_too_long",
            param="prompt",
        )
    if "\0" in wish.prompt or any("\ud800" <= letter <= "\udfff" for letter in wish.prompt):
        raise InputError(
            "the prompt holds a NUL or half a character, which no text has; send UTF-8",
            code="bad_prompt",
            param="prompt",
        )
    if wish.quality not in QUALITIES:
        raise InputError(
            f"quality {wish.quality!r} is not offered; there is {', '.join(QUALITIES)}", code="quality", param="quality"
        )
    if wish.width is not None and wish.height is not None:
        geometry.check_size(wish.height, wish.width)
        _check_output(wish.width, wish.height, limits)
    if wish.num_frames is not None:
        geometry.check_num_frames(wish.num_frames)
        _in_range("num_frames", wish.num_frames, 5, limits.num_frames)
    _in_range("num_inference_steps", wish.num_inference_steps, 1, limits.num_inference_steps)
    _in_range("guidance_scale", wish.guidance_scale, 0.0, 30.0)
    _in_range("seed", wish.seed, 0, 2**63 - 1)
    _in_range("fps", wish.fps, 1.0, 120.0)
    _in_range("seconds", wish.seconds, 0.1, limits.video_seconds)
    if wish.seconds is not None and wish.num_frames is not None:
        raise InputError(
            "`seconds` and `num_frames` were both given; the length can be said in one way only",
            code="seconds_and_num_frames",
            param="seconds",
        )


def _in_range(name: str, value: float | None, low: float, high: float) -> None:
    # Written so that NaN, which compares false with everything, is refused too.
    if value is not None and not low <= value <= high:
        raise InputError(f"{name} is {value}; it must be from {low} to {high}", code=f"bad_{name}", param=name)


def _size(wish: Wish, facts: VideoFacts, is_pose_video: bool, defaults: Defaults) -> tuple[int, int]:
    if wish.width is not None and wish.height is not None:
        return wish.width, wish.height
    if is_pose_video:
        return geometry.nearest_size(facts.width), geometry.nearest_size(facts.height)
    return defaults.width, defaults.height


def _check_output(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.output_pixels:
        raise InputError(
            f"the size {width}x{height} has {width * height} pixels; at most {limits.output_pixels} are rendered",
            code="size_too_large",
            param="size",
        )


def _num_frames(wish: Wish, facts: VideoFacts, fps: float, defaults: Defaults, limits: Limits) -> int:
    available = facts.available(wish.fps)
    asked = wish.num_frames
    if wish.seconds is not None:
        asked = geometry.nearest_frames(round(wish.seconds * fps))
    if asked is None:
        asked = defaults.num_frames
        if available is not None:
            asked = min(asked, geometry.legal_frames_below(available) or asked)
    _in_range("num_frames", asked, 5, limits.num_frames)
    # Containers lie a little: what is clearly too much is refused here, the rest once the frames have been decoded.
    if available is not None and asked > available + 2:
        geometry.consecutive_indices(available, asked)
    return asked
