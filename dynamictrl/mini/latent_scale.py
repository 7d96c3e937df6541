"""Latents as diffusion wants them: every channel of unit variance, none a copy of another.

Shape suffixes: B batch, C channels, F frames, H W size.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSpatialNorm3D
from torch import Tensor


def channel_statistics(latents_BCFHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [C] and covariance [C, C] of the channels over everything else."""
    values_NC = latents_BCFHW.transpose(0, 1).flatten(1).T.float()
    mean_C = values_NC.mean(dim=0)
    centred_NC = values_NC - mean_C
    return mean_C, centred_NC.T @ centred_NC / len(centred_NC)


def whiteness_loss(latents_BCFHW: Tensor) -> Tensor:
    """How far a batch's channels are from mean 0 and covariance 1: squared, summed, and divided by the channels."""
    mean_C, covariance_CC = channel_statistics(latents_BCFHW)
    off_CC = covariance_CC - torch.eye(len(mean_C), device=mean_C.device)
    return (mean_C.square().sum() + off_CC.square().sum()) / len(mean_C)


@torch.no_grad()
def whiten(vae: AutoencoderKLCogVideoX, pixels_BCFHW: Tensor) -> None:
    """Folds into a VAE's weights the change of latents that whitens those of `pixels_BCFHW`, in place.

    The encoder's last convolution and the decoder's first ones take it up, so that decoding what was encoded stays as
    it was, but for the border: there a decoder pads with zeros, which now stand for another value. The posterior's
    variance is carried over channel by channel, which is no more than roughly right. Train on after it.
    """
    posteriors = [vae.encode(part).latent_dist for part in pixels_BCFHW.split(4)]  # pyright: ignore[reportAttributeAccessIssue]
    mean_C, covariance_CC = channel_statistics(torch.cat([p.mean for p in posteriors]))
    values_C, vectors_CC = torch.linalg.eigh(covariance_CC.double())
    # Symmetric whitening moves each channel as little as it can; very faint channels are not blown up to noise.
    roots_C = values_C.clamp(min=1e-3 * float(values_C.max())).sqrt()
    forth_CC = (vectors_CC / roots_C) @ vectors_CC.T
    back_CC = (vectors_CC * roots_C) @ vectors_CC.T
    _after(vae, mean_C, forth_CC.float(), torch.cat([p.std for p in posteriors]))
    for layer in (vae.decoder.conv_in.conv, *_spatial_convolutions(vae.decoder)):
        _before(layer, mean_C, back_CC.float())


def _spatial_convolutions(decoder: torch.nn.Module) -> list[torch.nn.Conv3d]:
    norms = [layer for layer in decoder.modules() if isinstance(layer, CogVideoXSpatialNorm3D)]
    return [convolution.conv for norm in norms for convolution in (norm.conv_y, norm.conv_b)]  # pyright: ignore[reportReturnType]


def _after(vae: AutoencoderKLCogVideoX, mean_C: Tensor, forth_CC: Tensor, std_BCFHW: Tensor) -> None:
    """Makes the encoder give W (z - mean), and posterior widths that fit it on average."""
    last, channels = vae.encoder.conv_out.conv, len(mean_C)
    weight, bias = last.weight, last.bias
    assert bias is not None
    weight[:channels] = torch.einsum("ij,jcthw->icthw", forth_CC, weight[:channels])
    bias[:channels] = forth_CC @ (bias[:channels] - mean_C)
    old_C = std_BCFHW.square().mean(dim=(0, 2, 3, 4))
    bias[channels:] += ((forth_CC.square() @ old_C) / old_C).log()


def _before(layer: torch.nn.Conv3d, mean_C: Tensor, back_CC: Tensor) -> None:
    """Makes a convolution over z take W (z - mean) instead."""
    assert layer.bias is not None
    layer.bias += layer.weight.sum(dim=(2, 3, 4)) @ mean_C
    layer.weight.copy_(torch.einsum("ojthw,jc->octhw", layer.weight, back_CC))
