"""Pictures of recorded attention: the paper's figure 3, and maps laid over the frames they speak of.

Maps are drawn with Pillow alone, so that they can be had wherever a model runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dynamictrl.attention_maps import MAPS, AttentionMap
from dynamictrl.errors import InputError
from dynamictrl.geometry import FRAMES_PER_LATENT, latent_frames

# The colours of matplotlib's viridis (CC0) at eight even steps: readable without colour vision, and in grey.
_COLOURS = np.array(
    [(68, 1, 84), (70, 50, 126), (54, 92, 141), (39, 127, 142), (31, 161, 135), (74, 193, 109), (160, 218, 57),
     (253, 231, 37)], np.float32
)  # fmt: skip
_INK, _PAPER = (30, 30, 30), (255, 255, 255)
_TEXT = 14
_GAP = 8


def binarized(attention: NDArray[np.float32], share: float = 0.1) -> NDArray[np.bool_]:
    """Of each row the highest `share` of its entries (one at least): black and white as in figure 3.

    By rows, because a threshold for the whole map would show which queries look sharply, and not where each looks.
    """
    if not 0 < share <= 1:
        raise InputError(f"share is {share}; it must be above 0 and at most 1", param="share")
    count = max(1, round(share * attention.shape[-1]))
    order = np.argsort(-attention, axis=-1, kind="stable")[..., :count]
    lit = np.zeros(attention.shape, np.bool_)
    np.put_along_axis(lit, order, True, axis=-1)
    return lit


def diagonal_share(lit: NDArray[np.bool_]) -> float:
    """How much of a binarized map's diagonal is lit: 1 where every token looks at itself, 0 where none does."""
    return float(np.diagonal(lit, axis1=-2, axis2=-1).mean())


