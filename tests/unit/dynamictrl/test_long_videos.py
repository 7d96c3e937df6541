"""Long clips in windows: who sees which frame, how windows blend, and that memory does not grow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from PIL import Image

from dynamictrl import DynamiCtrlPipeline, latents
from dynamictrl.errors import InputError
from dynamictrl.geometry import latent_frames
from dynamictrl.long_videos import decode_in_pieces, plan_windows
from dynamictrl.mini.tiny import tiny_vae, write_tiny_model

IMAGE = Image.new("RGB", (16, 32), "grey")
BASES = {"1.0": {"patch_size_t": None, "sample_frames": 49}, "1.5": {"patch_size_t": 2, "sample_frames": 81}}


class PaintsThePose(ModelMixin, ConfigMixin):
    """A transformer that knows one thing: the clean clip is the pose's latents. It gives the v that leads there."""

    @register_to_config
    def __init__(
        self,
        patch_size: int = 2,
        patch_size_t: int | None = 2,
        sample_height: int = 12,
        sample_width: int = 8,
        sample_frames: int = 13,
        max_text_seq_length: int = 16,
        attention_head_dim: int = 16,
        ofs_embed_dim: int | None = 32,
        use_rotary_positional_embeddings: bool = True,
    ):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))
        self.frames_seen: list[int] = []

    def cache_context(self, name: str):
        return torch.no_grad()

    def forward(self, hidden_states, control_hidden_states, timestep, alphas=None, **_):
        self.frames_seen.append(hidden_states.shape[1])
        alpha = self.alphas[timestep].view(-1, 1, 1, 1, 1)
        noisy = hidden_states[:, :, :16]
        return ((alpha.sqrt() * noisy - control_hidden_states) / (1 - alpha).sqrt(),)


