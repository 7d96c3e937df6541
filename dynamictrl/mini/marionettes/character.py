"""Who a marionette is: proportions, skin, hair, and clothes with names that a caption can say.

Lengths are in units of the figure's own height (1.0 from sole to crown), colours are RGB 0..255.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Colour = tuple[int, int, int]

CLOTH_COLOURS: Mapping[str, Colour] = {
    "red": (208, 52, 52),
    "orange": (236, 132, 44),
    "yellow": (242, 200, 64),
    "green": (62, 146, 76),
    "teal": (38, 146, 146),
    "blue": (58, 110, 206),
    "navy": (44, 58, 112),
    "purple": (128, 74, 160),
    "pink": (238, 142, 176),
    "white": (238, 238, 234),
    "grey": (136, 140, 148),
    "black": (52, 52, 60),
    "brown": (128, 86, 58),
    "beige": (216, 192, 152),
}
TROUSER_COLOURS = ("navy", "blue", "black", "grey", "brown", "beige", "green", "red", "white", "purple", "teal")
SHOE_COLOURS = ("white", "black", "brown", "red", "grey", "blue")

SKINS: Mapping[str, Colour] = {
    "fair": (246, 212, 188),
    "light": (236, 190, 158),
    "tan": (208, 156, 118),
    "brown": (156, 106, 76),
    "dark": (108, 72, 54),
}
HAIRS: Mapping[str, Colour] = {
    "black": (42, 36, 40),
    "brown": (94, 62, 42),
    "blond": (222, 184, 104),
    "red": (172, 84, 44),
    "grey": (166, 164, 164),
}
HAIR_STYLES = ("short", "short", "fringe", "long", "long", "bun", "ponytail", "curly", "cap", "shaved")
TOPS = ("t-shirt", "t-shirt", "long-sleeved shirt", "long-sleeved shirt", "jumper", "vest")
BOTTOMS = ("trousers", "trousers", "trousers", "shorts", "skirt")
PATTERNS = ("plain", "plain", "striped", "badge", "collar")


def tint_colour(colour: Colour, factor: float) -> Colour:
    """Darker below 1; above 1 a step towards white."""
    if factor <= 1:
        return (int(colour[0] * factor), int(colour[1] * factor), int(colour[2] * factor))
    share = factor - 1
    red, green, blue = (int(c + (255 - c) * share) for c in colour)
    return (red, green, blue)


@dataclass(frozen=True)
class Character:
    """One marionette; two characters drawn from equal seeds are equal."""

    skin: Colour
    hair: Colour
    hair_name: str
    hair_style: str
    top: str
    top_colour: str
    pattern: str
    accent: Colour
    bottom: str
    bottom_colour: str
    shoe_colour: str
    hat_colour: str
    height: float
    """Against an average person."""
    build: float
    """Limb and torso thickness, 1 is average."""
    shoulder: float
    hip: float
    head: float
    """Size of the head, 1 is average."""
    leg: float
    """Length of the legs, 1 is average."""

    @property
    def sleeve(self) -> str:
        """How far the sleeves reach: none, short or long."""
        return {"t-shirt": "short", "vest": "none"}.get(self.top, "long")


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def draw_character(rng: np.random.Generator) -> Character:
    """A random character whose top and bottom differ in colour."""
    names = tuple(CLOTH_COLOURS)
    top_colour = _pick(rng, names)
    bottom_colour = _pick(rng, tuple(name for name in TROUSER_COLOURS if name != top_colour))
    accent = _pick(rng, tuple(name for name in names if name not in (top_colour, bottom_colour)))
    skin = _pick(rng, tuple(SKINS))
    hair_name = _pick(rng, ("black", "black", "brown") if skin in ("brown", "dark") else tuple(HAIRS))
    slim = rng.uniform(0.0, 1.0)
    return Character(
        skin=SKINS[skin],
        hair=HAIRS[hair_name],
        hair_name=hair_name,
        hair_style=_pick(rng, HAIR_STYLES),
        top=_pick(rng, TOPS),
        top_colour=top_colour,
        pattern=_pick(rng, PATTERNS),
        accent=CLOTH_COLOURS[accent],
        bottom=_pick(rng, BOTTOMS),
        bottom_colour=bottom_colour,
        shoe_colour=_pick(rng, SHOE_COLOURS),
        hat_colour=_pick(rng, names),
        height=float(rng.uniform(0.9, 1.04)),
        build=float(0.88 + 0.3 * slim),
        shoulder=float(rng.uniform(0.108, 0.132)),
        hip=float(rng.uniform(0.058, 0.070)),
        head=float(rng.uniform(1.04, 1.24)),
        leg=float(rng.uniform(0.94, 1.05)),
    )
