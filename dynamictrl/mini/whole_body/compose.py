"""Sets figures before backdrops: cloth and skin get textures and shading, things and other people get in the way.

All on the training device. Shape suffixes: N pictures, C colours, H W size, J joints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dynamictrl.mini.marionettes.figure import CODES
from dynamictrl.mini.whole_body.augment import chance, enlargement, uniform, warp
from dynamictrl.mini.whole_body.backdrops import noise
from dynamictrl.mini.whole_body.people import RIM_STEPS
from dynamictrl.mini.whole_body.stream import Bank

_SKIN, _TOP, _BOTTOM, _SHOES, _HAIR = range(5)
_FIELD_SIDE = 256


def _family(name: str) -> int:
    for start, family in (
        (("torso", "sleeve", "long_sleeve"), _TOP),
        (("trousers", "hips", "skirt"), _BOTTOM),
        (("shoe",), _SHOES),
        (("hair", "hat"), _HAIR),
    ):
        if name.startswith(start):
            return family
    return _SKIN


def _families() -> Tensor:
    table = torch.zeros(32, dtype=torch.long)
    for name, code in CODES.items():
        table[code] = _family(name)
    return table


@dataclass
class Wardrobe:
    """What figures are clothed with: fields of noise to cut textures from."""

    fields: Tensor
    """[K, 1, 256, 256], mean 0, deviation 1, from rough to cloudy."""
    families: Tensor
    """[32]: a part's code to skin, top, bottom, shoes, hair."""

    @classmethod
    def make(cls, device: torch.device, seed: int = 0, count: int = 32) -> Wardrobe:
        rng = np.random.default_rng([seed, 77])
        fields = np.stack([noise(rng, _FIELD_SIDE, rng.uniform(0.3, 1.6))[..., 0] for _ in range(count)])
        return cls(torch.from_numpy(fields)[:, None].to(device), _families().to(device))


@dataclass
class Shown:
    """Figures as they look in a picture."""

    colour: Tensor
    """[N, 3, H, W]."""
    cover: Tensor
    """[N, 1, H, W], 1 where the figure hides what is behind it."""

    def over(self, pictures: Tensor) -> Tensor:
        """The pictures with these figures in front."""
        return torch.lerp(pictures, self.colour, self.cover)


def turned(count: int, scale: tuple[float, float], most: float, like: Tensor) -> Tensor:
    """Random similarities [N, 2, 2] without a shift; `scale` is drawn evenly in its logarithm."""
    size = torch.exp(uniform(count, math.log(scale[0]), math.log(scale[1]), like))
    angle = uniform(count, -most, most, like)
    cos, sin = size * angle.cos(), size * angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=-1).view(-1, 2, 2)


def show(bank: Bank, wardrobe: Wardrobe, index_N: Tensor, inverse_N23: Tensor, height: int, width: int) -> Shown:
    """Figures of the bank, newly clothed and lit, where the matrices (picture to canvas pixels) put them."""
    paint = bank.kept["paint"][index_N].permute(0, 3, 1, 2).float()
    part = bank.kept["part"][index_N][:, None].float()
    rim = bank.kept["rim"][index_N][:, None].float() / RIM_STEPS
    there = (part > 0).float()
    size_N, detail = enlargement(inverse_N23), bank.kept["paint"].shape[1] / 448
    bend = _folds(height, width, size_N, detail)
    layers = _sample(torch.cat([paint * there, there, rim], dim=1), inverse_N23, size_N, bend)
    codes = warp(part, inverse_N23, height, width, mode="nearest", bend_NHW2=bend)[:, 0].long()
    cover = layers[:, 3:4]
    colour = layers[:, :3] / cover.clamp(min=0.02)
    changed_N = 1 - chance(len(index_N), 0.22, colour)
    family = wardrobe.families[codes]
    colour = _dye(colour, family, changed_N)
    colour = colour * torch.exp(_weave(wardrobe, family, changed_N))
    colour = colour * _shade(layers[:, 4:], size_N, detail, changed_N)
    return Shown(colour.clamp(0, 255), cover)


def _sample(layers: Tensor, inverse_N23: Tensor, size_N: Tensor, bend_NHW2: Tensor) -> Tensor:
    """Bilinear samples; figures shown small are averaged first, so that they do not flicker."""
    height, width = bend_NHW2.shape[1:3]
    full = warp(layers, inverse_N23, height, width, bend_NHW2=bend_NHW2)
    if not bool((size_N > 2.2).any()):
        return full
    quarter = inverse_N23 / 4
    quarter[:, :, 2] -= 0.375
    small = warp(F.avg_pool2d(layers, 4), quarter, height, width, bend_NHW2=bend_NHW2 / 4)
    return torch.where(size_N.view(-1, 1, 1, 1) > 2.2, small, full)


