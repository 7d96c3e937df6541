"""Clips longer than the model's own length: overlapping windows of one latent video, denoised together.

Every window is a clip as the model knows them. Its first latent stands for ONE frame and the others for four each, as
the VAE makes them: a window that begins at latent frame s covers the video's frames 4s to 4(s + length - 1), its first
latent the frame 4s alone, and its latent k > 0 the very four frames of the video's latent s + k. So all but a later
window's first latent are shared with the video; that first one (and its copy where the base patches time in twos) is
the window's own, denoised beside the video and thrown away. Frame i is pose i in every window.

In each step the windows' predictions are blended where they overlap and one scheduler step is taken for all
(MultiDiffusion, Bar-Tal et al. 2023, in time). Blending v is blending clean pictures, as the noise is shared.
Windows run one by one, and decoding goes on from piece to piece: what a clip needs beside its frames and latents does
not grow with its length.

Shape suffixes: B batch, F latent frames, C channels, H W size; L latent frames of the whole clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor

from dynamictrl import latents as latent_space
from dynamictrl.errors import InputError
from dynamictrl.geometry import FRAMES_PER_LATENT, check_num_frames, latent_frames, legal_frames_below

_TILED_PIECE = 8
_TILED_LEAD_IN = 5
"""Latent frames. Tiles keep no state between pieces, so each piece is decoded behind some frames that came before."""


@dataclass(frozen=True)
class WindowPlan:
    """Which latent frames each window sees, and how much its word counts there.

    The state that is denoised is [later windows' own latents, the first one's padding, the L latents of the clip]; with
    one window that is what `latents.pad_front` makes.
    """

    starts: tuple[int, ...]
    """First latent frame of each window."""
    length: int
    """Latent frames of a window, without padding."""
    total: int
    """Latent frames of the clip (L)."""
    padding: int
    """Latents that the base wants repeated in front of a window (0, or 1 on 1.5 where `length` is odd)."""

    @property
    def count(self) -> int:
        return len(self.starts)

    @property
    def state_frames(self) -> int:
        """Latent frames that are denoised: the clip's, the paddings, and later windows' first ones."""
        return self.total + self.padding + (self.count - 1) * (self.padding + 1)

    def frames(self, window: int) -> slice:
        """The video frames that a window covers: one for its first latent, four for each other."""
        first = FRAMES_PER_LATENT * self.starts[window]
        return slice(first, first + FRAMES_PER_LATENT * (self.length - 1) + 1)

    def positions(self, window: int) -> Tensor:
        """Where a window's latents (padding included) lie in the state."""
        clip, own, start = self.state_frames - self.total, self.padding + 1, self.starts[window]
        if window == 0:
            return torch.arange(clip - self.padding, clip + self.length)
        first = (window - 1) * own
        shared = torch.arange(clip + start + 1, clip + start + self.length)
        return torch.cat([torch.arange(first, first + own), shared])

    def noise_order(self) -> Tensor:
        """For each latent of the state which one of an unwindowed call's noise [padding + L] it begins from.

        A window's own first latent takes the noise of the latent in its place: overlaps begin alike.
        """
        own = [[*range(self.padding), self.padding + start] for start in self.starts[1:]]
        return torch.tensor([*sum(own, []), *range(self.padding + self.total)])

    def weights(self, window: int) -> Tensor:
        """[padding + length] float32: a share of 1 for each shared latent, 1 for what is the window's own."""
        own = self.padding + (window > 0)
        span = slice(*self._span(window))
        shares = self._ramps()[window, span] / self._ramps()[:, span].sum(axis=0)
        return torch.cat([torch.ones(own), torch.from_numpy(shares).float()])

    def blend(self, state_BFCHW: Tensor, predict: Callable[[int, Tensor], Tensor]) -> Tensor:
        """The windows' predictions as one for the whole state; `predict` takes a window's number and its latents."""
        if self.count == 1:
            return predict(0, state_BFCHW)
        blended = torch.zeros_like(state_BFCHW)
        for window in range(self.count):
            where = self.positions(window).to(state_BFCHW.device)
            weights = self.weights(window).to(state_BFCHW)[None, :, None, None, None]
            blended.index_add_(1, where, predict(window, state_BFCHW.index_select(1, where)).to(blended) * weights)
        return blended

    def borders(self) -> list[int]:
        """Video frames at which one window's word begins to count more than the one's before it."""
        leading = self._ramps().argmax(axis=0)
        changes = np.nonzero(np.diff(leading))[0] + 1
        return [FRAMES_PER_LATENT * (int(latent) - 1) + 1 for latent in changes]

    def _span(self, window: int) -> tuple[int, int]:
        """The clip's latents that a window shares."""
        start = self.starts[window]
        return start + (window > 0), start + self.length

    def _ramps(self) -> np.ndarray:
        """[windows, L]: sin^2 up where a window overlaps the one before it, down towards the next, 1 between."""
        ramps = np.zeros((self.count, self.total))
        for window in range(self.count):
            first, last = self._span(window)
            place = np.arange(first, last)
            ramp = np.ones(last - first)
            if window > 0:
                ramp *= _rise(place - first, self._span(window - 1)[1] - first)
            if window < self.count - 1:
                ramp *= _rise(last - 1 - place, last - self._span(window + 1)[0])
            ramps[window, first:last] = ramp
        return ramps