def token_frame(frame: int, num_frames: int, patch_size_t: int | None) -> int:
    """The token frame that pictures a clip's frame; the first may be one that only fills up (`latents.pad_front`)."""
    latent, patch = -(-frame // FRAMES_PER_LATENT), patch_size_t or 1
    return (latent + -latent_frames(num_frames) % patch) // patch


def save_maps(path: Path, maps: Sequence[AttentionMap]) -> None:
    """Writes an .npz: each map as [steps, blocks, ...], and `steps`, `timesteps`, `blocks`, `grid`."""
    if not maps:
        raise InputError("no attention was recorded: none of the chosen steps was run", code="nothing_recorded")
    steps, blocks = sorted({m.step for m in maps}), sorted({m.block for m in maps})
    table = {(m.step, m.block): m for m in maps}
    grid = maps[0].grid
    arrays: dict[str, Any] = {
        "steps": steps,
        "timesteps": [table[step, blocks[0]].timestep for step in steps],
        "blocks": blocks,
        "grid": [grid.frames, grid.rows, grid.columns],
    }
    for name in MAPS:
        arrays[name] = np.stack([[getattr(table[step, block], name) for block in blocks] for step in steps])
    np.savez_compressed(path, **arrays)


def mean_over_steps(maps: Sequence[AttentionMap], name: str, block: int) -> NDArray[np.float32]:
    """One block's map by that name, averaged over the steps recorded."""
    return np.mean([getattr(m, name) for m in maps if m.block == block], axis=0)


def block_figure(
    runs: Mapping[str, Sequence[AttentionMap]], *, share: float | None = 0.1, cell: int = 220
) -> Image.Image:
    """Figure 3: spatial above temporal attention, a column for each block, averaged over the steps; runs follow below.

    `runs` is title to maps. With `share` black and white (`binarized`), each titled with the share of the diagonal that
    is lit; with None in colours, black-violet for nothing to yellow for the map's 99th percentile.
    """
    rows = []
    for title, maps in runs.items():
        blocks = sorted({m.block for m in maps})
        for kind in ("spatial", "temporal"):
            cells = []
            for block in blocks:
                attention = mean_over_steps(maps, kind, block)
                note = f"block {block}"
                if share is not None:
                    lit = binarized(attention, share)
                    note += f", diagonal {diagonal_share(lit):.2f}"
                    picture = np.repeat(np.where(lit, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)
                else:
                    picture = coloured(attention)
                cells.append(_titled(Image.fromarray(picture).resize((cell, cell), _how(picture, cell)), note))
            rows.append(_titled(_beside(cells), f"{title}: {kind} attention"))
    return stacked(rows)


def step_figure(maps: Sequence[AttentionMap], name: str, cell: int = 160) -> Image.Image:
    """One square map by that name for each step (down) and block (across), in colours of its own range each."""
    rows = []
    for step in sorted({m.step for m in maps}):
        cells = [
            _titled(Image.fromarray(coloured(getattr(m, name))).resize((cell, cell), Image.Resampling.NEAREST), note)
            for m in maps
            if m.step == step
            for note in [f"block {m.block}"]
        ]
        timestep = next(m.timestep for m in maps if m.step == step)
        rows.append(_titled(_beside(cells), f"step {step} (timestep {timestep:.0f})"))
    return stacked(rows)


def overlay_figure(
    map_FHW: NDArray[np.float32],
    frames: NDArray[np.uint8],
    patch_size_t: int | None,
    title: str,
    *,
    mark: tuple[int, int, int] | None = None,
    width: int = 128,
) -> Image.Image:
    """A map over the frames it speaks of, one for each token frame: `frames` uint8 [F, H, W, 3] of the clip.

    All frames share one range of colours. `mark` (token frame, row, column) is circled.
    """
    top = max(float(np.percentile(map_FHW, 99.5)), 1e-12)
    shown = _shown_frames(len(map_FHW), len(frames), patch_size_t)
    cells = []
    for token, frame in enumerate(shown):
        picture = Image.fromarray(frames[frame])
        size = (width, round(width * picture.height / picture.width))
        colours = Image.fromarray(coloured(map_FHW[token], top)).resize(size, Image.Resampling.BICUBIC)
        grey = picture.resize(size).convert("L").convert("RGB")
        cell = Image.blend(grey, colours, 0.6)
        if mark is not None and mark[0] == token:
            _circle(cell, (mark[1] + 0.5) / map_FHW.shape[1], (mark[2] + 0.5) / map_FHW.shape[2])
        cells.append(_titled(cell, f"frame {frame}"))
    return _titled(_beside(cells), title)


def _shown_frames(tokens: int, num_frames: int, patch_size_t: int | None) -> list[int]:
    """For each token frame the last frame of the clip that it pictures, and the first frame for one that fills up."""
    frames = [0] * tokens
    for frame in range(num_frames):
        frames[min(token_frame(frame, num_frames, patch_size_t), tokens - 1)] = frame
    return frames


def coloured(attention: NDArray[np.float32], top: float | None = None) -> NDArray[np.uint8]:
    """[H, W] to RGB [H, W, 3]: 0 is dark violet, `top` (None: the 99th percentile) and more is yellow."""
    top = max(float(np.percentile(attention, 99)), 1e-12) if top is None else top
    place = np.clip(attention / top, 0, 1) * (len(_COLOURS) - 1)
    low = np.minimum(place.astype(int), len(_COLOURS) - 2)
    part = (place - low)[..., None]
    return np.rint(_COLOURS[low] * (1 - part) + _COLOURS[low + 1] * part).astype(np.uint8)


def _how(picture: NDArray[np.uint8], cell: int) -> Image.Resampling:
    # A map larger than its cell is averaged; a smaller one keeps its squares.
    return Image.Resampling.BOX if picture.shape[0] > cell else Image.Resampling.NEAREST


def _circle(picture: Image.Image, down: float, across: float) -> None:
    x, y, r = across * picture.width, down * picture.height, max(4, picture.width // 24)
    ImageDraw.Draw(picture).ellipse((x - r, y - r, x + r, y + r), outline=(255, 60, 60), width=2)


def _titled(picture: Image.Image, title: str) -> Image.Image:
    font = ImageFont.load_default(_TEXT)
    width = max(picture.width, round(font.getlength(title)))
    sheet = Image.new("RGB", (width, picture.height + _TEXT + _GAP), _PAPER)
    ImageDraw.Draw(sheet).text((0, 0), title, fill=_INK, font=font)
    sheet.paste(picture, (0, _TEXT + _GAP // 2))
    return sheet


def _beside(pictures: Sequence[Image.Image]) -> Image.Image:
    width = sum(p.width + _GAP for p in pictures)
    sheet = Image.new("RGB", (width, max(p.height for p in pictures)), _PAPER)
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + _GAP
    return sheet


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures one below the other, with a margin."""
    height = sum(p.height + _GAP for p in pictures) + _GAP
    sheet = Image.new("RGB", (max(p.width for p in pictures) + 2 * _GAP, height), _PAPER)
    top = _GAP
    for picture in pictures:
        sheet.paste(picture, (_GAP, top))
        top += picture.height + _GAP
    return sheet
