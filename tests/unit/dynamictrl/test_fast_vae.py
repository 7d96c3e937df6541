"""The fast VAE gives the stock one's numbers, whole, in pieces and in tiles; its GPU kernels give the plain ones'."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX

from dynamictrl.acceleration.fast_vae import hasten_vae
from dynamictrl.acceleration.planes import Planes, with_border, without_border
from dynamictrl.long_videos import decode_in_pieces


@pytest.fixture(scope="module")
def vaes() -> tuple[AutoencoderKLCogVideoX, AutoencoderKLCogVideoX]:
    """A stock VAE of several widths with weights that leave nothing near zero, and the same made fast."""
    torch.manual_seed(0)
    stock = AutoencoderKLCogVideoX(
        block_out_channels=(8, 16, 16, 24),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        norm_num_groups=4,
        sample_height=96,
        sample_width=80,
    ).eval()
    for parameter in stock.parameters():
        torch.nn.init.normal_(parameter, mean=0.3 * (parameter.ndim == 1), std=0.1)
    stock.requires_grad_(False)
    fast = copy.deepcopy(stock)
    hasten_vae(fast)
    return stock, fast


@pytest.mark.parametrize("latents", [1, 2, 3, 5])
def test_decoding_is_the_same_for_even_and_odd_counts(vaes, latents: int):
    stock, fast = vaes
    z = torch.randn((2, 16, latents, 4, 6), generator=torch.Generator().manual_seed(latents))
    torch.testing.assert_close(fast.decode(z).sample, stock.decode(z).sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 5, 9, 17])
def test_encoding_is_the_same(vaes, frames: int):
    stock, fast = vaes
    pixels = torch.rand((1, 3, frames, 32, 48), generator=torch.Generator().manual_seed(frames)) * 2 - 1
    found, wanted = (vae.encode(pixels).latent_dist.parameters for vae in (fast, stock))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_pieces_and_tiles_are_the_same(vaes):
    stock, fast = vaes
    latents = torch.randn((1, 4, 16, 12, 10), generator=torch.Generator().manual_seed(3))
    found, wanted = (torch.cat(list(decode_in_pieces(vae, latents, 13)), 2) for vae in (fast, stock))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    try:
        for vae in vaes:
            vae.enable_tiling()
        z = latents.transpose(1, 2)[:, :, :3]
        torch.testing.assert_close(fast.decode(z).sample, stock.decode(z).sample, rtol=1e-4, atol=1e-4)
    finally:
        for vae in vaes:
            vae.disable_tiling()


def test_weights_and_keys_stay_and_a_changed_weight_is_seen(vaes):
    stock, fast = (copy.deepcopy(vae) for vae in vaes)
    hasten_vae(fast)
    assert list(fast.state_dict()) == list(stock.state_dict())
    z = torch.randn((1, 16, 1, 4, 4))
    before = fast.decode(z).sample
    for vae in (stock, fast):
        vae.decoder.conv_in.conv.weight.mul_(2)
    assert not torch.allclose(fast.decode(z).sample, before)
    torch.testing.assert_close(fast.decode(z).sample, stock.decode(z).sample, rtol=1e-4, atol=1e-4)


def test_gradients_are_the_stock_network_s(vaes):
    stock, fast = vaes
    gradients = []
    for vae in (stock, fast):
        z = torch.randn((1, 16, 1, 4, 4), generator=torch.Generator().manual_seed(0)).requires_grad_(True)
        vae.decode(z).sample.square().mean().backward()
        gradients.append(z.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


def kernels_against_plain_torch(device: str, dtype: torch.dtype, tolerance: float) -> None:
    """Every operation of `TritonPlanes`, on sizes that fill no tile."""
    from dynamictrl.acceleration.triton_planes import TritonPlanes

    fast, plain = TritonPlanes(), Planes()
    generator = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    def compare(found: torch.Tensor, wanted: torch.Tensor) -> None:
        assert float((found.double() - wanted.double()).norm() / wanted.double().norm()) < tolerance

    for frames, height, width, channels, outputs, taps in ((2, 4, 5, 16, 16, 3), (1, 3, 6, 32, 32, 1)):
        history = with_border(draw(frames + taps - 1, height, width, channels))
        weight, bias = draw(outputs, taps, 3, 3, channels), draw(outputs)
        for beside in (None, draw(frames, height + 2, width + 2, outputs)):
            found, wanted = (planes.convolve(history, weight, bias, beside) for planes in (fast, plain))
            compare(without_border(found), without_border(wanted))
    x = draw(5, 6, 10, 32)
    for found, wanted in zip(fast.statistics(x, 8, 1e-6), plain.statistics(x, 8, 1e-6), strict=True):
        compare(found, wanted)
    scale, shift = draw(32).float(), draw(32).float()
    for latents in (None, (draw(3, 2, 4, 32), draw(3, 2, 4, 32))):
        found, wanted = torch.full_like(x, torch.nan), torch.empty_like(x)
        fast.normalise(x, scale, shift, latents, found)
        plain.normalise(x, scale, shift, latents, wanted)
        compare(found, wanted)
    compare(fast.enlarge(x), plain.enlarge(x))


def test_gpu_kernels_give_plain_numbers_in_triton_s_interpreter():
    pytest.importorskip("triton")
    code = (
        "import sys, torch; sys.path.insert(0, 'tests/unit/dynamictrl'); import test_fast_vae as t; "
        "t.kernels_against_plain_torch('cpu', torch.float32, 1e-5)"
    )
    asked = [sys.executable, "-c", code]
    done = subprocess.run(asked, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_kernels_give_plain_numbers_on_the_gpu():
    kernels_against_plain_torch("cuda", torch.bfloat16, 8e-3)
