"""One marionette clip: people, their motions and a place, each from a seed, rendered with their exact truth.

Shape suffixes: F frames, P persons, J joints (134), H W frame size.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.errors import ConfigError
from dynamictrl.mini.marionettes.caption import attributes_of, caption_of
from dynamictrl.mini.marionettes.character import CLOTH_COLOURS, Character, draw_character
from dynamictrl.mini.marionettes.figure import CLOTHES, CODES, figure_parts
from dynamictrl.mini.marionettes.motion import ACTIONS, perform
from dynamictrl.mini.marionettes.scene import (
    MARGIN,
    PLACES,
    WALL_COLOURS,
    Camera,
    Place,
    choose_place,
    grading,
    move_camera,
    paint_place,
)
from dynamictrl.mini.marionettes.score import Motion
from dynamictrl.mini.marionettes.shapes import Array, Brush, Part, View
from dynamictrl.mini.marionettes.skeleton import Body, pose_body
from dynamictrl.mini.marionettes.truth import boxes_of, keypoints_of, score_points
from dynamictrl.poses.pose import PoseSequence


@dataclass(frozen=True)
class MarionetteClip:
    """One shot and all that is true of it."""

    frames: NDArray[np.uint8]
    """[F, H, W, 3] RGB."""
    pose: PoseSequence
    """Exact keypoints; scores say what can be seen (marionettes_truth)."""
    persons: NDArray[np.uint8]
    """[F, H, W], 0 background, i = person i of `pose.track_ids`."""
    clothes: NDArray[np.uint8]
    """[F, H, W], 1 where any person's clothes are."""
    caption: str
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Actor:
    """One figure in a shot, ready to be painted."""

    who: Character
    body: Body
    motion: Motion
    view: View
    parts: list[Part]


@dataclass(frozen=True)
class MarionetteScene:
    """A shot by its seeds: who is in it, what they do, and where the camera stands."""

    character_seed: int
    motion_seed: int
    background_seed: int
    persons: int | None = None
    """1 or 2; None leaves it to the character seed (one in four shots shows two)."""
    action: str | None = None
    """A key of `marionettes_motion.ACTIONS`; None leaves it to the motion seed."""
    close_up: bool | None = None
    """Whether the frame cuts the figures off; None leaves it to the background seed (one in ten)."""
    place: str | None = None
    """A key of `scene.PLACES`; None leaves it to the background seed."""
    top: str | None = None
    """One of `character.CLOTH_COLOURS`, for the first person's top; None leaves it to the character seed."""
    wall: str | None = None
    """One of `scene.WALL_COLOURS`, in places with a wall to paint; None leaves it to the background seed."""

    def __post_init__(self):
        if self.persons not in (None, 1, 2):
            raise ConfigError(f"persons is {self.persons}; a marionette scene holds 1 or 2", param="persons")
        if self.action is not None and self.action not in ACTIONS:
            raise ConfigError(f"action is {self.action!r}; the actions are {sorted(ACTIONS)}", param="action")
        if self.place is not None and self.place not in PLACES:
            raise ConfigError(f"place is {self.place!r}; the places are {sorted(PLACES)}", param="place")
        if self.top is not None and self.top not in CLOTH_COLOURS:
            raise ConfigError(f"top is {self.top!r}; the colours are {', '.join(CLOTH_COLOURS)}", param="top")
        if self.wall is not None and self.wall not in WALL_COLOURS:
            raise ConfigError(f"wall is {self.wall!r}; the walls are {', '.join(WALL_COLOURS)}", param="wall")

    def people(self) -> list[Character]:
        """The persons of this shot; they depend on the character seed alone."""
        count = self.persons or 1 + int(np.random.default_rng([self.character_seed, 9]).uniform() < 0.25)
        drawn = [draw_character(np.random.default_rng([self.character_seed, index])) for index in range(count)]
        return [replace(drawn[0], top_colour=self.top), *drawn[1:]] if self.top else drawn

    def actions(self, count: int) -> list[str]:
        """What each of `count` persons does; two mostly do the same."""
        rng = np.random.default_rng([self.motion_seed, 7])
        names = [str(name) for name in rng.choice(sorted(ACTIONS), 2)]
        if rng.uniform() < 0.6:
            names[1] = names[0]
        return [self.action] * count if self.action else names[:count]

    def render(self, num_frames: int, height: int, width: int, fps: float, *, supersampling: int = 2) -> MarionetteClip:
        """Paints the shot; `supersampling` 1 is fastest, 2 is smooth, 3 is for large stills.

        Raises ConfigError where a size or a rate is not positive.
        """
        for name, value in (("num_frames", num_frames), ("height", height), ("width", width), ("fps", fps)):
            if value <= 0:
                raise ConfigError(f"{name} is {value}; it must be positive", param=name)
        times = np.arange(num_frames) / fps
        people = self.people()
        actions = self.actions(len(people))
        rng = np.random.default_rng([self.background_seed, 5])
        place = choose_place(np.random.default_rng([self.background_seed, 8]), self.place, self.wall)
        shot = _Shot(times, height, width, supersampling)
        shot.set_up(rng, self.close_up, people)
        actors = [
            shot.cast(rng, who, perform(np.random.default_rng([self.motion_seed, index]), action, times), index)
            for index, (who, action) in enumerate(zip(people, actions, strict=True))
        ]
        frames, label = shot.paint(rng, actors, place)
        words = caption_of(np.random.default_rng([self.background_seed, 6]), people, actions, place)
        return MarionetteClip(
            frames,
            shot.truth(actors, label),
            np.where(label > 0, (label >> 5) + 1, 0).astype(np.uint8),
            _IS_CLOTHES[label],
            words,
            attributes_of(people, actions, place),
        )


