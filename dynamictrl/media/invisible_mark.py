"""A number hidden in the frames of a clip, found again after re-encoding, scaling and cropping by who has the key.

Spread spectrum: a pattern of mid frequencies, 64 x 64 pixels, made from the key, is added to the luma of every frame,
side by side over the whole picture. It is the sum of one *anchor* and five *hands*; each hand is the same kind of
pattern, and where it stands relative to the anchor, on a grid of 16 x 16 places, says 8 bits: 32 of payload and 8 that
check them. A crop moves all together, so it changes nothing; a scale is searched for. The detector averages the frames,
takes out what is picture (smooth, or a strong edge), folds the rest into one tile, and correlates. It sees no original.

Why not a library: `invisible-watermark` and `blind-watermark` (both last released in 2023) mark single pictures by
blocks and lose step when one is scaled or cropped; `trustmark` and `videoseal` download networks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

TILE = 64
"""Pixels of the repeated square."""
GRID = 4
"""Pixels between two places of a hand: nearer ones look alike in this band."""
HANDS = 5
BAND = (5.0, 17.0)
"""Waves per tile: below, the eye and the picture's own content are strong; above, encoders forget first."""
STRENGTH = 2.2
"""Root mean square of the mark in luma levels, of 255: about 41.2 dB PSNR."""
FOUND = 25.0
"""Score from which a mark counts as found; `tests/benchmarks/serving_provenance.py` measures both errors."""
SCALES = (0.6, 1.4)
"""Least and greatest size, relative to when it was marked, at which a mark is searched for."""
MAX_FRAMES = 48
"""Frames averaged by the detector, spread over the clip."""

_PLACES = TILE // GRID


@dataclass(frozen=True)
class Found:
    """A detected mark."""

    payload: int
    score: float
    scale: float
    """Size of the picture relative to when it was marked."""


