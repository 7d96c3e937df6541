"""Named runs: the paper's models, its ablations, and two small ones. A variant of a run is three lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from training.config import Recipe
from training.lora import Lora
from training.settings.checkpoints import Checkpoints
from training.settings.clips import Clips, Masked
from training.settings.model import Model, PoseControl
from training.settings.optimization import Optimization
from training.settings.records import Records
from training.settings.speed import Speed
from training.settings.workers import Workers


def dynamictrl_5b() -> Recipe:
    """The paper's 5B model: CogVideoX-1.5-5B-I2V with PadaLN, 37 frames of 768x1360, on 8 GPUs."""
    return Recipe()


def dynamictrl_2b() -> Recipe:
    """The paper's 2B model: CogVideoX-2B widened to a reference image, 49 frames of 480x720, on 8 GPUs."""
    return Recipe(
        model=Model(base="zai-org/CogVideoX-2b"),
        clips=Clips(height=720, width=480, num_frames=49, fps=8.0),
    )


def unified_tokens() -> Recipe:
    """Table 4: the pose as sixteen more channels of the video (UVT)."""
    return _with_control("unified_tokens")


def cross_attention() -> Recipe:
    """Table 4: the pose through a cross-attention in every block."""
    return _with_control("cross_attention")


def direct_addition() -> Recipe:
    """The paper's baseline structure: pose tokens added to the video tokens once, before the blocks."""
    return _with_control("direct_addition")


def padaln_residual() -> Recipe:
    """Equation 4 as its words say: the gated pose is added to the pose stream, which the released code replaces."""
    return _with_control("padaln_residual")


def expert_encoder() -> Recipe:
    """Table 5: an expert encoder of the poses learns beside the transformer, in the shared VAE's stead."""
    return _with_expert(dynamictrl_5b())


def baseline_5b() -> Recipe:
    """Table 2, Baseline-5B: no captions, an expert pose encoder, pose tokens added once before the blocks."""
    return _baseline(dynamictrl_5b())


def baseline_2b() -> Recipe:
    """Table 2, Baseline-2B."""
    return _baseline(dynamictrl_2b())


def non_text_stage_1() -> Recipe:
    """Table 4, Non-text, first stage: learns to do without captions; no pose yet."""
    five = dynamictrl_5b()
    return replace(five, model=replace(five.model, learn_pose=False), clips=replace(five.clips, caption_dropout=1.0))


def non_text_stage_2() -> Recipe:
    """Table 4, Non-text, second stage: pose control without captions; give `--base STAGE_1_RUN/model`."""
    five = dynamictrl_5b()
    return replace(five, model=replace(five.model, fresh_pose=True), clips=replace(five.clips, caption_dropout=1.0))


def non_text_expert_stage_2() -> Recipe:
    """Table 5, Non-text with an expert encoder, second stage; the first is the shared VAE's."""
    return _with_expert(non_text_stage_2())


def masked_background() -> Recipe:
    """Multi-level control: the reference's background is blacked out, the caption says what is there."""
    return _with_mask("background")


def masked_clothes() -> Recipe:
    """Multi-level control: the reference's clothes are blacked out, the caption says what is worn."""
    return _with_mask("clothes")


def dynamictrl_5b_lora() -> Recipe:
    """A LoRA of rank 64 on the published 5B model, for a person, a style or a kind of motion, on one GPU."""
    five = dynamictrl_5b()
    return replace(
        five,
        model=replace(five.model, base="gulucaptain/DynamiCtrl"),
        lora=Lora(lora_rank=64),
        optimization=replace(
            five.optimization, steps=2_000, batch_size=4, learning_rate=1e-4, warmup_steps=100, weight_decay=1e-4
        ),
        workers=replace(five.workers, num_workers=1),
    )


