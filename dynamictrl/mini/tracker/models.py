"""The mini mask tracker: transformers' SAM 2 video class, narrow, and its picture preparation.

SAM 2 looks at 1024 x 1024 pixels with features at strides 4, 8 and 16. This one looks at 192 x 192 with strides 2, 4
and 8: a mini clip has no more detail, and masks of 96 x 96 keep thin arms. The memory holds the prompted frame and the
last three.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dynamictrl.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import Sam2VideoConfig, Sam2VideoModel, Sam2VideoProcessor

STRIDE = 8
"""Pixels per feature of the coarsest level, on which the memory works."""


@dataclass(frozen=True, kw_only=True)
class TrackerSize:
    """What makes a tracker large or small. The memory's 64 channels are fixed by the class; `width` is a multiple."""

    image: int = 192
    """Pixels along a side; a multiple of 16 strides' windows, so of 96."""
    stages: tuple[int, ...] = (24, 48, 96)
    """Channels of the backbone's stages, at strides 2, 4 and 8."""
    blocks: tuple[int, ...] = (1, 2, 3)
    width: int = 128
    """Channels of features, decoder and object pointers."""
    decoder_layers: int = 1
    memory_layers: int = 1
    memories: int = 4
    """Frames in the memory, the prompted one among them."""


def tracker_config(size: TrackerSize | None = None) -> Sam2VideoConfig:
    """The configuration of the shipped model, or of another size."""
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VisionConfig
    from transformers.models.sam2_video.configuration_sam2_video import Sam2VideoMaskDecoderConfig

    size = size or TrackerSize()
    grid = size.image // STRIDE
    backbone = Sam2HieraDetConfig(
        hidden_size=size.stages[0],
        num_attention_heads=1,
        image_size=[size.image, size.image],
        patch_kernel_size=[7, 7],
        patch_stride=[2, 2],
        patch_padding=[3, 3],
        blocks_per_stage=list(size.blocks),
        embed_dim_per_stage=list(size.stages),
        num_attention_heads_per_stage=[max(1, width // 32) for width in size.stages],
        window_size_per_stage=[8, 8, 8],
        # In windows at the finer strides; all but the first block of the last stage sees the whole picture.
        global_attention_blocks=list(range(sum(size.blocks[:2]) + 1, sum(size.blocks))),
        window_positional_embedding_background_size=[6, 6],
        mlp_ratio=3.0,
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone.to_dict(),
        backbone_channel_list=list(reversed(size.stages)),
        backbone_feature_sizes=[[grid * 4] * 2, [grid * 2] * 2, [grid] * 2],
        fpn_hidden_size=size.width,
        fpn_top_down_levels=[0, 1, 2],
    )
    return Sam2VideoConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config={
            "hidden_size": size.width,
            "image_size": size.image,
            "patch_size": STRIDE,
            "mask_input_channels": 4,
        },
        # As an object: some releases of transformers take a dictionary here for the prompt encoder's.
        mask_decoder_config=Sam2VideoMaskDecoderConfig(
            hidden_size=size.width,
            mlp_dim=size.width // 2,
            num_hidden_layers=size.decoder_layers,
            num_attention_heads=4,
            attention_downsample_rate=2,
            # A box and four points leave nothing open: one mask, of which the class otherwise keeps four.
            num_multimask_outputs=0,
            iou_head_depth=2,
            iou_head_hidden_dim=16,
            dynamic_multimask_via_stability=False,
        ),
        image_size=size.image,
        num_maskmem=size.memories,
        max_object_pointers_in_encoder=size.memories,
        multimask_output_in_sam=False,
        multimask_output_for_tracking=False,
        memory_attention_hidden_size=size.width,
        memory_attention_num_layers=size.memory_layers,
        memory_attention_downsample_rate=2,
        memory_attention_feed_forward_hidden_size=size.width,
        memory_attention_dropout=0.0,
        memory_attention_rope_dropout=0.0,
        memory_attention_rope_feat_sizes=[grid, grid],
        memory_encoder_hidden_size=size.width,
        memory_encoder_output_channels=64,
        # Two steps of four, where SAM 2 takes four of two: the last step's kernel was a seventh of all weights.
        mask_downsampler_embed_dim=size.width,
        mask_downsampler_kernel_size=4,
        mask_downsampler_stride=4,
        mask_downsampler_padding=0,
        memory_fuser_num_layers=1,
        memory_fuser_embed_dim=size.width,
        memory_fuser_intermediate_dim=size.width * 3 // 4,
        memory_fuser_kernel_size=5,
        memory_fuser_padding=2,
    )


def new_tracker(size: TrackerSize | None = None) -> Sam2VideoModel:
    """An untrained tracker."""
    from transformers import Sam2VideoModel

    return Sam2VideoModel(tracker_config(size))


def picture_preparation(image: int) -> Sam2VideoProcessor:
    """Resizes and normalises as SAM 2's does, to `image` pixels square."""
    from transformers import Sam2VideoProcessor
    from transformers.models.sam2.image_processing_sam2 import Sam2ImageProcessor
    from transformers.models.sam2_video.video_processing_sam2_video import Sam2VideoVideoProcessor

    square = {"height": image, "width": image}
    mask = {"height": image * 4 // STRIDE, "width": image * 4 // STRIDE}
    return Sam2VideoProcessor(Sam2ImageProcessor(size=square, mask_size=mask), Sam2VideoVideoProcessor(size=square))


def picture_side(model: Sam2VideoModel) -> int:
    """Pixels along a side of what the tracker looks at."""
    side = model.config.image_size
    if not isinstance(side, int):
        raise CheckpointError(f"the tracker looks at {side} pixels; the mini tracker's pictures are square")
    return side
