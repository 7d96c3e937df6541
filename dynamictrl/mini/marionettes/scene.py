"""Where marionettes perform: painted places, light, and a hand-held camera.

Places are painted once per clip on a canvas larger than the frame; the camera then moves over it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from dynamictrl.mini.marionettes.character import CLOTH_COLOURS, Colour, tint_colour

MARGIN = 0.2
"""How far a painted place reaches past each edge of the frame, as a share of the frame."""

Image = NDArray[np.uint8]


@dataclass
class Canvas:
    """A place being painted; coordinates are shares of the frame, (0, 0) its upper left corner."""

    image: Image
    width: float
    height: float
    rng: np.random.Generator
    wall: Colour | None = None
    """The colour that a caption names, in places that have one."""

    def spot(self, x: float, y: float) -> tuple[int, int]:
        """A place in the frame as the image's pixel, with 3 fractional bits."""
        return round((x + MARGIN) * self.width * 8), round((y + MARGIN) * self.height * 8)

    def polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        cv2.fillPoly(self.image, [np.array([self.spot(*p) for p in points], np.int32)], colour, cv2.LINE_AA, 3)

    def box(self, x1: float, y1: float, x2: float, y2: float, colour: Colour) -> None:
        self.polygon([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], colour)

    def ball(self, x: float, y: float, radius: float, colour: Colour, squash: float = 1.0) -> None:
        """`radius` is a share of the frame's height."""
        size = (round(radius * self.height * 8), round(radius * squash * self.height * 8))
        cv2.ellipse(self.image, self.spot(x, y), size, 0, 0, 360, colour, -1, cv2.LINE_AA, 3)

    def gradient(self, y1: float, y2: float, top: Colour, bottom: Colour) -> None:
        """A band over the whole width that goes from one colour to another."""
        rows = np.arange(round((y1 + MARGIN) * self.height), round((y2 + MARGIN) * self.height))
        rows = rows[(rows >= 0) & (rows < len(self.image))]
        share = np.linspace(0, 1, max(len(rows), 1))[: len(rows), None]
        band = (1 - share) * np.array(top) + share * np.array(bottom)
        self.image[rows] = band[:, None].astype(np.uint8)

    def scatter(self, count: int, y1: float, y2: float) -> NDArray[np.float64]:
        """Random places in a band, from back to front: [count, 2]."""
        x, y = self.rng.uniform(-MARGIN, 1 + MARGIN, count), np.sort(self.rng.uniform(y1, y2, count))
        return np.stack([x, y], axis=-1)

    def grain(self, amount: float, y1: float = -MARGIN, y2: float = 1 + MARGIN) -> None:
        """Fine mottling, so that a surface is not flat."""
        top, bottom = round((y1 + MARGIN) * self.height), round((y2 + MARGIN) * self.height)
        part = self.image[top:bottom]
        coarse = self.rng.normal(0, amount, (max(len(part) // 3, 1), max(part.shape[1] // 3, 1))).astype(np.float32)
        noise = cv2.resize(coarse, (part.shape[1], part.shape[0]), interpolation=cv2.INTER_LINEAR)
        part[:] = np.clip(part + noise[..., None], 0, 255).astype(np.uint8)


def _mix(rng: np.random.Generator, *colours: Colour) -> Colour:
    return colours[int(rng.integers(len(colours)))]


def _studio(c: Canvas) -> None:
    wall = c.wall or (212, 212, 206)
    c.gradient(-MARGIN, 0.78, tint_colour(wall, 0.86), tint_colour(wall, 1.15))
    c.gradient(0.78, 1 + MARGIN, tint_colour(wall, 0.95), tint_colour(wall, 0.78))


def _planks(c: Canvas, y: float, wood: Colour) -> None:
    """A wooden floor that runs away from the viewer."""
    c.gradient(y, 1 + MARGIN, tint_colour(wood, 0.82), tint_colour(wood, 1.08))
    lines = tint_colour(wood, 0.66)
    for x in np.linspace(-1.4, 2.4, 22):
        c.polygon([(0.5 + (x - 0.5) * 0.55, y), (0.5 + (x - 0.5) * 0.55 + 0.003, y), (x + 0.007, 1.2), (x, 1.2)], lines)


def _living_room(c: Canvas) -> None:
    rng = c.rng
    wall, floor = tint_colour(c.wall or (226, 206, 176), 1.15), 0.72
    c.gradient(-MARGIN, floor, tint_colour(wall, 0.92), wall)
    if rng.uniform() < 0.5:
        for x in np.arange(-MARGIN, 1 + MARGIN, 0.09):
            c.box(x, -MARGIN, x + 0.03, floor, tint_colour(wall, 0.96))
    _planks(c, floor, _mix(rng, (176, 124, 80), (142, 98, 66), (200, 164, 120)))
    c.box(-MARGIN, floor - 0.025, 1 + MARGIN, floor, tint_colour(wall, 1.5))
    x = rng.uniform(0.0, 0.62)
    c.box(x - 0.012, 0.10, x + 0.312, 0.43, (246, 244, 238))
    c.box(x, 0.12, x + 0.3, 0.41, (164, 208, 240))
    c.ball(x + 0.09, 0.38, 0.06, (112, 172, 106))
    c.ball(x + 0.22, 0.40, 0.08, (96, 158, 96))
    c.box(x, 0.39, x + 0.3, 0.41, (104, 166, 100))
    c.box(x + 0.145, 0.12, x + 0.155, 0.41, (246, 244, 238))
    frame = (x + 0.5) % 1.0
    c.box(frame, 0.16, frame + 0.16, 0.30, (110, 78, 54))
    c.box(frame + 0.012, 0.17, frame + 0.148, 0.29, _mix(rng, (216, 132, 96), (96, 128, 168), (232, 200, 120)))
    sofa = _mix(rng, (86, 110, 140), (160, 90, 84), (104, 130, 96), (190, 160, 90))
    left = rng.choice([-0.18, 0.6])
    c.box(left, floor - 0.15, left + 0.55, floor + 0.02, tint_colour(sofa, 0.85))
    c.box(left - 0.03, floor - 0.07, left + 0.58, floor + 0.05, sofa)
    pot = 0.92 if left < 0 else 0.08
    for angle in np.linspace(-1.1, 1.1, 7):
        tip = (pot + 0.10 * np.sin(angle), floor - 0.10 - 0.13 * np.cos(angle))
        c.polygon([(pot - 0.012, floor - 0.08), tip, (pot + 0.012, floor - 0.08)], (72, 138 + int(20 * angle), 80))
    c.polygon(
        [
            (pot - 0.05, floor - 0.09),
            (pot + 0.05, floor - 0.09),
            (pot + 0.035, floor + 0.02),
            (pot - 0.035, floor + 0.02),
        ],
        (196, 104, 70),
    )
    rug = _mix(rng, (190, 70, 70), (70, 110, 150), (220, 190, 130))
    c.ball(0.5, 0.93, 0.27, tint_colour(rug, 0.8), 0.26)
    c.ball(0.5, 0.93, 0.24, rug, 0.24)


def _clouds(c: Canvas, low: float, colour: Colour = (250, 252, 255)) -> None:
    for x, y in c.scatter(int(c.rng.integers(2, 6)), -0.05, low):
        for _ in range(5):
            dx, dy = c.rng.normal(0, 0.05), c.rng.normal(0, 0.012)
            c.ball(x + dx, y + dy, c.rng.uniform(0.02, 0.045), colour, 0.6)


def _tree(c: Canvas, x: float, y: float, size: float) -> None:
    leaf = _mix(c.rng, (84, 148, 76), (66, 128, 70), (116, 164, 72), (92, 150, 96))
    c.box(x - 0.03 * size, y - 0.35 * size, x + 0.03 * size, y, (112, 80, 56))
    for dx, dy, r in ((-0.13, -0.42, 0.15), (0.13, -0.44, 0.15), (0, -0.56, 0.18), (0, -0.40, 0.16)):
        c.ball(x + dx * size, y + dy * size, r * size, tint_colour(leaf, 0.84))
        c.ball(x + dx * size - 0.02 * size, y + dy * size - 0.02 * size, r * size * 0.8, leaf)


def _park(c: Canvas) -> None:
    rng, ground = c.rng, 0.66
    c.gradient(-MARGIN, ground, (126, 184, 236), (214, 234, 246))
    _clouds(c, 0.3)
    for x in np.linspace(-0.2, 1.2, 4):
        c.ball(x + rng.uniform(-0.1, 0.1), ground + 0.12, rng.uniform(0.22, 0.34), (128, 178, 138), 0.7)
    c.gradient(ground, 1 + MARGIN, (126, 182, 88), (96, 158, 70))
    for x, y in c.scatter(6, ground - 0.01, ground + 0.07):
        if abs(x - 0.5) > 0.16:
            _tree(c, float(x), float(y), rng.uniform(0.4, 0.75))
    path = (222, 204, 164)
    c.polygon([(0.42, ground + 0.05), (0.5, ground + 0.05), (1.0, 1.25), (0.1, 1.25)], path)
    for x, y in c.scatter(60, ground + 0.06, 1.15):
        size = 0.004 + 0.01 * (y - ground)
        c.ball(float(x), float(y), size, _mix(rng, (84, 146, 62), (250, 240, 160), (240, 180, 200), (84, 146, 62)))


def _beach(c: Canvas) -> None:
    rng, sea, sand = c.rng, 0.48, 0.64
    warm = rng.uniform() < 0.4
    c.gradient(-MARGIN, sea, *(((250, 178, 120), (252, 226, 176)) if warm else ((108, 180, 236), (206, 236, 248))))
    c.ball(rng.uniform(0.1, 0.9), 0.2, 0.06, (255, 244, 200))
    _clouds(c, 0.25, (255, 246, 236))
    c.gradient(sea, sand, (44, 128, 172), (104, 192, 206))
    for x, y in c.scatter(16, sea + 0.02, sand - 0.01):
        c.box(float(x), float(y), float(x) + 0.12, float(y) + 0.004, (190, 230, 236))
    c.gradient(sand, 1 + MARGIN, (240, 220, 170), (222, 192, 138))
    c.box(-MARGIN, sand - 0.006, 1 + MARGIN, sand + 0.006, (246, 250, 248))
    pole = rng.choice([0.1, 0.9])
    c.box(pole - 0.008, 0.4, pole + 0.008, 0.74, (230, 230, 226))
    shade = _mix(rng, (222, 84, 84), (64, 140, 190), (240, 176, 64))
    for k in range(4):
        left = pole - 0.2 + 0.1 * k
        c.polygon([(pole, 0.34), (left, 0.46), (left + 0.1, 0.46)], shade if k % 2 else (250, 248, 240))
    c.grain(4, sand)


def _street(c: Canvas) -> None:
    rng, kerb = c.rng, 0.74
    c.gradient(-MARGIN, kerb, (150, 192, 230), (226, 232, 236))
    x = -MARGIN
    while x < 1 + MARGIN:
        wide, top = rng.uniform(0.16, 0.3), rng.uniform(-0.1, 0.34)
        wall = _mix(rng, (190, 120, 96), (206, 186, 156), (136, 146, 160), (172, 152, 140), (216, 206, 190))
        c.box(x, top, x + wide, kerb, wall)
        lit = rng.uniform() < 0.5
        for wy in np.arange(top + 0.05, kerb - 0.14, 0.1):
            for wx in np.arange(x + 0.025, x + wide - 0.05, 0.07):
                c.box(wx, wy, wx + 0.04, wy + 0.06, (250, 232, 176) if lit and rng.uniform() < 0.3 else (92, 116, 140))
        c.box(x + wide * 0.4, kerb - 0.11, x + wide * 0.4 + 0.06, kerb, tint_colour(wall, 0.5))
        x += wide
    c.gradient(kerb, 1 + MARGIN, (176, 176, 176), (150, 150, 154))
    for line in np.linspace(-1.2, 2.2, 14):
        c.polygon(
            [(0.5 + (line - 0.5) * 0.6, kerb), (0.504 + (line - 0.5) * 0.6, kerb), (line + 0.008, 1.2), (line, 1.2)],
            (140, 140, 144),
        )
    for y in (0.80, 0.89, 1.02):
        c.box(-MARGIN, y, 1 + MARGIN, y + 0.005, (140, 140, 144))
    c.grain(3, kerb)


def _stage(c: Canvas) -> None:
    rng, floor = c.rng, 0.74
    cloth = _mix(rng, (150, 38, 48), (60, 46, 110), (34, 86, 92), (120, 40, 96))
    folds = np.linspace(-MARGIN, 1 + MARGIN, 15)
    for left, right in zip(folds[:-1], folds[1:], strict=True):
        steps = np.linspace(left, right, 6)
        for k, (a, b) in enumerate(zip(steps[:-1], steps[1:], strict=True)):
            c.box(a, -MARGIN, b + 0.01, floor, tint_colour(cloth, (0.55, 0.8, 1.1, 0.9, 0.65)[k]))
    _planks(c, floor, (150, 104, 66))
    for x in (0.25, 0.75):
        beam = c.image.copy()
        corners = [
            (x - 0.03, -MARGIN),
            (x + 0.03, -MARGIN),
            (0.5 + (x - 0.5) * 0.3 + 0.3, 1.0),
            (0.5 + (x - 0.5) * 0.3 - 0.3, 1.0),
        ]
        Canvas(beam, c.width, c.height, rng).polygon(corners, (255, 244, 206))
        cv2.addWeighted(beam, 0.13, c.image, 0.87, 0, dst=c.image)
    c.ball(0.5, 0.94, 0.28, tint_colour((150, 104, 66), 1.4), 0.24)


def _gym(c: Canvas) -> None:
    rng, floor = c.rng, 0.72
    wall = _mix(rng, (206, 216, 222), (218, 208, 190), (190, 210, 200))
    c.gradient(-MARGIN, floor, wall, tint_colour(wall, 0.92))
    for y in np.arange(-MARGIN, floor, 0.08):
        c.box(-MARGIN, y, 1 + MARGIN, y + 0.004, tint_colour(wall, 0.86))
        shift = 0.07 if round(y / 0.08) % 2 else 0.0
        for x in np.arange(-MARGIN, 1 + MARGIN, 0.14):
            c.box(x + shift, y, x + shift + 0.005, y + 0.08, tint_colour(wall, 0.86))
    band = _mix(rng, (232, 120, 60), (60, 130, 180), (200, 60, 80), (80, 160, 100))
    c.box(-MARGIN, 0.3, 1 + MARGIN, 0.35, band)
    for x in (0.06, 0.88):
        for y in np.arange(0.38, floor, 0.05):
            c.box(x - 0.07, y, x + 0.09, y + 0.012, (186, 140, 92))
        c.box(x - 0.08, 0.36, x - 0.06, floor, (150, 108, 68))
        c.box(x + 0.08, 0.36, x + 0.10, floor, (150, 108, 68))
    c.gradient(floor, 1 + MARGIN, (208, 160, 104), (224, 180, 124))
    c.polygon([(0.12, 0.83), (0.88, 0.83), (1.05, 1.06), (-0.05, 1.06)], tint_colour(band, 0.8))
    c.box(-MARGIN, floor, 1 + MARGIN, floor + 0.012, (120, 90, 64))


def _night(c: Canvas) -> None:
    rng, ground = c.rng, 0.72
    c.gradient(-MARGIN, ground, (30, 34, 74), (108, 80, 128))
    for x, y in c.scatter(50, -MARGIN, 0.45):
        c.ball(float(x), float(y), rng.uniform(0.002, 0.005), (246, 244, 226))
    c.ball(rng.uniform(0.1, 0.9), 0.12, 0.055, (250, 244, 214))
    x = -MARGIN
    while x < 1 + MARGIN:
        wide, top = rng.uniform(0.08, 0.2), rng.uniform(0.25, 0.55)
        c.box(x, top, x + wide, ground, (48, 44, 82))
        for wy in np.arange(top + 0.03, ground - 0.04, 0.05):
            for wx in np.arange(x + 0.015, x + wide - 0.025, 0.035):
                if rng.uniform() < 0.5:
                    c.box(wx, wy, wx + 0.017, wy + 0.026, (250, 214, 130))
        x += wide
    c.gradient(ground, 1 + MARGIN, (92, 88, 112), (72, 70, 96))
    c.grain(3, ground)


PLACES: dict[str, tuple[str, Callable[[Canvas], None]]] = {
    "studio": ("in a plain {colour} studio", _studio),
    "living room": ("in a {colour} living room", _living_room),
    "park": ("in a park", _park),
    "beach": ("on a beach", _beach),
    "street": ("on a city street", _street),
    "stage": ("on a stage", _stage),
    "gym": ("in a gym", _gym),
    "night city": ("before a city at night", _night),
}
"""Name of a place to how a caption says it and what paints it; `{colour}` is its wall's."""
_OFTEN = {"studio": 3.0}
WALL_COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "white", "grey", "brown", "beige")


@dataclass(frozen=True)
class Place:
    """Where a shot is, and the colour of the wall where that place has one to name."""

    name: str
    colour: str | None

    @property
    def words(self) -> str:
        """Such as "in a plain blue studio"."""
        return PLACES[self.name][0].format(colour=self.colour).replace("a orange", "an orange")


def choose_place(rng: np.random.Generator, name: str | None = None, colour: str | None = None) -> Place:
    """A place at random (plain studios more often than others), or the one asked for."""
    names = sorted(PLACES)
    odds = np.array([_OFTEN.get(known, 1.0) for known in names])
    drawn, wall = str(rng.choice(names, p=odds / odds.sum())), str(rng.choice(WALL_COLOURS))
    name = name or drawn
    return Place(name, (colour or wall) if "{colour}" in PLACES[name][0] else None)


def paint_place(rng: np.random.Generator, place: Place, height: int, width: int, detail: float) -> Image:
    """The place with its margins, RGB, `detail` pixels per pixel of the frame."""
    high, wide = height * detail, width * detail
    size = (round(high * (1 + 2 * MARGIN)), round(wide * (1 + 2 * MARGIN)))
    wall = tint_colour(CLOTH_COLOURS[place.colour], rng.uniform(0.9, 1.1)) if place.colour else None
    canvas = Canvas(np.zeros((*size, 3), np.uint8), wide, high, rng, wall)
    PLACES[place.name][1](canvas)
    canvas.grain(1.5)
    return canvas.image


def grading(rng: np.random.Generator, place: str) -> NDArray[np.uint8]:
    """The light of the day as a table for `cv2.LUT`: [1, 256, 3]."""
    gain = rng.uniform(0.92, 1.06) * np.array([1.0, 1.0, 1.0]) + rng.normal(0, 0.02, 3)
    gamma = rng.uniform(0.9, 1.12)
    if place in ("night city", "stage"):
        gain, gamma = gain * (0.9, 0.88, 1.0), gamma * 1.06
    levels = np.linspace(0, 1, 256)[:, None] ** gamma * gain
    return np.clip(levels * 255, 0, 255).astype(np.uint8)[None]


@dataclass
class Camera:
    """Sway and zoom over time: frame pixel = centre + zoom * (place - centre) + shift."""

    zoom_F: NDArray[np.float64]
    shift_F2: NDArray[np.float64]
    centre: tuple[float, float]

    def apply(self, points_F2: NDArray[np.float64]) -> NDArray[np.float64]:
        """Neutral frame pixels [F, 2] to where the camera shows them."""
        centre = np.array(self.centre)
        return centre + self.zoom_F[:, None] * (points_F2 - centre) + self.shift_F2

    def matrix(self, frame: int, detail: float, offset: tuple[float, float], factor: float) -> NDArray[np.float64]:
        """From the painted place's pixels to the canvas's, `factor` canvas pixels per frame pixel: [2, 3]."""
        zoom, centre = self.zoom_F[frame], np.array(self.centre)
        move = centre - zoom * centre + self.shift_F2[frame] - zoom * np.array(offset)
        # Whole coordinates are pixel centres for OpenCV and half coordinates are for us.
        scale = zoom / detail * factor
        move = move * factor + 0.5 * scale - 0.5
        return np.array([[scale, 0, move[0]], [0, scale, move[1]]])


def move_camera(
    rng: np.random.Generator,
    times: NDArray[np.float64],
    height: int,
    width: int,
    zoom: float,
    centre: tuple[float, float],
) -> Camera:
    """A hand-held camera: slow sway of about one percent, slow zoom of a few percent."""
    rates, phases = rng.uniform(0.08, 0.45, 5), rng.uniform(0, 2 * np.pi, 5)
    waves = np.sin(2 * np.pi * rates * times[:, None] + phases)
    sway = rng.uniform(0.0, 0.013) * np.array([width, height])
    shift = (waves[:, :2] + 0.4 * waves[:, 2:4]) * sway
    return Camera(zoom * (1 + rng.uniform(0, 0.035) * waves[:, 4]), shift, centre)