def _folds(height: int, width: int, size_N: Tensor, detail: float) -> Tensor:
    """Small random displacements [N, H, W, 2] in canvas pixels: contours that no ruler drew.

    At most about a hundredth of the figure's height, less than a joint's truth is good for.
    """
    count = len(size_N)
    cells = int(torch.randint(6, 28, ()))
    coarse = torch.randn(count, 2, cells, max(round(cells * width / height), 2), device=size_N.device)
    field = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    reach = uniform(count, 0, 4.5, size_N) * detail * chance(count, 0.6, size_N)
    return (field.clamp(-2, 2) * reach.view(-1, 1, 1, 1)).permute(0, 2, 3, 1)


def _pick(table_NK: Tensor, family_NHW: Tensor) -> Tensor:
    """[N, C, H, W] of the table [N, K, C] by family."""
    which = torch.arange(len(table_NK), device=table_NK.device).view(-1, 1, 1)
    return table_NK[which, family_NHW].permute(0, 3, 1, 2)


def _dye(colour: Tensor, family: Tensor, changed_N: Tensor) -> Tensor:
    """Other colours for skin, clothes and hair."""
    count = len(colour)
    bright = 0.28 * torch.randn(count, 5, 1, device=colour.device)
    hue = 0.16 * torch.randn(count, 5, 3, device=colour.device)
    hue[:, _SKIN] *= 0.45
    pale = 24 * torch.randn(count, 5, 3, device=colour.device)
    pale[:, _SKIN] = 0
    gain = torch.exp((bright + hue) * changed_N.view(-1, 1, 1))
    table = torch.cat([gain, pale * changed_N.view(-1, 1, 1)], dim=-1)
    chosen = _pick(table, family)
    return colour * chosen[:, :3] + chosen[:, 3:]


def _weave(wardrobe: Wardrobe, family: Tensor, changed_N: Tensor) -> Tensor:
    """Logarithm of a texture [N, 1, H, W]: mottled, striped or checked cloth, faintly mottled skin."""
    count, height, width = family.shape
    kind = torch.randint(len(wardrobe.fields), (count,), device=family.device)
    move = torch.rand(count, 2, 1, device=family.device) * _FIELD_SIDE
    matrix = torch.cat([turned(count, (0.25, 1.6), math.pi, changed_N), move], dim=-1)
    field = warp(wardrobe.fields[kind], matrix, height, width, padding="reflection")
    strength = torch.rand(count, 5, 1, device=family.device) * 0.38
    strength[:, _SKIN] *= 0.35
    lines = _lines(count, height, width, changed_N)
    striped = (
        torch.rand(count, 5, 1, device=family.device) * 0.45 * (torch.rand(count, 5, 1, device=family.device) < 0.2)
    )
    striped[:, _SKIN] = 0
    chosen = _pick(torch.cat([strength, striped], dim=-1) * changed_N.view(-1, 1, 1), family)
    return field.clamp(-2.5, 2.5) * chosen[:, :1] + lines * chosen[:, 1:]


def _lines(count: int, height: int, width: int, like: Tensor) -> Tensor:
    """Stripes, or checks in every other picture, of -1..1."""
    y = torch.arange(height, device=like.device).view(1, -1, 1)
    x = torch.arange(width, device=like.device).view(1, 1, -1)
    angle = uniform(count, 0, math.pi, like).view(-1, 1, 1)
    wave = 2 * math.pi / torch.exp(uniform(count, math.log(4), math.log(48), like)).view(-1, 1, 1)
    along = torch.tanh(3 * torch.sin(wave * (angle.cos() * x + angle.sin() * y)))
    across = torch.tanh(3 * torch.sin(wave * (angle.cos() * y - angle.sin() * x)))
    checked = chance(count, 0.5, like).view(-1, 1, 1)
    return (along * (1 - checked * 0.5) + 0.5 * checked * across)[:, None]