_IS_CLOTHES = np.zeros(256, np.uint8)
for _person in range(2):
    for _name in CLOTHES:
        _IS_CLOTHES[32 * _person + CODES[_name]] = 1


class _Shot:
    """The set of one shot: camera, marks on the floor, canvas."""

    def __init__(self, times: Array, height: int, width: int, supersampling: int):
        self.times, self.height, self.width, self.factor = times, height, width, supersampling
        self.camera: Camera
        self.light = (0.0, -1.0)
        self.marks: list[tuple[float, float, float]] = []

    def set_up(self, rng: np.random.Generator, close_up: bool | None, people: list[Character]) -> None:
        """Chooses where people stand, how large they are, and how the camera moves."""
        close = bool(rng.uniform() < 0.1) if close_up is None else close_up
        count = len(people)
        room = self.width * (1.02 if count == 1 else 0.66)
        size = min(self.height * rng.uniform(0.64, 0.76), room * rng.uniform(0.95, 1.08))
        ground = self.height * rng.uniform(0.87, 0.93)
        apart = min(0.27 * self.width, 0.62 * size)
        for index in range(count):
            side = 0.0 if count == 1 else (-1.0, 1.0)[index]
            x = self.width / 2 + side * apart + rng.normal(0, 0.02) * self.width
            nearer = rng.uniform(-0.02, 0.03) * self.height * (count - 1)
            self.marks.append((x, ground + nearer, size * (1 + 0.8 * nearer / self.height)))
        angle = rng.uniform(-2.4, -0.7)
        self.light = (float(np.cos(angle)), float(np.sin(angle)))
        zoom, centre = 1.0, (self.width / 2, self.height / 2)
        if close:
            zoom = rng.uniform(1.35, 1.9)
            centre = (self.width / 2, ground - size * rng.uniform(0.7, 1.0))
        self.camera = move_camera(rng, self.times, self.height, self.width, zoom, centre)

    def cast(self, rng: np.random.Generator, who: Character, motion: Motion, index: int) -> _Actor:
        """Puts a performer on a mark; the camera walks along with the first one."""
        body = pose_body(who, motion)
        x, y, size = self.marks[index]
        size *= who.height
        if "travel" in motion:
            path = _smooth_path(self.times, body.joints["pelvis"][:, [0, 2]])
            body.shift(np.stack([-path[:, 0], np.zeros_like(self.times), -path[:, 1]], axis=-1))
            if index == 0:
                self.camera.shift_F2[:, 0] -= path[:, 0] * size * self.camera.zoom_F
                self.walked_F = path[:, 0] * size
        origin = np.repeat([[x, y]], len(self.times), axis=0)
        # Performers stay in the picture; what the camera's walk moves is the place behind them.
        still = Camera(self.camera.zoom_F, self.camera.shift_F2.copy(), self.camera.centre)
        still.shift_F2[:, 0] += getattr(self, "walked_F", np.zeros(1)) * self.camera.zoom_F
        view = View(size * self.camera.zoom_F * self.factor, still.apply(origin) * self.factor, self.light)
        return _Actor(who, body, motion, view, figure_parts(who, body, view, motion))

    def paint(
        self, rng: np.random.Generator, actors: list[_Actor], place: Place
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """All frames [F, H, W, 3] and the label map [F, H, W] (32 * person + part)."""
        detail = 1.5 if self.height <= 256 else 1.0
        backdrop = paint_place(rng, place, self.height, self.width, detail)
        light = grading(rng, place.name)
        brushes = [
            Brush(actor.parts, {name: code + 32 * index for name, code in CODES.items()}, 1 / self.factor)
            for index, actor in enumerate(actors)
        ]
        order = sorted(range(len(actors)), key=lambda index: self.marks[index][1])
        frames = np.empty((len(self.times), self.height, self.width, 3), np.uint8)
        label = np.zeros((len(self.times), self.height, self.width), np.uint8)
        size = (self.width * self.factor, self.height * self.factor)
        offset = (MARGIN * self.width, MARGIN * self.height)
        for frame in range(len(self.times)):
            matrix = self.camera.matrix(frame, detail, offset, self.factor)
            canvas: Any = cv2.warpAffine(
                backdrop, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
            )
            for actor in actors:
                _cast_shadow(canvas, actor, frame)
            for index in order:
                brushes[index].paint(frame, canvas, label[frame])
            if self.factor > 1:
                canvas = cv2.resize(canvas, (self.width, self.height), interpolation=cv2.INTER_AREA)
            cv2.LUT(canvas, light, dst=frames[frame])
        return frames, label

    def truth(self, actors: list[_Actor], label: NDArray[np.uint8]) -> PoseSequence:
        """Exact poses in shares of the frame."""
        size = np.array([self.width, self.height], np.float64)
        points, scores, boxes = [], [], []
        for index, actor in enumerate(actors):
            pixels, facing = keypoints_of(actor.who, actor.body, actor.view, actor.motion)
            pixels = pixels / self.factor
            points.append((pixels / size).astype(np.float32))
            scores.append(score_points(pixels, facing, label, index))
            boxes.append(boxes_of(actor.parts, self.width * self.factor, self.height * self.factor))
        ids = np.arange(1, len(actors) + 1, dtype=np.int32)
        return PoseSequence(np.stack(points, axis=1), np.stack(scores, axis=1), np.stack(boxes, axis=1), ids)


def _smooth_path(times: Array, path: Array) -> Array:
    """A path [F, 2] without the unevenness of its steps: a low polynomial over time."""
    degree = min(2, len(times) - 1)
    basis = np.vander(times, degree + 1)
    return basis @ np.linalg.lstsq(basis, path, rcond=None)[0]


def _shadow_shape() -> NDArray[np.float32]:
    y, x = np.mgrid[-1:1:33j, -1:1:65j]
    return (1 - 0.42 * np.clip(1.15 - np.hypot(x, y), 0, 1)).astype(np.float32)


_SHADOW = _shadow_shape()


def _cast_shadow(canvas: NDArray[np.uint8], actor: _Actor, frame: int) -> None:
    """A soft dark patch on the floor below the figure, paler the higher it jumps."""
    feet = [actor.body.joints[f"{side}_ankle"][frame] for side in ("left", "right")]
    middle, height = (feet[0] + feet[1]) / 2, min(feet[0][1], feet[1][1])
    scale = actor.view.scale_F[frame]
    half = scale * (0.15 + 0.5 * abs(feet[0][0] - feet[1][0]) + 0.1 * abs(feet[0][2] - feet[1][2]))
    x, y = actor.view.origin_F2[frame] + (middle[0] * scale, 0.012 * scale)
    left, right, top, bottom = round(x - half), round(x + half), round(y - 0.26 * half), round(y + 0.26 * half)
    if right - left < 2 or bottom - top < 2:
        return
    shape = cv2.resize(_SHADOW, (right - left, bottom - top))
    inner = shape[max(0, -top) : max(0, canvas.shape[0] - top), max(0, -left) : max(0, canvas.shape[1] - left)]
    spot = canvas[max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
    if inner.size and spot.size:
        strength = float(np.clip(1 - 3 * (height - 0.04), 0.25, 1))
        spot[:] = (spot * (1 - strength * (1 - inner[..., None]))).astype(np.uint8)


def sample_clip(
    rng: np.random.Generator,
    num_frames: int,
    height: int,
    width: int,
    fps: float,
    *,
    persons: int | None = None,
    supersampling: int = 2,
) -> MarionetteClip:
    """A random single shot: what training streams. The figures are mostly whole in the frame, sometimes cut off."""
    seeds = [int(seed) for seed in rng.integers(0, 2**31, 3)]
    return MarionetteScene(*seeds, persons=persons).render(num_frames, height, width, fps, supersampling=supersampling)
