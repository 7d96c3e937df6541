"""From the name of a base to the models of a run: the transformer that learns, and the frozen rest."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from dynamictrl import weights
from dynamictrl.conversion.base_weights import from_base
from dynamictrl.pose_encoder import PoseEncodedTransformer, PoseEncoder
from training.config import Recipe
from training.lora import Lora
from training.settings.model import Model

if TYPE_CHECKING:
    from dynamictrl.animation import DynamiCtrlPipeline
    from dynamictrl.transformer import DynamiCtrlTransformer3DModel

logger = logging.getLogger(__name__)

COMPONENTS = ("model_index.json", "transformer/*.safetensors", "vae/*.safetensors", "text_encoder/*.safetensors")


def load(recipe: Recipe) -> DynamiCtrlPipeline:
    """The base as a pipeline whose transformer has this run's pose control; the rest is frozen.

    Raises CheckpointError naming what is missing. Fresh weights depend on the seed alone.
    """
    from diffusers import CogVideoXDPMScheduler

    from dynamictrl.animation import DynamiCtrlPipeline

    quiet_loading()
    folder = weights.resolve(recipe.model.base, COMPONENTS)
    dtype = torch.bfloat16 if recipe.workers.precision == "bf16" else torch.float32
    torch.manual_seed(recipe.seed)
    transformer = _transformer(folder, recipe.model, dtype)
    if recipe.lora.lora_rank:
        _add_adapter(transformer, recipe.lora, dtype)
    pipeline = DynamiCtrlPipeline.from_pretrained(folder, transformer=transformer, torch_dtype=dtype)
    pipeline.register_modules(pose_encoder=_pose_encoder(pipeline, recipe.model, dtype))
    if pipeline.scheduler.config.get("_class_name") != "CogVideoXDPMScheduler":
        pipeline.scheduler = CogVideoXDPMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    for frozen in (pipeline.vae, pipeline.text_encoder):
        frozen.requires_grad_(False).eval()
    return pipeline


def _pose_encoder(pipeline: DynamiCtrlPipeline, model: Model, dtype: torch.dtype) -> PoseEncoder | None:
    """The expert encoder, where the run has one: the base's, or a fresh one."""
    if model.pose_encoding != "expert":
        return None
    encoder = pipeline.pose_encoder
    if model.fresh_pose or not isinstance(encoder, PoseEncoder):
        encoder = PoseEncoder(latent_channels=pipeline.transformer.config["out_channels"])
    torch.nn.Module.to(encoder, dtype)
    return encoder.requires_grad_(True).train()


def learner(pipeline: DynamiCtrlPipeline, device: torch.device) -> torch.nn.Module:
    """What a run trains, as one module: the transformer, with its expert pose encoder where there is one."""
    transformer = pipeline.transformer.to(device)
    if pipeline.pose_encoder is None:
        return transformer
    return PoseEncodedTransformer(transformer, pipeline.pose_encoder.to(device))


def quiet_loading() -> None:
    """Loading takes seconds here and has its own log line; bars of every worker would drown the run's."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _transformer(folder: object, model: Model, dtype: torch.dtype) -> DynamiCtrlTransformer3DModel:
    transformer = from_base(
        str(folder), model.pose_control, silent=model.silent_pose, fresh_pose=model.fresh_pose, dtype=dtype
    )
    if not model.learn_pose:
        transformer.silence_pose()
    transformer.requires_grad_(True).train()
    if not model.learn_pose:
        for block in transformer.transformer_blocks:
            block.control_norm1.requires_grad_(False)
    return transformer


def _add_adapter(transformer: DynamiCtrlTransformer3DModel, lora: Lora, dtype: torch.dtype) -> None:
    """Freezes the transformer and puts the recipe's adapter on it; DeepSpeed keeps its float32 weights."""
    from dynamictrl.lora import add_lora

    add_lora(
        transformer,
        rank=lora.lora_rank,
        alpha=lora.lora_alpha or None,
        dropout=lora.lora_dropout,
        parts=lora.lora_parts,
    )
    if lora.lora_whole_pose:
        for name, parameter in transformer.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or _is_pose(name, transformer.config["pose_control"]))
    moved: Any = transformer
    moved.to(dtype)


def _is_pose(name: str, pose_control: str) -> bool:
    """Whether a weight is the pose's own; unified tokens have theirs in the patch embedding."""
    return ".control_norm1." in name or (pose_control == "unified_tokens" and name.startswith("patch_embed.proj"))
