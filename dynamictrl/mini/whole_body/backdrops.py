"""Pictures of nobody: painted places, and procedural ones with the statistics of photographs.

Overlapping textured shapes of all sizes ("dead leaves", Lee, Mumford and Huang 2001) and noise whose amplitude falls
with frequency look to a network much as photographs do: edges at all scales, occlusion, soft gradients.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.mini.marionettes.character import SKINS
from dynamictrl.mini.marionettes.scene import PLACES, choose_place, grading, paint_place

Picture = NDArray[np.float32]


def draw_backdrop(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """One picture [side, side, 3] RGB without people."""
    kind = rng.uniform()
    if kind < 0.45:
        return _place(rng, side)
    if kind < 0.85:
        picture = leaves(rng, side)
    elif kind < 0.95:
        picture = 128 + rng.uniform(10, 60) * noise(rng, side, rng.uniform(0.7, 1.8), colours=3)
    else:
        cells = rng.integers(1, 24, 2)
        blotches = rng.uniform(0, 255, (*cells, 3)).astype(np.float32)
        picture = np.asarray(cv2.resize(blotches, (side, side), interpolation=cv2.INTER_CUBIC), np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _place(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """Part of a marionettes' place, as their camera would show it."""
    # Every kind of place as often as the next, parasols and plants above all.
    place = choose_place(rng, str(rng.choice(sorted(PLACES))))
    aspect = float(np.exp(rng.uniform(-0.55, 0.55)))
    canvas = paint_place(rng, place, round(0.8 * side * aspect), round(0.8 * side / aspect), 1.0)
    share = rng.uniform(0.55, 1.0)
    high, wide = round(share * canvas.shape[0]), round(share * canvas.shape[1])
    top, left = int(rng.integers(canvas.shape[0] - high + 1)), int(rng.integers(canvas.shape[1] - wide + 1))
    part = cv2.LUT(canvas[top : top + high, left : left + wide], grading(rng, place.name))
    view = cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(view[:, ::-1] if rng.uniform() < 0.5 else view, np.uint8)


def noise(rng: np.random.Generator, side: int, slope: float, colours: int = 1) -> Picture:
    """Noise [side, side, colours] of mean 0 and deviation 1 whose amplitude falls with frequency to the `slope`."""
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    fall = np.maximum(np.hypot(rows, columns), 1 / side) ** -slope
    fall[0, 0] = 0
    waves = rng.normal(size=(colours, *fall.shape)) + 1j * rng.normal(size=(colours, *fall.shape))
    field = np.fft.irfft2(waves * fall, s=(side, side)).transpose(1, 2, 0)
    if colours == 3:
        # Colours of the world mostly rise and fall together.
        field = 0.75 * field.mean(axis=-1, keepdims=True) * np.sqrt(3) + 0.45 * field
    return (field / field.std()).astype(np.float32)


def leaves(rng: np.random.Generator, side: int) -> Picture:
    """Overlapping textured shapes from large to small under one light, sharper in some places than in others."""
    palette = _palette(rng)
    picture = np.empty((side, side, 3), np.float32)
    picture[:] = palette[0]
    picture += _ramp(rng, side)
    count = int(np.exp(rng.uniform(np.log(8), np.log(500))))
    # From boards and walls to foliage: the smallest and how fast large ones become rare.
    sizes = np.sort(rng.uniform(0.008, 0.04) * (1 - rng.uniform(0, 0.99, count)) ** -rng.uniform(0.5, 1.0))[::-1] * side
    for index, size in enumerate(np.minimum(sizes, 0.6 * side)):
        colour = palette[int(rng.integers(len(palette)))] * rng.uniform(0.75, 1.2) + rng.normal(0, 6, 3)
        _leaf(rng, picture, float(size), colour)
        if index == count // 2 and rng.uniform() < 0.5:
            picture[:] = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.8, 4.0))
    grain = noise(rng, side, rng.uniform(0.6, 1.4))
    return (picture * (1 + rng.uniform(0.02, 0.16) * grain) + rng.uniform(0, 8) * grain).astype(np.float32)


def _palette(rng: np.random.Generator) -> NDArray[np.float64]:
    """A few colours that go together, now and then with skin among them."""
    centre, spread = rng.uniform(40, 210, 3) * 0.5 + rng.uniform(40, 210) * 0.5, rng.uniform(10, 60)
    colours = centre + spread * rng.normal(size=(int(rng.integers(3, 9)), 3)) + rng.normal(0, 35, (1, 1))
    if rng.uniform() < 0.3:
        skin = list(SKINS.values())[int(rng.integers(len(SKINS)))]
        colours = np.concatenate([colours, np.array([skin], np.float64)])
    grey = colours.mean(axis=1, keepdims=True)
    return np.clip(grey + rng.uniform(0.1, 1.0) * (colours - grey), 5, 250)


def _ramp(rng: np.random.Generator, side: int) -> Picture:
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0, 45)
    return (depth * (np.cos(angle) * x + np.sin(angle) * y))[..., None].astype(np.float32)


def _leaf(rng: np.random.Generator, picture: Picture, size: float, colour: NDArray[np.float64]) -> None:
    """One ellipse, board, bar, blob, or bundle of stripes."""
    side = len(picture)
    x, y = rng.uniform(-0.05, 1.05, 2) * side
    angle = rng.uniform(0, 180) if rng.uniform() < 0.5 else float(rng.choice([0, 90]))
    long, short = size, size * rng.uniform(0.12, 1.0)
    paint = tuple(float(c) for c in colour)
    kind = rng.uniform()
    if kind < 0.35:
        axes = (max(int(long), 1), max(int(short), 1))
        cv2.ellipse(picture, (int(x), int(y)), axes, angle, 0, 360, paint, -1, cv2.LINE_AA)
    elif kind < 0.75:
        corners = cv2.boxPoints(((float(x), float(y)), (2 * long, 2 * short), angle))
        cv2.fillPoly(picture, [corners.astype(np.int32)], paint, cv2.LINE_AA)
    elif kind < 0.9:
        turns = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(5, 11))))
        reach = size * rng.uniform(0.4, 1.1, len(turns))
        corners = np.stack([x + reach * np.cos(turns), y + reach * np.sin(turns)], axis=-1)
        cv2.fillPoly(picture, [corners.astype(np.int32)], paint, cv2.LINE_AA)
    else:
        step = max(size * 0.25, 3.0)
        tilt = np.deg2rad(angle)
        ahead, across = np.array([np.cos(tilt), np.sin(tilt)]), np.array([-np.sin(tilt), np.cos(tilt)])
        for k in range(int(rng.integers(3, 8))):
            start = np.array([x, y]) + across * step * k
            ends = [tuple(int(v) for v in start + sign * long * ahead) for sign in (-1, 1)]
            cv2.line(picture, ends[0], ends[1], paint, max(int(step * 0.45), 1), cv2.LINE_AA)