def mini() -> Recipe:
    """Minutes on two CPU cores: goes on with the shipped mini DynamiCtrl on clips of your own, 2 Ray workers."""
    return Recipe(
        model=Model(base="mini/dynamictrl"),
        clips=Clips(
            height=192,
            width=128,
            num_frames=25,
            fps=12.0,
            windows_per_clip=2,
            # Encoding the noisy reference anew would take a third of a step here.
            image_noise=False,
            cache_gib=1.0,
            share_encodings=True,
            loader_threads=0,
        ),
        optimization=Optimization(
            steps=40, batch_size=4, micro_batch_size=2, learning_rate=2e-5, warmup_steps=5, weight_decay=1e-4
        ),
        workers=Workers(num_workers=2, device="cpu", zero_stage=2, precision="fp32", threads_per_worker=1),
        speed=Speed(compile_blocks=False, recompute="none"),
        checkpoints=Checkpoints(checkpoint_every=20),
        records=Records(log_every=5),
    )


def mini_from_base() -> Recipe:
    """The mini base learns poses anew, as the real recipes do: hours on two CPU cores, minutes on a GPU."""
    start = mini()
    return replace(
        start,
        model=replace(start.model, base="mini/base", fresh_pose=True),
        optimization=replace(
            start.optimization, steps=16_000, batch_size=192, micro_batch_size=4, learning_rate=1.5e-3, warmup_steps=100
        ),
    )


def mini_lora() -> Recipe:
    """Minutes on two CPU cores: a LoRA of rank 8 on the shipped mini DynamiCtrl, pose modulation included."""
    start = mini()
    return replace(
        start,
        lora=Lora(lora_rank=8, lora_parts=("attention", "feed_forward", "pose_control")),
        optimization=replace(start.optimization, learning_rate=3e-4),
    )


def tiny_on_cpu() -> Recipe:
    """Seconds in this process, without Ray: what the tests train; give `--base FOLDER` a tiny model."""
    small = mini()
    return replace(
        small,
        model=replace(small.model, fresh_pose=False),
        clips=replace(small.clips, height=32, width=32, num_frames=5),
        optimization=replace(small.optimization, steps=4, batch_size=2, micro_batch_size=1, warmup_steps=0),
        workers=replace(small.workers, num_workers=0, zero_stage=2, threads_per_worker=0),
        checkpoints=replace(small.checkpoints, checkpoint_every=2),
        records=replace(small.records, log_every=1),
    )


def _with_control(pose_control: PoseControl) -> Recipe:
    five = dynamictrl_5b()
    return replace(five, model=replace(five.model, pose_control=pose_control))


def _with_expert(recipe: Recipe) -> Recipe:
    return replace(recipe, model=replace(recipe.model, pose_encoding="expert"))


def _baseline(recipe: Recipe) -> Recipe:
    model = replace(recipe.model, pose_control="direct_addition", pose_encoding="expert")
    return replace(recipe, model=model, clips=replace(recipe.clips, caption_dropout=1.0))


def _with_mask(region: Masked) -> Recipe:
    five = dynamictrl_5b()
    return replace(five, clips=replace(five.clips, masked_reference=region))


RECIPES: dict[str, Callable[[], Recipe]] = {
    "dynamictrl-5b": dynamictrl_5b,
    "dynamictrl-2b": dynamictrl_2b,
    "dynamictrl-5b-unified-tokens": unified_tokens,
    "dynamictrl-5b-cross-attention": cross_attention,
    "dynamictrl-5b-direct-addition": direct_addition,
    "dynamictrl-5b-padaln-residual": padaln_residual,
    "dynamictrl-5b-expert-encoder": expert_encoder,
    "dynamictrl-5b-non-text-stage-1": non_text_stage_1,
    "dynamictrl-5b-non-text-stage-2": non_text_stage_2,
    "dynamictrl-5b-non-text-expert-stage-2": non_text_expert_stage_2,
    "baseline-5b": baseline_5b,
    "baseline-2b": baseline_2b,
    "dynamictrl-5b-masked-background": masked_background,
    "dynamictrl-5b-masked-clothes": masked_clothes,
    "dynamictrl-5b-lora": dynamictrl_5b_lora,
    "mini": mini,
    "mini-lora": mini_lora,
    "mini-from-base": mini_from_base,
    "tiny-on-cpu": tiny_on_cpu,
}