def _rise(place: np.ndarray, overlap: int) -> np.ndarray:
    """0..1 over `overlap` latents, symmetrical: a rise and the fall that meets it add up to 1."""
    return np.sin(np.pi / 2 * np.clip((place + 1) / (overlap + 1), 0, 1)) ** 2


def plan_windows(
    num_frames: int,
    config: Mapping[str, Any],
    window_frames: int | None = None,
    window_overlap: int | None = None,
) -> WindowPlan:
    """Windows of equal length, evenly spread, for a clip of any legal count; both lengths are in video frames.

    `config` is the transformer's. `window_frames` (4k + 1; on a base that patches time in twos 8k + 5 needs no padding)
    is the base's own length by default, so that a clip is cut up only where it is longer; 0 never cuts.
    `window_overlap` (a multiple of 4, about three tenths of a window by default) is what neighbours share at least.
    Raises InputError for lengths that cannot be.
    """
    check_num_frames(num_frames)
    patch_size_t, total = config["patch_size_t"], latent_frames(num_frames)
    size = _window_length(config, window_frames)
    if size == 0 or size >= num_frames:
        return WindowPlan((0,), total, total, latent_space.padding(total, patch_size_t))
    length = latent_frames(size)
    # A later window's first latent is its own: it is shared with nobody.
    stride = length - 1 - _overlap(size, window_overlap) // FRAMES_PER_LATENT
    count = math.ceil((total - length) / stride) + 1
    starts = np.rint(np.linspace(0, total - length, count)).astype(int).tolist()
    return WindowPlan(tuple(starts), length, total, latent_space.padding(length, patch_size_t))


def _window_length(config: Mapping[str, Any], window_frames: int | None) -> int:
    if window_frames is None:
        return legal_frames_below(config["sample_frames"])
    if window_frames == 0:
        return 0
    try:
        check_num_frames(window_frames)
        if window_frames < 9:
            raise InputError(f"{window_frames} frames are too short a window: 9 at least, of which 4 overlap.")
    except InputError as error:
        raise InputError(
            f"window_frames is {window_frames}. {error} 0 renders the clip in one window.",
            code="bad_window",
            param="window_frames",
        ) from None
    return window_frames


def _overlap(window_frames: int, window_overlap: int | None) -> int:
    """Video frames that neighbouring windows share at least."""
    most = window_frames - 2 * FRAMES_PER_LATENT + FRAMES_PER_LATENT - 1
    most -= most % FRAMES_PER_LATENT
    if window_overlap is None:
        return min(most, max(1, round(0.3 * window_frames / FRAMES_PER_LATENT)) * FRAMES_PER_LATENT)
    if window_overlap % FRAMES_PER_LATENT or not FRAMES_PER_LATENT <= window_overlap <= most:
        raise InputError(
            f"window_overlap is {window_overlap}; it must be a multiple of {FRAMES_PER_LATENT} from "
            f"{FRAMES_PER_LATENT} to {most} for windows of {window_frames} frames",
            code="bad_window",
            param="window_overlap",
        )
    return window_overlap


