"""What a run takes, before anything is started: parameters, tokens, FLOPs, memory by component, seconds, disk, money.

Pure arithmetic on the base's config; nothing is loaded. `shapes`, `memory` and `timing` count, `fitting` searches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from training.config import Recipe
from training.planning import fitting, shapes
from training.planning.fitting import Choice
from training.planning.memory import GB, GIB, Kept, Memory
from training.planning.shapes import Size, base_config, check_shape
from training.planning.timing import Machine, StepTime, gpu_named, step_time
from training.settings.hardware import Hardware


@dataclass(frozen=True)
class Plan:
    """The answer of `plan`; sizes are decimal GB, as GPU vendors count, but for those that say GiB."""

    base: str
    device: str
    gpus: int
    gpu: str
    """Kind of GPU whose rates are used."""
    is_estimate: bool
    """Whether those rates are scaled from another GPU's."""
    gpu_memory_gib: float
    usable_gib: float
    """Of it what the run may fill; the rest is `memory_reserve_gib`."""
    parameters: int
    pose_parameters: int
    trained: int
    """Parameters that learn: all, or a LoRA's."""
    latent_frames: int
    """Of the largest size."""
    tokens: int
    """Of the largest size, caption included."""
    sizes: tuple[tuple[Size, int, float], ...]
    """Each size with its tokens and its seconds per step."""
    forward_tflop: float
    """TFLOP of one sample's forward pass; mean over the sizes."""
    memory: Memory
    """Of one GPU at its fullest moment."""
    time: StepTime
    """Mean over the sizes, as if each were as frequent."""
    mfu: float
    """Share of the GPUs' peak that useful FLOPs will take."""
    hfu: float
    """The same with what is computed twice."""
    steps: int
    checkpoint_gb: float
    checkpoint_seconds: float
    checkpoints_gb: float
    """On disk at most: those kept, one being written, and the exported model."""
    gpu_hour_price: float
    choices: tuple[Choice, ...]
    """Settings that fit, the fastest first."""
    ways_out: tuple[str, ...]
    """What would fit where this does not."""

    @property
    def kept(self) -> Kept:
        """What blocks keep for the backward pass."""
        return self.memory.kept

    @property
    def memory_gb(self) -> dict[str, float]:
        """Per GPU by component."""
        return self.memory.device_gb

    @property
    def total_gb(self) -> float:
        """Peak per GPU."""
        return self.memory.total_gb

    @property
    def seconds_per_step(self) -> float:
        """Mean over the sizes."""
        return self.time.seconds

    @property
    def gpu_hours(self) -> float:
        """Of the whole run."""
        return self.seconds_per_step * self.steps * self.gpus / 3600

    @property
    def fits(self) -> bool:
        """Whether the peak stays within what may be filled of a GPU; what a CPU holds is not judged here."""
        return self.device == "cpu" or self.total_gb <= self.usable_gib * GIB / GB

    def refusal(self) -> str:
        """Why it does not fit, and the way out."""
        ways = [f"{choice.flags} ({choice.memory_gb * GB / GIB:.0f} GiB)" for choice in self.choices[:3]]
        ways = ways or list(self.ways_out) or ["fewer frames or pixels"]
        reserve = self.gpu_memory_gib - self.usable_gib
        free = f" of which {reserve:g} stay free (--memory-reserve-gib)" if reserve else ""
        return (
            f"this needs {self.total_gb * GB / GIB:.1f} GiB per GPU in its {self.memory.moment} and a GPU has "
            f"{self.gpu_memory_gib:.1f} GiB{free}; what would fit: {'; '.join(ways)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = dataclasses.asdict(self)
        values["sizes"] = [{"size": str(s), "tokens": t, "seconds_per_step": sec} for s, t, sec in self.sizes]
        values["choices"] = [dataclasses.asdict(choice) | {"flags": choice.flags} for choice in self.choices]
        summary = {"memory_gb": self.total_gb, "seconds_per_step": self.seconds_per_step, "gpu_hours": self.gpu_hours}
        return {**values, **summary, "fits": self.fits}

    def text(self) -> str:
        """The plan for people."""
        from training.planning.plan_text import text

        return text(self)


class Prediction(NamedTuple):
    """What a benchmark holds against its measurements."""

    seconds: float
    """Of one optimizer step."""
    peak_gib: float
    """What `torch.cuda.max_memory_allocated` should say."""


def plan(recipe: Recipe, hardware: Hardware | None = None, *, gpus: int = 0, gpu_memory_gib: float = 0.0) -> Plan:
    """Plans a run; `gpus` and `gpu_memory_gib` 0 take the hardware's, then the recipe's and the kind of GPU's.

    Raises ConfigError for a base whose shape is not known here, InputError for a size the base cannot render.
    """
    hardware = hardware or Hardware()
    gpu = gpu_named(hardware.gpu)
    config, recipe = base_config(recipe.model.base), _on(recipe, gpus or hardware.gpus)
    memory_gib = gpu_memory_gib or recipe.workers.gpu_memory_gib or gpu.memory_gib
    machine = Machine(gpu, hardware.link_gb_per_second * GB, hardware.precomputed)
    workers, sizes = max(recipe.workers.num_workers, 1), shapes.sizes(recipe)
    for size in sizes:
        check_shape(size.height, size.width, size.num_frames)
    found = fitting.choices(recipe, config, workers, memory_gib, machine)
    if not recipe.workers.zero_stage:
        recipe = fitting.with_stage(recipe, config, workers, memory_gib, machine)
    held = fitting.hold(recipe, config, workers, memory_gib, machine)
    times = {size: step_time(recipe, config, size, workers, held.kept, machine) for size in sizes}
    time = fitting.mean_time(list(times.values()))
    forward = sum(_forward_tflop(recipe, config, size) for size in sizes) / len(sizes)
    fits = fitting.fits(recipe, held, memory_gib)
    checkpoint = checkpoint_bytes(recipe, config) / GB
    return Plan(
        base=recipe.model.base,
        device=recipe.workers.device,
        gpus=workers,
        gpu=gpu.name,
        is_estimate=not gpu.is_measured,
        gpu_memory_gib=memory_gib,
        usable_gib=fitting.usable_gib(recipe, memory_gib),
        parameters=shapes.transformer_parameters(config, recipe.model.pose_control),
        pose_parameters=shapes.control_parameters(config, recipe.model.pose_control),
        trained=shapes.trained_parameters(
            recipe, config, shapes.transformer_parameters(config, recipe.model.pose_control)
        ),
        latent_frames=shapes.latent_frames(sizes[0].num_frames, config),
        tokens=shapes.tokens(sizes[0], config),
        sizes=tuple((size, shapes.tokens(size, config), times[size].seconds) for size in sizes),
        forward_tflop=forward,
        memory=held,
        time=time,
        mfu=time.model_tflop / (time.seconds * gpu.peak_tflops),
        hfu=time.hardware_tflop / (time.seconds * gpu.peak_tflops),
        steps=recipe.optimization.steps,
        checkpoint_gb=checkpoint,
        checkpoint_seconds=checkpoint / hardware.disk_gb_per_second,
        checkpoints_gb=(recipe.checkpoints.keep_checkpoints + 1) * checkpoint + model_bytes(recipe, config) / GB,
        gpu_hour_price=hardware.gpu_hour_price,
        choices=tuple(found),
        ways_out=() if fits or found else tuple(fitting.ways_out(recipe, config, workers, memory_gib, machine)),
    )


def predicted(
    recipe: Recipe,
    config: Mapping[str, Any],
    workers: int = 1,
    *,
    kept: Kept | None = None,
    gpu: str = "h200",
    gpu_memory_gib: float = 0.0,
    precomputed: bool = True,
) -> Prediction:
    """Seconds of a step and peak memory of a worker; `config` is the transformer's.

    `kept` is what the blocks really keep; None works it out as `acceleration` does.
    """
    machine = Machine(gpu_named(gpu), precomputed=precomputed)
    memory_gib = gpu_memory_gib or recipe.workers.gpu_memory_gib or machine.gpu.memory_gib
    held = fitting.hold(recipe, config, workers, memory_gib, machine, kept)
    times = [step_time(recipe, config, size, workers, held.kept, machine) for size in shapes.sizes(recipe)]
    return Prediction(fitting.mean_time(times).seconds, held.allocated_gib)


def checkpoint_bytes(recipe: Recipe, config: Mapping[str, Any]) -> float:
    """One checkpoint: weights that learn, their float32 masters and two moments, and the moving average."""
    width = (2 if recipe.workers.precision == "bf16" else 4) + 12 + (4 if recipe.optimization.ema_decay else 0)
    return width * float(shapes.learnt(recipe, config))


def model_bytes(recipe: Recipe, config: Mapping[str, Any]) -> float:
    """The exported model folder: the transformer in the precision it trains in, and the frozen models."""
    weight = 2 if recipe.workers.precision == "bf16" else 4
    whole = shapes.transformer_parameters(config, recipe.model.pose_control)
    frozen = shapes.COGVIDEOX_VAE + shapes.T5_XXL_ENCODER if config["text_embed_dim"] == 4096 else 0
    return float(whole + frozen) * weight


def _on(recipe: Recipe, gpus: int) -> Recipe:
    """The recipe on so many workers; ConfigError where its batch does not divide."""
    if not gpus:
        recipe.accumulation_of(max(recipe.workers.num_workers, 1))
        return recipe
    recipe.accumulation_of(gpus)
    return replace(recipe, workers=replace(recipe.workers, num_workers=gpus))


def _forward_tflop(recipe: Recipe, config: Mapping[str, Any], size: Size) -> float:
    video = shapes.clip_tokens(size, config)
    return shapes.forward_flop(config, recipe.model.pose_control, video, config["max_text_seq_length"]) / 1e12