def mark(frames: NDArray[np.uint8], payload: int, key: bytes) -> NDArray[np.uint8]:
    """[F, H, W, 3] RGB with a 32-bit `payload` hidden in it; the same pattern on every frame."""
    height, width = frames.shape[1:3]
    tile = _tile(payload, key)
    pattern = np.tile(tile, (-(-height // TILE), -(-width // TILE)))[:height, :width]
    pattern *= _tolerance(_mean_luma(frames))
    pattern *= STRENGTH / max(1e-6, float(np.sqrt(np.mean(pattern**2))))
    added = np.repeat(np.rint(pattern).astype(np.int16)[..., None], 3, axis=2)
    return np.stack([cv2.add(frame, added, dtype=cv2.CV_8U) for frame in frames]).astype(np.uint8, copy=False)


def find(frames: NDArray[np.uint8], key: bytes) -> Found | None:
    """The mark in [F, H, W, 3] RGB, None where there is none of this key."""
    best = strongest(frames, key)
    return best if best.score >= FOUND else None


def strongest(frames: NDArray[np.uint8], key: bytes) -> Found:
    """The likeliest mark, however weak: what `find` decides by."""
    rest = _residual(_mean_luma(frames))
    patterns = _patterns(key)
    best = _at_scale(rest, patterns, 1.0)
    if best.score >= FOUND:
        return best
    # A small piece tolerates a coarse step; the whole picture then tells the size exactly.
    piece = _middle(rest, 6 * TILE)
    step = 0.35 * TILE / BAND[1] / max(piece.shape)
    rough = max((_at_scale(piece, patterns, s) for s in np.arange(*SCALES, step)), key=lambda found: found.score)
    fine = 0.35 * TILE / BAND[1] / max(rest.shape)
    near = np.arange(rough.scale - step, rough.scale + step, fine)
    return max((best, *(_at_scale(rest, patterns, s) for s in near)), key=lambda found: found.score)


def _at_scale(rest: NDArray[np.floating], patterns: NDArray[np.complexfloating], scale: float) -> Found:
    if scale != 1.0:
        height, width = rest.shape
        size = (max(TILE, round(width / scale)), max(TILE, round(height / scale)))
        rest = np.asarray(cv2.resize(rest, size, interpolation=cv2.INTER_CUBIC), np.float32)
    spectrum = np.fft.fft2(_fold(rest))
    magnitude = np.abs(spectrum)
    # Every frequency counts alike: what is left of the picture sits in few of them.
    spectrum = np.where(_in_band(), spectrum / (magnitude + 1e-6), 0)
    maps = np.fft.ifft2(spectrum[None] * patterns.conj()).real
    maps /= maps.std(axis=(1, 2), keepdims=True) + 1e-9
    return _read(maps, float(scale))


def _read(maps: NDArray[np.floating], scale: float) -> Found:
    """The likeliest anchor and hands in [1 + HANDS, TILE, TILE] correlation maps."""
    anchor, hands = maps[0], maps[1:]
    # [HANDS, 4, 4]: the best place of each hand for every anchor that lies so within the grid.
    cells = hands.reshape(HANDS, _PLACES, GRID, _PLACES, GRID)
    best = cells.max(axis=(1, 3)).sum(axis=0)
    total = anchor + np.tile(best, (_PLACES, _PLACES))
    y, x = np.unravel_index(int(total.argmax()), total.shape)
    symbols = [_place(np.roll(hand, (-y, -x), (0, 1))) for hand in hands]
    payload = int.from_bytes(bytes(symbols[:4]), "big")
    score = float(total[y, x]) if symbols[4] == _check(payload) else 0.0
    return Found(payload, score, scale)


def _place(shifted: NDArray[np.floating]) -> int:
    return int(shifted[::GRID, ::GRID].argmax())


def _tile(payload: int, key: bytes) -> NDArray[np.floating]:
    assert 0 <= payload < 2**32, payload
    anchor, *hands = np.fft.ifft2(_patterns(key)).real
    total = anchor.copy()
    for hand, symbol in zip(hands, [*payload.to_bytes(4, "big"), _check(payload)], strict=True):
        total += np.roll(hand, (symbol // _PLACES * GRID, symbol % _PLACES * GRID), (0, 1))
    return (total / total.std()).astype(np.float32)


def _patterns(key: bytes) -> NDArray[np.complexfloating]:
    """Spectra of the anchor and the hands: random phases in the band, each wave as strong as the next."""
    seed = int.from_bytes(hashlib.sha256(b"dynamictrl invisible mark 1" + key).digest(), "big")
    noise = np.random.Generator(np.random.PCG64(seed)).standard_normal((1 + HANDS, TILE, TILE))
    spectrum = np.fft.fft2(noise)
    return np.where(_in_band(), spectrum / np.abs(spectrum), 0).astype(np.complex64)


def _in_band() -> NDArray[np.bool_]:
    waves = np.fft.fftfreq(TILE, 1 / TILE)
    radius = np.hypot(waves[:, None], waves[None, :])
    return (radius >= BAND[0]) & (radius <= BAND[1])


def _check(payload: int) -> int:
    return hashlib.sha256(payload.to_bytes(4, "big")).digest()[0]


def _mean_luma(frames: NDArray[np.uint8]) -> NDArray[np.floating]:
    chosen = np.unique(np.linspace(0, len(frames) - 1, MAX_FRAMES).round().astype(int))
    weights = np.array([[0.2126, 0.7152, 0.0722]], np.float32)
    total = np.zeros(frames.shape[1:3], np.float32)
    for index in chosen:
        total += cv2.transform(frames[index].astype(np.float32), weights)
    return total / len(chosen)


def _tolerance(luma: NDArray[np.floating]) -> NDArray[np.floating]:
    """How much a place hides: more in texture than in a smooth sky."""
    mean = cv2.GaussianBlur(luma, (0, 0), 3)
    texture = np.sqrt(np.maximum(cv2.GaussianBlur(luma * luma, (0, 0), 3) - mean * mean, 0))
    return np.clip(0.75 + texture / 16, 0.75, 1.75)


def _residual(luma: NDArray[np.floating]) -> NDArray[np.floating]:
    """Without what is picture: the smooth part, and the strength of edges."""
    rest = luma - cv2.GaussianBlur(luma, (0, 0), 4)
    limit = 2.5 * STRENGTH
    rest = np.clip(rest, -limit, limit)
    local = np.sqrt(cv2.GaussianBlur(rest * rest, (0, 0), 6)) + 0.5
    return rest / local


def _fold(rest: NDArray[np.floating]) -> NDArray[np.floating]:
    height, width = rest.shape
    padded = np.zeros((-(-height // TILE) * TILE, -(-width // TILE) * TILE))
    padded[:height, :width] = rest
    return padded.reshape(padded.shape[0] // TILE, TILE, padded.shape[1] // TILE, TILE).sum(axis=(0, 2))


def _middle(rest: NDArray[np.floating], side: int) -> NDArray[np.floating]:
    top, left = max(0, rest.shape[0] - side) // 2, max(0, rest.shape[1] - side) // 2
    return rest[top : top + side, left : left + side]
