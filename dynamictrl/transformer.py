"""The video DiT: CogVideoX's blocks with a driving pose entering each of them.

For `padaln` the state-dict keys and shapes are the released checkpoints'. One flat class on purpose: a subclass of
diffusers' model would register the parent's arguments over its own.

Shape suffixes: B batch, F latent frames, C channels, H W latent size, S video tokens, L text tokens, D model width,
                T time-embedding width.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import Attention, AttentionMixin, FeedForward
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.embeddings import CogVideoXPatchEmbed, TimestepEmbedding, Timesteps
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import AdaLayerNorm, CogVideoXLayerNormZero
from diffusers.utils import apply_lora_scale
from torch import Tensor, nn

from dynamictrl.errors import CheckpointError, ConfigError
from dynamictrl.joint_attention import JointAttention
from dynamictrl.pose_control import PoseControl, pose_control_class
from dynamictrl.recomputation import Recompute, recomputed
from dynamictrl.sequence_parallel import WholeClip, share_tokens

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from dynamictrl.acceleration.step_cache import StepCache

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines of the video tokens' positions, each [S, head width]."""


class DynamiCtrlBlock(nn.Module):
    """One block: the pose enters before or after a full attention over text and video, then a feed-forward."""

    def __init__(
        self,
        control: type[PoseControl],
        dim: int,
        num_attention_heads: int,
        attention_head_dim: int,
        time_embed_dim: int,
        dropout: float,
        activation_fn: str,
        attention_bias: bool,
        norm_elementwise_affine: bool,
        norm_eps: float,
    ):
        super().__init__()
        self.norm1 = CogVideoXLayerNormZero(time_embed_dim, dim, norm_elementwise_affine, norm_eps, bias=True)
        # The released checkpoints' name for where the pose comes in; other structures are mounted there too.
        self.control_norm1 = control(dim, num_attention_heads, time_embed_dim, norm_eps)
        self.attn1 = Attention(
            query_dim=dim,
            dim_head=attention_head_dim,
            heads=num_attention_heads,
            qk_norm="layer_norm",
            eps=1e-6,
            bias=attention_bias,
            out_bias=True,
            processor=JointAttention(),  # pyright: ignore[reportArgumentType]
        )
        self.norm2 = CogVideoXLayerNormZero(time_embed_dim, dim, norm_elementwise_affine, norm_eps, bias=True)
        self.ff = FeedForward(dim, dropout=dropout, activation_fn=activation_fn, final_dropout=True)
        self.recompute: Recompute = "none"
        """What the backward pass computes anew; a string, so that equal blocks share one compiled graph."""

    def forward(
        self,
        video_BSD: Tensor,
        text_BLD: Tensor,
        pose_BSD: Tensor | None,
        time_BT: Tensor,
        image_rotary_emb: Rotary | None,
        attention_kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The three streams after this block."""
        inputs = (video_BSD, text_BLD, pose_BSD, time_BT, image_rotary_emb, attention_kwargs)
        return recomputed(self._compute, self.recompute, *inputs)

    def _compute(
        self,
        video_BSD: Tensor,
        text_BLD: Tensor,
        pose_BSD: Tensor | None,
        time_BT: Tensor,
        image_rotary_emb: Rotary | None,
        attention_kwargs: dict[str, Any],
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        normed_BSD, normed_BLD, gate, text_gate = self.norm1(video_BSD, text_BLD, time_BT)
        normed_BSD, pose_BSD = self.control_norm1.before_attention(normed_BSD, pose_BSD, time_BT)
        attended_BSD, attended_BLD = self.attn1(
            hidden_states=normed_BSD,
            encoder_hidden_states=normed_BLD,
            image_rotary_emb=image_rotary_emb,
            **attention_kwargs,
        )
        video_BSD = video_BSD + gate * attended_BSD
        text_BLD = text_BLD + text_gate * attended_BLD
        video_BSD = self.control_norm1.after_attention(video_BSD, pose_BSD)

        normed_BSD, normed_BLD, gate, text_gate = self.norm2(video_BSD, text_BLD, time_BT)
        text_length = text_BLD.shape[1]
        mixed = self.ff(torch.cat([normed_BLD, normed_BSD], dim=1))
        video_BSD = video_BSD + gate * mixed[:, text_length:]
        text_BLD = text_BLD + text_gate * mixed[:, :text_length]
        return video_BSD, text_BLD, pose_BSD


class DynamiCtrlTransformer3DModel(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin, CacheMixin):
    """Denoises video latents under a text, a reference image and a driving pose.

    The config fields are those of diffusers' `CogVideoXTransformer3DModel`, which says what each means, plus
    `pose_control`, a name of `pose_control.POSE_CONTROLS`. `in_channels` counts what the
    patch embedding sees: noise and image (32), or noise, image and pose (48) for `unified_tokens`.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DynamiCtrlBlock", "CogVideoXPatchEmbed"]
    _repeated_blocks = ["DynamiCtrlBlock"]
    _skip_layerwise_casting_patterns = ["patch_embed", "norm"]

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 30,
        attention_head_dim: int = 64,
        in_channels: int = 32,
        out_channels: int = 16,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        time_embed_dim: int = 512,
        ofs_embed_dim: int | None = None,
        text_embed_dim: int = 4096,
        num_layers: int = 30,
        dropout: float = 0.0,
        attention_bias: bool = True,
        sample_width: int = 90,
        sample_height: int = 60,
        sample_frames: int = 49,
        patch_size: int = 2,
        patch_size_t: int | None = None,
        temporal_compression_ratio: int = 4,
        max_text_seq_length: int = 226,
        activation_fn: str = "gelu-approximate",
        timestep_activation_fn: str = "silu",
        norm_elementwise_affine: bool = True,
        norm_eps: float = 1e-5,
        spatial_interpolation_scale: float = 1.875,
        temporal_interpolation_scale: float = 1.0,
        use_rotary_positional_embeddings: bool = False,
        use_learned_positional_embeddings: bool = False,
        patch_bias: bool = True,
        pose_control: str = "padaln",
    ):
        super().__init__()
        control = pose_control_class(pose_control)
        _check_config(
            use_rotary_positional_embeddings, use_learned_positional_embeddings, ofs_embed_dim, time_embed_dim
        )
        width = num_attention_heads * attention_head_dim

        self.patch_embed = _patch_embed(self.config, width)
        self.embedding_dropout = nn.Dropout(dropout)

        self.time_proj = Timesteps(width, flip_sin_to_cos, freq_shift)
        self.time_embedding = TimestepEmbedding(width, time_embed_dim, timestep_activation_fn)
        self.ofs_proj = self.ofs_embedding = None
        if ofs_embed_dim:
            self.ofs_proj = Timesteps(ofs_embed_dim, flip_sin_to_cos, freq_shift)
            self.ofs_embedding = TimestepEmbedding(ofs_embed_dim, ofs_embed_dim, timestep_activation_fn)

        self.transformer_blocks = nn.ModuleList(
            DynamiCtrlBlock(
                control,
                width,
                num_attention_heads,
                attention_head_dim,
                time_embed_dim,
                dropout,
                activation_fn,
                attention_bias,
                norm_elementwise_affine,
                norm_eps,
            )
            for _ in range(num_layers)
        )
        self.norm_final = nn.LayerNorm(width, norm_eps, norm_elementwise_affine)
        self.norm_out = AdaLayerNorm(
            embedding_dim=time_embed_dim,
            output_dim=2 * width,
            norm_elementwise_affine=norm_elementwise_affine,
            norm_eps=norm_eps,
            chunk_dim=1,
        )
        self.proj_out = nn.Linear(width, patch_size * patch_size * (patch_size_t or 1) * out_channels)
        self.gradient_checkpointing = False
        self._clip = WholeClip()

    def share_tokens(self, group: ProcessGroup) -> None:
        """From now on the ranks of `group` share every clip (`sequence_parallel`): all of them must call the model,
        with the same inputs, and each gets the whole prediction. ConfigError where it has more ranks than heads."""
        self._clip = share_tokens(self, group, self.config["num_attention_heads"])

    @property
    def control(self) -> type[PoseControl]:
        """The structure by which the pose enters."""
        return pose_control_class(self.config["pose_control"])

    @apply_lora_scale("attention_kwargs")
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        control_hidden_states: Tensor,
        ofs: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        step_cache: StepCache | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predicts v for every latent frame.

        `hidden_states` [B, F, C, H, W]: noisy video and reference image on channels. `encoder_hidden_states`
        [B, L, text width]. `timestep` [B], 0 to 999. `control_hidden_states` [B, F, latent channels, H, W]: the pose
        latents, not repeated; where B holds both branches of guidance, one branch's will do, and what depends on pose
        and timestep alone is computed once. `ofs` [1]: 2.0 on a 1.5 base. With `patch_size_t`, F must be its multiple
        (`latents.pad_front`). `step_cache` lets steps that differ little share their work. The sample is [B, F, latent
        channels, H, W].
        """
        video_BFCHW, pose_BFCHW = self.control.join(hidden_states, control_hidden_states)
        text_length = encoder_hidden_states.shape[1]
        time_BT = self._embed_time(timestep, ofs, hidden_states.dtype)
        tokens = self._embed_patches(encoder_hidden_states, video_BFCHW)
        text_BLD, video_BSD = _own(tokens[:, :text_length]), _own(tokens[:, text_length:])
        pose_BSD = None
        if pose_BFCHW is not None:
            text = encoder_hidden_states[: len(pose_BFCHW)]
            pose_BSD = _own(self._embed_patches(text, pose_BFCHW)[:, text_length:])

        video_BSD, pose_BSD = self.control.at_input(video_BSD, pose_BSD)
        mine = self._clip.split((video_BSD, text_BLD, pose_BSD, image_rotary_emb))
        video_BSD, text_BLD, pose_BSD, rotary = mine
        video_BSD = self._blocks(video_BSD, text_BLD, pose_BSD, time_BT, rotary, attention_kwargs or {}, step_cache)
        video_BSD = self.norm_out(self.norm_final(video_BSD), temb=time_BT)
        sample_BFCHW = self._unpatchify(self._clip.gather(self.proj_out(video_BSD)), hidden_states.shape)
        return Transformer2DModelOutput(sample=sample_BFCHW) if return_dict else (sample_BFCHW,)

    def _blocks(
        self,
        video_BSD: Tensor,
        text_BLD: Tensor,
        pose_BSD: Tensor | None,
        time_BT: Tensor,
        rotary: Rotary | None,
        attention_kwargs: dict[str, Any],
        step_cache: StepCache | None,
    ) -> Tensor:
        """The video tokens after all blocks, or after the first and what the others added in an earlier step."""
        recompute: Any = self._gradient_checkpointing_func
        checkpointed = self.gradient_checkpointing and torch.is_grad_enabled()
        before_BSD, after_first_BSD = video_BSD, None
        for i, block in enumerate(self.transformer_blocks):
            inputs = (video_BSD, text_BLD, pose_BSD, time_BT, rotary, attention_kwargs)
            video_BSD, text_BLD, pose_BSD = recompute(block, *inputs) if checkpointed else block(*inputs)
            if i == 0 and step_cache is not None:
                rest_BSD = step_cache.rest(video_BSD - before_BSD, self._clip.agree)
                if rest_BSD is not None:
                    return video_BSD + rest_BSD
                after_first_BSD = video_BSD
        if step_cache is not None and after_first_BSD is not None:
            step_cache.keep(video_BSD - after_first_BSD)
        return video_BSD

    def _embed_time(self, timestep: Tensor, ofs: Tensor | None, dtype: torch.dtype) -> Tensor:
        time_BT = self.time_embedding(self.time_proj(timestep).to(dtype))
        if self.ofs_proj is None or self.ofs_embedding is None:
            return time_BT
        if ofs is None:
            raise ConfigError("this model has an ofs embedding (a CogVideoX 1.5 base): pass ofs, 2.0 as a rule")
        return time_BT + self.ofs_embedding(self.ofs_proj(ofs).to(dtype))

    def _embed_patches(self, text: Tensor, latents_BFCHW: Tensor) -> Tensor:
        return self.embedding_dropout(self.patch_embed(text, latents_BFCHW))

    def _unpatchify(self, patches_BSD: Tensor, shape: torch.Size) -> Tensor:
        batch, frames, _, height, width = shape
        p, p_t = self.config["patch_size"], self.config["patch_size_t"] or 1
        grid = patches_BSD.reshape(batch, frames // p_t, height // p, width // p, -1, p_t, p, p)
        grid = grid.permute(0, 1, 5, 4, 2, 6, 3, 7)  # batch, frames, p_t, channels, rows, p, columns, p
        return grid.reshape(batch, frames, -1, height, width)

    def silence_pose(self) -> None:
        """Sets the pose control's own weights so that it starts as the base model (an ablation's choice)."""
        for block in self.transformer_blocks:
            assert isinstance(block, DynamiCtrlBlock)
            block.control_norm1.silence()

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 - the model, and with `output_loading_info` what diffusers tells about the loading
        """As diffusers', but strict: a missing, unexpected or misshapen weight is a CheckpointError.

        A whole model folder will do as well as its `transformer`.
        """
        folder = Path(pretrained_model_name_or_path)
        if "subfolder" not in kwargs and not (folder / "config.json").is_file() and (folder / "transformer").is_dir():
            kwargs["subfolder"] = "transformer"
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        model, info = loaded
        wrong = {kind: info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]}
        if wrong:
            listed = "; ".join(f"{len(keys)} {kind.replace('_', ' ')}, first {keys[0]}" for kind, keys in wrong.items())
            raise CheckpointError(
                f"{pretrained_model_name_or_path} does not hold this model: {listed}. A folder of a CogVideoX base is "
                f"taken up with dynamictrl.conversion.base_weights.from_base or `python -m training convert` instead.",
                code="weights_mismatch",
            )
        return (model, info) if wants_info else model


def _patch_embed(config: Mapping[str, Any], width: int) -> CogVideoXPatchEmbed:
    """The base's own patch embedding: pixels and text to tokens, with its fixed or learned positions."""
    return CogVideoXPatchEmbed(
        patch_size=config["patch_size"],
        patch_size_t=config["patch_size_t"],
        in_channels=config["in_channels"],
        embed_dim=width,
        text_embed_dim=config["text_embed_dim"],
        bias=config["patch_bias"],
        sample_width=config["sample_width"],
        sample_height=config["sample_height"],
        sample_frames=config["sample_frames"],
        temporal_compression_ratio=config["temporal_compression_ratio"],
        max_text_seq_length=config["max_text_seq_length"],
        spatial_interpolation_scale=config["spatial_interpolation_scale"],
        temporal_interpolation_scale=config["temporal_interpolation_scale"],
        use_positional_embeddings=not config["use_rotary_positional_embeddings"],
        use_learned_positional_embeddings=config["use_learned_positional_embeddings"],
    )


def _own(view: Tensor) -> Tensor:
    """A copy with strides of its own: the first block then shares the compiled graph of the others."""
    return view.clone(memory_format=torch.contiguous_format)


def _check_config(rotary: bool, learned: bool, ofs_width: int | None, time_width: int) -> None:
    if learned and not rotary:
        raise ConfigError("learned positions come with rotary ones in every base: set use_rotary_positional_embeddings")
    if ofs_width and ofs_width != time_width:
        raise ConfigError(
            f"ofs_embed_dim is {ofs_width}; it is added to the time embedding, so it must be {time_width}"
        )