class OneChannelAFrame(ModelMixin):
    """A pose encoder without memory: the mean grey of each of a latent's four frames, in four channels each."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))

    def forward(self, pixels_BCFHW):
        grey = torch.nn.functional.avg_pool3d(pixels_BCFHW.mean(dim=1, keepdim=True), (1, 8, 8))
        whole = torch.cat([grey[:, :, :1].expand(-1, -1, 4, -1, -1), grey[:, :, 1:]], dim=2)
        return whole.unflatten(2, (-1, 4)).squeeze(1).repeat_interleave(4, dim=2)


@pytest.fixture
def painter(tiny_model: Path):
    made = DynamiCtrlPipeline.from_pretrained(tiny_model)
    made.transformer = PaintsThePose()
    made.transformer.alphas = made.scheduler.alphas_cumprod.float()
    made.set_progress_bar_config(disable=True)
    return made


def greys(count: int) -> np.ndarray:
    """Poses whose every frame has a grey of its own."""
    return np.repeat(np.arange(count, dtype=np.uint8)[:, None], 32 * 16 * 3, axis=1).reshape(count, 32, 16, 3) + 20


def frame_groups(frames: list[int]) -> list[list[int]]:
    """Which frames each latent stands for, as the VAE makes them: the first one, then fours."""
    return [frames[:1]] + [frames[i : i + 4] for i in range(1, len(frames), 4)]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("window", [9, 13, 25, 37])
@pytest.mark.parametrize("num_frames", [41, 45, 97, 205])
def test_a_shared_latent_stands_for_the_same_four_frames_in_every_window(base, window, num_frames):
    plan = plan_windows(num_frames, BASES[base], window)
    clip = frame_groups(list(range(num_frames)))
    offset = plan.state_frames - plan.total
    for index in range(plan.count):
        seen = frame_groups(list(range(num_frames))[plan.frames(index)])
        where = plan.positions(index)
        assert len(seen) == plan.length == latent_frames(window)
        assert len(where) == plan.length + plan.padding
        assert len(where) % (BASES[base]["patch_size_t"] or 1) == 0
        for group, place in zip(seen, where[plan.padding :].tolist(), strict=True):
            if place >= offset:
                assert group == clip[place - offset]
            else:
                assert (index > 0, group) == (True, [4 * plan.starts[index]])


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(("num_frames", "window", "overlap"), [(41, 13, 4), (97, 25, 8), (97, 37, 16), (205, 37, 12)])
def test_weights_are_a_smooth_share_of_one_everywhere(base, num_frames, window, overlap):
    plan = plan_windows(num_frames, BASES[base], window, overlap)
    state = torch.zeros(plan.state_frames)
    for index in range(plan.count):
        weights = plan.weights(index)
        assert weights.min() > 0
        state.index_add_(0, plan.positions(index), weights)
        # A cosine ramp over n latents changes by at most pi / 2 / (n + 1) from one to the next.
        assert weights[plan.padding + (index > 0) :].diff().abs().max() <= 1.571 / (overlap / 4 + 1)
    torch.testing.assert_close(state, torch.ones_like(state))


def test_neighbours_share_at_least_what_was_asked_and_the_ends_are_met():
    for num_frames in range(29, 400, 4):
        plan = plan_windows(num_frames, BASES["1.5"], 25, 8)
        assert plan.starts[0] == 0
        assert plan.starts[-1] + plan.length == plan.total
        strides = np.diff(plan.starts)
        # The window's first latent is its own, so two shared ones leave a stride of four.
        assert strides.max() <= 4
        assert np.ptp(strides) <= 1


def test_the_bases_own_length_is_the_default_and_zero_never_cuts():
    assert plan_windows(81, BASES["1.5"]).count == 1
    long = plan_windows(85, BASES["1.5"])
    assert (long.count, long.length, long.padding) == (2, 21, 1)
    assert plan_windows(85, BASES["1.0"]).padding == 0
    assert plan_windows(485, BASES["1.5"], 0).count == 1
    assert plan_windows(41, BASES["1.5"], 45).count == 1


@pytest.mark.parametrize(
    ("window", "overlap", "message"),
    [
        (24, None, "window_frames is 24.*nearest are 21 and 25"),
        (5, None, "9 at least"),
        (25, 6, "window_overlap is 6.*multiple of 4 from 4 to 20"),
        (25, 24, "4 to 20"),
        (25, 0, "4 to 20"),
    ],
)
def test_windows_that_cannot_be_are_refused_with_the_way_out(window, overlap, message):
    with pytest.raises(InputError, match=message) as caught:
        plan_windows(97, BASES["1.5"], window, overlap)
    assert caught.value.code == "bad_window"


def test_overlaps_begin_from_the_same_noise():
    plan = plan_windows(97, BASES["1.5"], 25, 8)
    state = torch.arange(plan.padding + plan.total)[plan.noise_order()]
    for index, start in enumerate(plan.starts):
        seen = state[plan.positions(index)]
        assert seen[plan.padding :].tolist() == list(range(plan.padding + start, plan.padding + start + plan.length))


@pytest.mark.parametrize("window", [9, 13, 25])
def test_a_model_of_the_pose_alone_gives_the_same_clip_in_windows_and_at_once(painter, window):
    painter.pose_encoder = OneChannelAFrame()
    painter.scheduler = CogVideoXDDIMScheduler.from_config(painter.scheduler.config)
    noise = torch.randn(1, 14, 16, 4, 2, generator=torch.Generator().manual_seed(0))
    given = {"num_inference_steps": 4, "output_type": "latent", "num_frames": 53}
    whole = painter(IMAGE, greys(53), "", latents=noise, window_frames=0, **given).frames
    plan = plan_windows(53, painter.transformer.config, window)
    noise = noise if plan.padding == 0 else torch.cat([noise[:, :1], noise], dim=1)
    cut = painter(IMAGE, greys(53), "", latents=noise, window_frames=window, **given).frames
    assert plan.count > 1
    torch.testing.assert_close(cut, whole, atol=1e-4, rtol=0)
    # Frame i is pose i: each frame's grey is read back from its latent's four channels.
    greys_read = cut[0].mean(dim=(2, 3))[:, ::4].flatten()[3:]
    torch.testing.assert_close(greys_read, torch.arange(53) * 2 / 255 + 40 / 255 - 1, atol=1e-3, rtol=0)


@pytest.mark.parametrize("window_frames", [13, 0])
def test_one_window_is_bit_for_bit_the_ordinary_call(tiny_model, window_frames):
    made = DynamiCtrlPipeline.from_pretrained(tiny_model)
    made.set_progress_bar_config(disable=True)

    def render(**options):
        seed = torch.Generator().manual_seed(5)
        return made(IMAGE, greys(13), "a", num_inference_steps=2, output_type="np", generator=seed, **options).frames

    assert np.array_equal(render(), render(window_frames=window_frames))
    assert not np.array_equal(render(), render(window_frames=9))


@pytest.mark.parametrize("base", ["1.0", "1.5"])
def test_every_legal_count_comes_back_in_full_from_windows(tmp_path, base):
    made = DynamiCtrlPipeline.from_pretrained(write_tiny_model(tmp_path, base))
    made.set_progress_bar_config(disable=True)
    for num_frames, kind in ((17, "np"), (21, "pt"), (25, "np"), (29, "pt")):
        given = {"num_inference_steps": 1, "window_frames": 9, "window_overlap": 4, "output_type": kind}
        shape = (1, num_frames, 32, 16, 3) if kind == "np" else (1, num_frames, 3, 32, 16)
        assert made(IMAGE, greys(num_frames), "a", **given).frames.shape == shape
    pictures = made(IMAGE, greys(33), "a", num_inference_steps=1, window_frames=13).frames
    assert [len(pictures), len(pictures[0]), pictures[0][0].size] == [1, 33, (16, 32)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10])
@torch.no_grad()
def test_decoding_in_pieces_is_bit_equal_to_the_whole(count):
    torch.manual_seed(0)
    vae, z = tiny_vae().eval(), torch.randn(1, count, 16, 4, 2)
    frames = 4 * count - 3
    pieces = list(decode_in_pieces(vae, z, frames))
    assert torch.equal(torch.cat(pieces, dim=2), latents.decode(vae, z, frames))
    assert max(piece.shape[2] for piece in pieces) <= 9


@torch.no_grad()
def test_tiles_are_decoded_in_pieces_too_and_come_close():
    torch.manual_seed(0)
    vae, z = tiny_vae().eval(), torch.randn(1, 17, 16, 7, 6)
    vae.enable_tiling()
    whole = latents.decode(vae, z, 65)
    pieces = torch.cat(list(decode_in_pieces(vae, z, 65)), dim=2)
    assert pieces.shape == whole.shape
    assert torch.equal(pieces[:, :, :29], whole[:, :, :29])
    error = ((pieces - whole) ** 2).mean() / whole.var()
    assert error < 0.01


def test_what_runs_at_once_does_not_grow_with_the_clip(painter):
    """The largest tensors that the transformer, the encoder and the decoder are given, at 2 and 4 times the length."""
    largest = {}
    parts = {"encoder": painter.vae.encoder, "decoder": painter.vae.decoder, "transformer": painter.transformer}
    for name, module in parts.items():

        def watch(_, args, kwargs, output, name=name):
            made = output[0]
            largest[name] = max(largest.get(name, 0), made.numel())

        module.register_forward_hook(watch, with_kwargs=True)

    def peak(num_frames):
        largest.clear()
        painter(IMAGE, greys(num_frames), "", num_inference_steps=1, window_frames=13, output_type="pt")
        return dict(largest)

    assert peak(25) == peak(49) == peak(97)
    assert set(painter.transformer.frames_seen) == {4}
