"""Frame counts and their alignment through a real CogVideoX VAE of tiny size."""

import pytest
import torch

from dynamictrl import latents
from dynamictrl.errors import ConfigError, InputError
from dynamictrl.geometry import latent_frames
from dynamictrl.mini.tiny import tiny_vae


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return tiny_vae().eval()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("patch_size_t", [None, 2])
@pytest.mark.parametrize("frames", [1, 5, 9, 13, 17, 21, 25, 37, 49])
@torch.no_grad()
def test_as_many_frames_come_back_as_were_put_in(vae, frames, patch_size_t):
    encoded = latents.encode(vae, noise(1, 3, frames, 16, 16).clamp(-1, 1))
    assert encoded.shape == (1, latent_frames(frames), 16, 2, 2)
    padded = latents.pad_front(encoded, patch_size_t)
    assert padded.shape[1] % (patch_size_t or 1) == 0
    assert latents.decode(vae, padded, frames).shape == (1, 3, frames, 16, 16)


@pytest.mark.parametrize("frames", [1, 9, 25])
@torch.no_grad()
def test_an_odd_latent_count_is_decoded_as_diffusers_does(vae, frames):
    z = noise(1, latent_frames(frames), 16, 2, 2)
    assert torch.equal(latents.decode(vae, z, frames), vae.decode(z.transpose(1, 2) / 0.7).sample)


@torch.no_grad()
def test_front_padding_is_dropped_before_decoding(vae):
    z = noise(1, 7, 16, 2, 2)
    assert torch.equal(latents.decode(vae, latents.pad_front(z, 2), 25), latents.decode(vae, z, 25))


@torch.no_grad()
def test_37_frames_decode_in_step_with_how_they_were_encoded(vae):
    """The last 8 frames are the last 2 latents on the way in and on the way out, although 10 latents are even."""
    video = noise(1, 3, 37, 16, 16)
    moved = video.clone()
    moved[:, :, 29:] += 1
    before, after = (latents.encode(vae, x, sample=False) for x in (video, moved))
    assert torch.equal(before[:, :8], after[:, :8])
    assert not torch.isclose(before[:, 8], after[:, 8]).all()

    z = noise(1, 10, 16, 2, 2)
    changed = z.clone()
    changed[:, 8:] += 1
    one, other = (latents.decode(vae, x, 37) for x in (z, changed))
    assert torch.equal(one[:, :, :29], other[:, :, :29])
    assert not torch.isclose(one[:, :, 29], other[:, :, 29]).all()
    # What the VAE makes of 10 latents by itself: 40 frames, three late.
    plain, plain_changed = (vae.decode(x.transpose(1, 2)).sample for x in (z, changed))
    assert plain.shape[2] == 40
    assert torch.equal(plain[:, :, :32], plain_changed[:, :, :32])


@torch.no_grad()
def test_an_even_latent_count_starts_with_its_first_latents_last_frame(vae):
    """Repeating the first latent in front is the same as decoding a clip that stood still before it began."""
    z = noise(1, 2, 16, 2, 2)
    still = torch.cat([z[:, :1], z], dim=1)
    assert torch.equal(latents.decode(vae, z, 5), latents.decode(vae, still, 9)[:, :, 4:])


@torch.no_grad()
def test_tiling_keeps_the_frame_count(vae):
    vae.enable_tiling()
    try:
        assert latents.decode(vae, noise(1, 2, 16, 8, 8), 5).shape == (1, 3, 5, 64, 64)
    finally:
        vae.disable_tiling()


@torch.no_grad()
def test_encoding_scales_and_draws_from_the_posterior_or_takes_its_mean(vae):
    video = noise(1, 3, 5, 16, 16)
    posterior = vae.encode(video).latent_dist
    mean = latents.encode(vae, video, sample=False)
    assert torch.equal(mean, posterior.mode().transpose(1, 2) * 0.7)
    draws = [latents.encode(vae, video, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_the_reference_scale_follows_the_bases_flag():
    plain, inverted = ({"scaling_factor": 0.7, "invert_scale_latents": flag} for flag in (False, True))
    assert {latents.image_latent_scale(plain, rule) for rule in ("base", "unscaled", "scaled")} == {0.7}
    assert latents.image_latent_scale(inverted) == 1 / 0.7
    assert latents.image_latent_scale(inverted, "unscaled") == 1
    assert latents.image_latent_scale(inverted, "scaled") == 0.7
    with pytest.raises(ConfigError, match="'half'.*base, unscaled, scaled"):
        latents.image_latent_scale(inverted, "half")


def test_padding_repeats_the_first_latent_and_leaves_even_counts_alone():
    z = noise(1, 3, 2, 1, 1)
    assert torch.equal(latents.pad_front(z, 2), z[:, [0, 0, 1, 2]])
    assert latents.pad_front(z, None) is z
    assert latents.pad_front(z[:, :2], 2).shape[1] == 2


def test_counts_that_do_not_fit_are_refused(vae):
    with pytest.raises(InputError, match="6 frames"):
        latents.encode(vae, noise(1, 3, 6, 16, 16))
    with pytest.raises(InputError, match="3 latent frames.*13 frames.*needs 4"):
        latents.decode(vae, noise(1, 3, 16, 2, 2), 13)