def _shade(rim: Tensor, size_N: Tensor, detail: float, changed_N: Tensor) -> Tensor:
    """How much light falls on each spot [N, 1, H, W] if every part is round: limbs become cylinders."""
    count, shape = len(rim), (-1, 1, 1, 1)
    radius = detail * torch.exp(uniform(count, math.log(6), math.log(45), rim)).view(shape)
    depth = (rim / radius).clamp(max=1)
    height = radius * (1 - (1 - depth) ** 2).clamp(min=0).sqrt()
    height = F.avg_pool2d(height, 5, 1, padding=2) / size_N.view(shape)
    slope_x = F.pad(height[..., 2:] - height[..., :-2], (1, 1, 0, 0)) / 2
    slope_y = F.pad(height[..., 2:, :] - height[..., :-2, :], (0, 0, 1, 1)) / 2
    angle = uniform(count, 0, 2 * math.pi, rim).view(shape)
    lit = torch.tanh(slope_x * angle.cos() + slope_y * angle.sin())
    strength = (uniform(count, 0, 0.65, rim) * changed_N).view(shape)
    edge = (uniform(count, -0.1, 0.45, rim) * changed_N).view(shape)
    return (1 - strength * lit) * (1 - edge * (1 - depth) ** 2)


def backdrops(bank: Bank, count: int, height: int, width: int) -> Tensor:
    """Random views of random backdrops [N, 3, height, width]."""
    pictures = bank.kept["backdrop"][bank.pick(count, backdrop=True)].permute(0, 3, 1, 2).float()
    side = pictures.shape[-1]
    fit = side / max(height, width)
    matrix = turned(count, (0.3 * fit, 1.0 * fit), 0.12, pictures)
    mirror = 1 - 2 * chance(count, 0.5, pictures)
    matrix = matrix * torch.stack([mirror, torch.ones_like(mirror)], dim=-1)[:, None]
    spread = torch.rand(count, 2, 1, device=pictures.device) * side
    middle = torch.tensor([[width / 2], [height / 2]], device=pictures.device)
    return warp(pictures, torch.cat([matrix, spread - matrix @ middle], dim=-1), height, width, padding="reflection")


def things(bank: Bank, count: int, height: int, width: int, share: float, most: float) -> Shown:
    """A disc, board or pole in a `share` of the pictures, up to `most` of the picture long."""
    colour = backdrops(bank, count, height, width)
    shape = (-1, 1, 1, 1)
    y = torch.arange(height, device=colour.device).view(1, 1, -1, 1) - height * torch.rand(count, 1, 1, 1).to(colour)
    x = torch.arange(width, device=colour.device).view(1, 1, 1, -1) - width * torch.rand(count, 1, 1, 1).to(colour)
    angle = uniform(count, 0, math.pi, colour).view(shape)
    across, along = angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x
    long = torch.exp(uniform(count, math.log(0.05), math.log(most), colour)).view(shape) * height / 2
    short = long * torch.exp(uniform(count, math.log(0.08), 0.0, colour)).view(shape)
    across, along = (across / short).abs(), (along / long).abs()
    round_N = chance(count, 0.4, colour).view(shape)
    away = round_N * (across**2 + along**2).sqrt() + (1 - round_N) * torch.maximum(across, along)
    cover = ((1 - away) * short).add(0.5).clamp(0, 1) * chance(count, share, colour).view(shape)
    # Half of the things are of one plain colour: skin and cloth are, after all.
    plain = chance(count, 0.5, colour).view(shape)
    flat = torch.rand(count, 3, 1, 1, device=colour.device) * 230 + 10
    colour = torch.lerp(colour, flat * (0.6 + 0.4 * colour / 255), plain)
    return Shown(colour, cover)


def shadows(pictures: Tensor, feet_N2: Tensor, high_N: Tensor, share: float) -> Tensor:
    """Soft dark patches on the floor below a `share` of people `high` pixels tall who stand at `feet`."""
    count, _, height, width = pictures.shape
    y = torch.arange(height, device=pictures.device).view(1, 1, -1, 1) - feet_N2[:, 1].view(-1, 1, 1, 1)
    x = torch.arange(width, device=pictures.device).view(1, 1, 1, -1) - feet_N2[:, 0].view(-1, 1, 1, 1)
    wide = (high_N * uniform(count, 0.12, 0.35, high_N)).clamp(min=1).view(-1, 1, 1, 1)
    flat = wide * uniform(count, 0.15, 0.4, high_N).view(-1, 1, 1, 1)
    near = (1.15 - ((x / wide) ** 2 + (y / flat) ** 2).sqrt()).clamp(0, 1)
    depth = (uniform(count, 0.15, 0.5, high_N) * chance(count, share, high_N)).view(-1, 1, 1, 1)
    return pictures * (1 - depth * near)
