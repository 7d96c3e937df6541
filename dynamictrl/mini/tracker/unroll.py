"""SAM 2's way through a clip, batched and with gradients.

The class itself runs one clip frame by frame under `torch.inference_mode`. Here its own parts are called in the same
order on a batch of clips: one prompted frame, then frames that see the memory. A test holds both equal.

Shape suffixes: B clips, F frames, C channels, H W pixels, N points, T tokens (H x W of the coarsest level).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.sam2_video.modeling_sam2_video import NO_OBJ_SCORE, get_1d_sine_pe

from dynamictrl.mini.tracker.models import picture_side

if TYPE_CHECKING:
    from transformers import Sam2VideoModel


@dataclass(frozen=True)
class Unrolled:
    """What the tracker says of every frame."""

    logits_BFHW: Tensor
    """At the tracker's mask size, before frames without the person are emptied."""
    iou_BF: Tensor
    """The tracker's own belief in each mask, 0 to 1."""
    presence_BF: Tensor
    """Logits of the person being in the frame."""


@dataclass(frozen=True)
class _Frame:
    levels: list[Tensor]
    """[B, C, H, W], fine to coarse."""
    position_TBC: Tensor


@dataclass(frozen=True)
class _Memory:
    features_TBC: Tensor
    position_TBC: Tensor
    pointer_BC: Tensor
    time_B: Tensor


def unroll(
    model: Sam2VideoModel, pixels_BFCHW: Tensor, points_BN2: Tensor, labels_BN: Tensor, time_BF: Tensor
) -> Unrolled:
    """Masks of one prompted person per clip; call with `model.eval()`, whose memory is inference's.

    Frame 0 is prompted, the others follow in the order in which a session would visit them. `points_BN2` are x, y in
    the model's pixels; `labels_BN` 1 for a point on the person, 2 and 3 for a box's corners. `time_BF` counts frames
    from the start of the clip, ascending or descending.
    """
    # The class keeps its last position encoding. One made under inference mode, or before a CUDA graph that then
    # reads it, must not come back here; a call for another size drives it out.
    model.memory_encoder.position_encoding(torch.Size((1, 1, 1, 1)), pixels_BFCHW.device, torch.float32)
    frames = _encode(model, pixels_BFCHW)
    # Coordinates in bfloat16 are two pixels off, so positions are taken outside of autocast.
    with torch.autocast(pixels_BFCHW.device.type, enabled=False):
        wide = model.get_image_wide_positional_embeddings().expand(len(pixels_BFCHW), -1, -1, -1)
        asked = _prompts(model, points_BN2, labels_BN)
        unasked = _prompts(model, points_BN2.new_zeros(len(points_BN2), 1, 2), -torch.ones_like(labels_BN[:, :1]))
    recent: list[_Memory] = []
    said: list[tuple[Tensor, Tensor, Tensor]] = []
    first = None
    for index, frame in enumerate(frames):
        if first is None:
            seen_BCHW = frame.levels[-1] + model.no_memory_embedding.view(1, -1, 1, 1)
        else:
            seen_BCHW = _remember(model, frame, first, recent, time_BF[:, index])
        logits, iou, presence, pointer_BC = _decode(model, frame, seen_BCHW, wide, asked if first is None else unasked)
        said.append((logits[:, 0], iou[:, 0], presence[:, 0]))
        if index + 1 < len(frames):
            memory = _store(model, frame, logits, presence, pointer_BC, time_BF[:, index], prompted=first is None)
            first, recent = (memory, []) if first is None else (first, [*recent, memory][1 - model.num_maskmem :])
    logits, iou, presence = (torch.stack(parts, dim=1) for parts in zip(*said, strict=True))
    return Unrolled(logits, iou, presence)


def _encode(model: Sam2VideoModel, pixels_BFCHW: Tensor) -> list[_Frame]:
    batch, count = pixels_BFCHW.shape[:2]
    vision: Any = model.get_image_features(pixels_BFCHW.flatten(0, 1))
    levels = [
        tokens.permute(1, 2, 0).unflatten(2, tuple(size)).unflatten(0, (batch, count))
        for tokens, size in zip(vision.fpn_hidden_states, model.backbone_feature_sizes, strict=True)
    ]
    position = vision.fpn_position_encoding[-1][:, :batch]
    return [_Frame([level[:, index] for level in levels], position) for index in range(count)]