def decode_in_pieces(vae: AutoencoderKLCogVideoX, latents_BFCHW: Tensor, num_frames: int) -> Iterator[Tensor]:
    """The frames of `latents.decode`, 8 at a time: float32 pixels BCFHW, about [-1, 1], in order.

    The VAE's causal state is carried from piece to piece, so the pieces together are bit-equal to the whole. A VAE
    that decodes in tiles (`enable_tiling`) keeps none; its pieces begin behind `_TILED_LEAD_IN` latents that are
    thrown away, which is close but not equal.
    """
    count = latent_frames(num_frames)
    latents_BFCHW = latents_BFCHW[:, -count:]
    tiled = vae.use_tiling and (
        latents_BFCHW.shape[3] > vae.tile_latent_min_height or latents_BFCHW.shape[4] > vae.tile_latent_min_width
    )
    yield from (_tiled_pieces if tiled else _streamed_pieces)(vae, latents_BFCHW)


def _streamed_pieces(vae: AutoencoderKLCogVideoX, latents_BFCHW: Tensor) -> Iterator[Tensor]:
    """Two latents a piece and three in the first, as CogVideoX's decoder takes them."""
    _bring_to_device(vae)
    surplus = 0
    if latents_BFCHW.shape[1] % 2 == 0:
        # As in `latents.decode`: a repeated first latent keeps the frames in step, and its frames are dropped.
        latents_BFCHW = torch.cat([latents_BFCHW[:, :1], latents_BFCHW], dim=1)
        surplus = FRAMES_PER_LATENT
    edges = [0, *range(min(3, latents_BFCHW.shape[1]), latents_BFCHW.shape[1] + 1, 2)]
    state = None
    for first, last in zip(edges, edges[1:], strict=False):
        z_BCFHW = latents_BFCHW[:, first:last].transpose(1, 2).to(vae.dtype) / float(vae.config["scaling_factor"])
        if vae.post_quant_conv is not None:
            z_BCFHW = vae.post_quant_conv(z_BCFHW)
        pixels_BCFHW, state = vae.decoder(z_BCFHW, conv_cache=state)
        yield pixels_BCFHW[:, :, surplus if first == 0 else 0 :].float()


def _tiled_pieces(vae: AutoencoderKLCogVideoX, latents_BFCHW: Tensor) -> Iterator[Tensor]:
    total = latents_BFCHW.shape[1]
    # Odd or even as the whole is, so that the first piece is decoded as the whole begins.
    edges = [0, *range(min(_TILED_PIECE + total % 2, total), total, _TILED_PIECE), total]
    for first, last in zip(edges, edges[1:], strict=False):
        lead = max(0, first - _TILED_LEAD_IN)
        whole = FRAMES_PER_LATENT * (last - lead - 1) + 1
        kept = FRAMES_PER_LATENT * (last - first) - (FRAMES_PER_LATENT - 1 if first == 0 else 0)
        yield latent_space.decode(vae, latents_BFCHW[:, lead:last], whole)[:, :, -kept:]


@apply_forward_hook
def _bring_to_device(vae: AutoencoderKLCogVideoX) -> None:
    """What `vae.decode` does first: under CPU offload the weights are elsewhere until a hook is asked for them."""


def join_pieces(pieces: Iterable[Any]) -> Any:  # noqa: ANN401 - as diffusers' VideoProcessor gives them
    """Consecutive pieces of clips in one: arrays [B, F, H, W, 3], tensors [B, F, 3, H, W], or lists of pictures."""
    parts = list(pieces)
    if isinstance(parts[0], Tensor):
        return torch.cat(parts, dim=1)
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, axis=1)
    return [sum(clip, []) for clip in zip(*parts, strict=True)]
