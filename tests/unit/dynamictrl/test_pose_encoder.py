"""The expert pose encoder: the VAE's shape, causal grouping of frames, and its folder."""

import pytest
import torch

from dynamictrl.errors import ConfigError, InputError
from dynamictrl.mini.tiny import tiny_transformer
from dynamictrl.pose_encoder import PoseEncodedTransformer, PoseEncoder


@pytest.mark.parametrize("frames", [1, 5, 13])
@torch.no_grad()
def test_latents_have_the_vaes_shape(frames):
    made = PoseEncoder(widths=(4, 4, 8))(torch.zeros(2, 3, frames, 32, 48))
    assert made.shape == (2, (frames - 1) // 4 + 1, 16, 4, 6)


@torch.no_grad()
def test_the_first_frame_stands_alone_and_four_frames_make_a_latent():
    torch.manual_seed(0)
    encoder = PoseEncoder(widths=(4, 4, 8))
    pixels = torch.randn(1, 3, 9, 16, 16)
    plain = encoder(pixels)
    for frame, latent in ((0, 0), (1, 1), (4, 1), (5, 2), (8, 2)):
        moved = pixels.clone()
        moved[:, :, frame] += 1
        changed = (encoder(moved) - plain).abs().amax(dim=(0, 2, 3, 4)) > 1e-6
        assert changed.nonzero().flatten().tolist() == [latent]


def test_its_first_weights_are_gaussian_and_a_folder_gives_them_back(tmp_path):
    torch.manual_seed(0)
    encoder = PoseEncoder()
    weight = encoder.temporal.weight
    assert weight.std().item() == pytest.approx((2 / (128 * 4)) ** 0.5, rel=0.02)
    assert (weight.abs() > 2 * weight.std()).float().mean().item() == pytest.approx(0.0455, abs=0.003)
    encoder.save_pretrained(tmp_path)
    again = PoseEncoder.from_pretrained(tmp_path)
    assert again.config["widths"] == [32, 64, 128] or tuple(again.config["widths"]) == (32, 64, 128)
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), again.parameters(), strict=True))


def test_a_transformer_with_its_encoder_pads_as_the_base_needs():
    torch.manual_seed(0)
    transformer, encoder = tiny_transformer("1.5").eval(), PoseEncoder(widths=(4, 4, 8))
    both = PoseEncodedTransformer(transformer, encoder)
    pixels = torch.randn(1, 3, 9, 32, 32)
    inputs = {
        "hidden_states": torch.randn(1, 4, 32, 4, 4),
        "encoder_hidden_states": torch.randn(1, 16, 32),
        "timestep": torch.tensor([5]),
        "ofs": torch.full((1,), 2.0),
        "return_dict": False,
    }
    latents = encoder(pixels)
    wanted = transformer(control_hidden_states=latents[:, [0, 0, 1, 2]], **inputs)[0]
    torch.testing.assert_close(both(control_hidden_states=pixels, **inputs)[0], wanted)


def test_what_it_cannot_encode_is_refused():
    with pytest.raises(InputError, match="6 frames of 16x16"):
        PoseEncoder(widths=(4, 4, 8))(torch.zeros(1, 3, 6, 16, 16))
    with pytest.raises(ConfigError, match="three channel counts"):
        PoseEncoder(widths=(4, 8))