def _prompts(model: Sam2VideoModel, points_BN2: Tensor, labels_BN: Tensor) -> tuple[Tensor, Tensor]:
    return model.prompt_encoder(
        input_points=points_BN2[:, None].float(), input_labels=labels_BN[:, None], input_boxes=None, input_masks=None
    )


def _remember(model: Sam2VideoModel, frame: _Frame, first: _Memory, recent: list[_Memory], time_B: Tensor) -> Tensor:
    """The frame's coarse features after looking at the prompted frame and at the last ones."""
    temporal = model.memory_temporal_positional_encoding
    features, positions, pointers = [first.features_TBC], [first.position_TBC + temporal[-1]], [first.pointer_BC]
    ages = [(time_B - first.time_B).abs()]
    for age, memory in reversed(list(enumerate(reversed(recent), start=1))):
        features.append(memory.features_TBC)
        positions.append(memory.position_TBC + temporal[age - 1])
    for age, memory in enumerate(reversed(recent), start=1):
        pointers.append(memory.pointer_BC)
        ages.append(torch.full_like(time_B, age))
    tokens, their_position = _pointer_tokens(model, torch.stack(pointers), torch.stack(ages))
    coarse_BCHW = frame.levels[-1]
    batch, channels, height, width = coarse_BCHW.shape
    seen = model.memory_attention(
        current_vision_features=coarse_BCHW.flatten(2).permute(2, 0, 1),
        current_vision_position_embeddings=frame.position_TBC,
        memory=torch.cat([*(part.float() for part in features), tokens.float()]),
        memory_posision_embeddings=torch.cat([*(part.float() for part in positions), their_position.float()]),
        num_object_pointer_tokens=len(tokens),
    )
    # [B, 1, T, C] turned by the class for a batch of one; for many it is [1, B, T, C] that comes.
    return seen.reshape(batch, -1, channels).transpose(1, 2).reshape(batch, channels, height, width)


def _pointer_tokens(model: Sam2VideoModel, pointers_PBC: Tensor, ages_PB: Tensor) -> tuple[Tensor, Tensor]:
    """Object pointers cut into tokens of the memory's width, and where in time they are: [tokens, B, 64] each."""
    count, batch, channels = pointers_PBC.shape
    splits = channels // model.mem_dim
    furthest = float(model.config.max_object_pointers_in_encoder - 1)
    waves = get_1d_sine_pe(ages_PB.float() / furthest, dim=channels)
    position = model.temporal_positional_encoding_projection_layer(waves)
    tokens = pointers_PBC.reshape(count, batch, splits, model.mem_dim).permute(0, 2, 1, 3).flatten(0, 1)
    return tokens, position.repeat_interleave(splits, dim=0)


def _decode(
    model: Sam2VideoModel, frame: _Frame, seen_BCHW: Tensor, wide_BCHW: Tensor, prompts: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits [B, 1, H, W], IoU [B, 1], presence logits [B, 1] and object pointers [B, C]."""
    masks, iou, token, presence = model.mask_decoder(
        image_embeddings=seen_BCHW,
        image_positional_embeddings=wide_BCHW,
        sparse_prompt_embeddings=prompts[0],
        dense_prompt_embeddings=prompts[1],
        multimask_output=False,
        high_resolution_features=frame.levels[:-1],
    )
    presence_B1 = presence[:, 0].float()
    there_B1 = (presence_B1 > 0).float()
    pointer_BC = model.object_pointer_proj(token[:, 0, 0])
    pointer_BC = there_B1 * pointer_BC + (1 - there_B1) * model.no_object_pointer
    return masks[:, 0].float(), iou[:, 0].float(), presence_B1, pointer_BC


def _store(
    model: Sam2VideoModel,
    frame: _Frame,
    logits_B1HW: Tensor,
    presence_B1: Tensor,
    pointer_BC: Tensor,
    time_B: Tensor,
    *,
    prompted: bool,
) -> _Memory:
    there = presence_B1[..., None, None] > 0
    emptied = torch.where(there, logits_B1HW, torch.full_like(logits_B1HW, NO_OBJ_SCORE))
    side = picture_side(model)
    features, position = model._encode_new_memory(  # pyright: ignore[reportPrivateUsage]
        current_vision_feats=frame.levels[-1].flatten(2).permute(2, 0, 1),
        pred_masks_high_res=F.interpolate(emptied, size=(side, side), mode="bilinear", align_corners=False),
        object_score_logits=presence_B1[..., None],
        is_mask_from_pts=prompted,
    )
    return _Memory(features, cast("Tensor", position), pointer_BC, time_B)
