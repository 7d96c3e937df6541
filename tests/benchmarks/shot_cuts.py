"""How many shot changes are found, and how many found are none: a labelled set, made here from pictures that move.

    python tests/benchmarks/shot_cuts.py [--videos 12] [--clips FOLDER]

Each video is a chain of scenes with known changes between them (hard cuts, dissolves, fades through black, jump cuts
within a scene) and known disturbances that are no change (flashes, lights that change colour, fast pans and zooms).
With --clips, real clips that hold no cut are chained too, their ends being the cuts. A found change counts where it
lies within 0.2 s of a true one (of a gradual one: within it).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.media.shots import AdaptiveShots, ShotDetector

FPS, HEIGHT, WIDTH = 25, 144, 256
NEAR = 0.2
"""Seconds between a true change and one that counts as found."""

Frames = NDArray[np.uint8]


@dataclass
class Labelled:
    """A video with what is true about it."""

    kind: str
    frames: Frames
    changes: list[tuple[float, float]] = field(default_factory=list)
    """(start, end) of every change in seconds; equal for hard cuts."""


def scene(rng: np.random.Generator, frames: int, speed: float = 1.5) -> Frames:
    """A textured world seen by a moving camera, with three textured things that move on their own."""
    world = _texture(rng, HEIGHT * 3, WIDTH * 3)
    things = [(_texture(rng, s, s), rng.uniform(0.1, 0.7, 2), rng.normal(0, 3, 2)) for s in rng.integers(20, 60, 3)]
    heading, place = rng.normal(0, speed, 2), np.array([HEIGHT, WIDTH], float)
    shown = []
    for i in range(frames):
        y, x = (np.clip(place + heading * i, 0, [2 * HEIGHT, 2 * WIDTH])).astype(int)
        picture = world[y : y + HEIGHT, x : x + WIDTH].copy()
        for thing, start, way in things:
            _put(picture, thing, start * [HEIGHT, WIDTH] + way * i + 6 * np.sin(i / 5))
        shown.append(picture)
    noisy = np.stack(shown).astype(np.int16) + rng.normal(0, 2, (frames, HEIGHT, WIDTH, 1)).astype(np.int16)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _texture(rng: np.random.Generator, height: int, width: int) -> Frames:
    """Colour that varies at several sizes, as things do."""
    total = np.zeros((height, width, 3), np.float32)
    for cell in (4, 9, 24, 70):
        coarse = rng.normal(0, 1, (height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        total += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * cell**0.35
    tint = rng.uniform(60, 190, 3)
    return np.clip(tint + total * rng.uniform(10, 26), 0, 255).astype(np.uint8)


def _put(picture: Frames, thing: Frames, place: NDArray[np.float64]) -> None:
    side = len(thing)
    y, x = int(np.clip(place[0], 0, HEIGHT - side)), int(np.clip(place[1], 0, WIDTH - side))
    picture[y : y + side, x : x + side] = thing


def videos(count: int, seed: int = 0) -> Iterator[Labelled]:
    """`count` videos of each kind."""
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        yield _joined("hard cut", [scene(rng, int(rng.integers(25, 50))) for _ in range(4)], 0)
        yield _joined("dissolve", [scene(rng, 50) for _ in range(3)], int(rng.integers(8, 25)))
        yield _joined("fade through black", _faded(rng), 0, slack=0.5)
        yield _joined("cut between like scenes", _alike(rng), 0)
        yield Labelled("flash", _flashed(rng))
        yield Labelled("lights change", _relit(rng))
        yield Labelled("fast pan", scene(rng, 60, speed=7.0))
        yield Labelled("zoom", _zoomed(rng))


def _joined(kind: str, scenes: list[Frames], overlap: int, slack: float = 0.0) -> Labelled:
    """Scenes one after the other, or melting into each other over `overlap` frames."""
    whole, changes = scenes[0], []
    for following in scenes[1:]:
        at = len(whole) / FPS
        if overlap:
            share = np.linspace(0, 1, overlap + 2)[1:-1, None, None, None]
            mixed = (whole[-overlap:] * (1 - share) + following[:overlap] * share).astype(np.uint8)
            whole = np.concatenate([whole[:-overlap], mixed, following[overlap:]])
            changes.append((at - overlap / FPS, at))
        else:
            whole = np.concatenate([whole, following])
            changes.append((at - slack, at + slack))
    return Labelled(kind, whole, changes)


def _faded(rng: np.random.Generator) -> list[Frames]:
    ramp = np.concatenate([np.linspace(0, 1, 12), np.ones(26), np.linspace(1, 0, 12)])[:, None, None, None]
    return [(scene(rng, 50) * ramp).astype(np.uint8) for _ in range(3)]


def _alike(rng: np.random.Generator) -> list[Frames]:
    """Scenes of the same colours: only the texture differs."""
    grey = [scene(rng, 40).astype(np.float32) for _ in range(3)]
    return [np.clip((g - g.mean()) / g.std() * 22 + 110, 0, 255).astype(np.uint8) for g in grey]


def _flashed(rng: np.random.Generator) -> Frames:
    frames = scene(rng, 80).astype(np.int16)
    for at in rng.choice(np.arange(15, 70, 12), 3, replace=False):
        for i in range(int(rng.integers(1, 4))):
            frames[at + i] = frames[at + i] * 0.3 + 175
    return np.clip(frames, 0, 255).astype(np.uint8)


def _relit(rng: np.random.Generator) -> Frames:
    frames = scene(rng, 80).astype(np.float32)
    for at in (25, 50):
        frames[at:] *= rng.uniform(0.45, 1.3, 3)
        frames[at:] += rng.uniform(-20, 30, 3)
    return np.clip(frames, 0, 255).astype(np.uint8)


def _zoomed(rng: np.random.Generator) -> Frames:
    still = _texture(rng, HEIGHT * 2, WIDTH * 2)
    shown = []
    for i in range(60):
        share = 0.95 ** (i / 2)
        h, w = int(2 * HEIGHT * share), int(2 * WIDTH * share)
        y, x = HEIGHT - h // 2, WIDTH - w // 2
        shown.append(cv2.resize(still[y : y + h, x : x + w], (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA))
    return np.stack(shown).astype(np.uint8)


def chained(folder: Path) -> Iterator[Labelled]:
    """Real clips one after the other, two at a time."""
    from dynamictrl.media.video import iter_frames

    shown = []
    for path in sorted(folder.iterdir()):
        frames = [
            f for (_, f), _ in zip(iter_frames(path, max_pixels=WIDTH * HEIGHT, fps=FPS), range(60), strict=False)
        ]
        yield Labelled("real clip", np.stack(frames))
        shown.append(np.stack([cv2.resize(f, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for f in frames]))
    for first, second in zip(shown, shown[1:] + shown[:1], strict=True):
        yield _joined("real clips, cut", [first, second], 0)
        yield _joined("real clips, dissolve", [first, second], 15)


def found_by(detector: ShotDetector, video: Labelled) -> list[float]:
    """Seconds at which the detector sees a change: the middle of what lies between two shots."""
    for index, frame in enumerate(video.frames):
        detector.add(index / FPS, frame)
    shots = detector.shots(len(video.frames) / FPS)
    return [(a.end + b.start) / 2 for a, b in zip(shots, shots[1:], strict=False)]


def tally(found: list[float], changes: list[tuple[float, float]]) -> tuple[int, int]:
    """(true changes found, found that are none)."""
    hit = [any(a - NEAR <= f <= b + NEAR for f in found) for a, b in changes]
    false = [f for f in found if not any(a - NEAR <= f <= b + NEAR for a, b in changes)]
    return sum(hit), len(false)


PLAIN = {"threshold": 3.5, "window": 3, "least_change": 15.0, "shortest": 0.6}
DETECTORS = {
    "PySceneDetect's adaptive detector": lambda: AdaptiveShots(**PLAIN, same_shot=2.0),
    "the same, with a second opinion": lambda: AdaptiveShots(**PLAIN, same_shot=0.4),
    "the default: looser, with it": lambda: AdaptiveShots(
        **{**PLAIN, "threshold": 2.0, "least_change": 6.0}, same_shot=0.4
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=12, help="of each kind")
    parser.add_argument("--clips", type=Path, help="folder of real clips without a cut")
    arguments = parser.parse_args()
    made = [*videos(arguments.videos), *(chained(arguments.clips) if arguments.clips else ())]
    for name, make in DETECTORS.items():
        rows: dict[str, list[int]] = {}
        began = time.process_time()
        for video in made:
            hit, false = tally(found_by(make(), video), video.changes)
            row = rows.setdefault(video.kind, [0, 0, 0])
            row[:] = row[0] + hit, row[1] + len(video.changes), row[2] + false
        seconds = time.process_time() - began
        hits, true, false = (sum(row[i] for row in rows.values()) for i in range(3))
        frames = sum(len(video.frames) for video in made)
        print(f"\n{name}: recall {hits / true:.3f}, precision {hits / max(1, hits + false):.3f}, ", end="")
        print(f"{1000 * seconds / frames:.2f} ms of CPU per frame of {WIDTH}x{HEIGHT}, {len(made)} videos")
        for kind, (h, t, f) in rows.items():
            print(f"  {kind:26} found {h:4} of {t:4}   false {f:4}")


if __name__ == "__main__":
    main()
