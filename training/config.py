"""What a training run is, as frozen dataclasses: the command line, the recipe files and `run.json` are all this.

Nothing heavy is imported here. Values that can never work are refused at construction with a ConfigError.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_type_hints

from dynamictrl.errors import ConfigError
from training.lora import Lora

PoseControl = Literal["padaln", "padaln_residual", "cross_attention", "unified_tokens", "direct_addition"]
PoseEncoding = Literal["shared_vae", "expert"]
Masked = Literal["none", "background", "clothes"]
Schedule = Literal["constant", "cosine"]
Precision = Literal["fp32", "bf16"]
Device = Literal["cpu", "cuda"]


def _positive(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value <= 0:
            raise ConfigError(f"{name} is {value}; it must be above 0", code="setting_range", param=name)


def _share(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not 0.0 <= value <= 1.0:
            raise ConfigError(
                f"{name} is {value}; it is a share and must lie in [0, 1]", code="setting_range", param=name
            )


def _not_negative(settings: object, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value < 0:
            raise ConfigError(f"{name} is {value}; it must be 0 or more", code="setting_range", param=name)


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is fine-tuned."""

    base: str = "zai-org/CogVideoX1.5-5B-I2V"
    """Weights to start from: a DynamiCtrl or a plain CogVideoX folder, its hub id, or `mini/base`."""
    pose_control: PoseControl = "padaln"
    """How the pose enters the transformer (Table 4 of the paper)."""
    pose_encoding: PoseEncoding = "shared_vae"
    """What makes pose latents: the VAE, or an expert encoder that learns beside the transformer (Table 5)."""
    learn_pose: bool = True
    """Off: the pose is neither seen nor learnt (first stage of the Non-text baseline, Table 4)."""
    fresh_pose: bool = False
    """Starts the pose control anew although the base has one (second stage of the Non-text baseline)."""
    silent_pose: bool = False
    """Fresh pose control starts at zero, so that step 0 is the base; off: at torch's defaults, as published."""
    recompute_activations: bool = True
    """Gradient checkpointing: less memory for about a third more time."""

    def __post_init__(self):
        silenceable = self.pose_control.startswith("padaln") and self.pose_encoding == "shared_vae"
        if not self.learn_pose and not silenceable:
            raise ConfigError(
                f"learn_pose False is for padaln with the shared VAE, whose pose can be silenced; pose_control is "
                f"{self.pose_control}, pose_encoding {self.pose_encoding}",
                code="setting_conflict",
                param="learn_pose",
            )
        if self.silent_pose and self.pose_control == "direct_addition":
            raise ConfigError(
                "direct_addition has no weights of its own that could start silent; leave silent_pose off",
                code="setting_conflict",
                param="silent_pose",
            )


@dataclass(frozen=True, kw_only=True)
class Clips:
    """What of a sample is shown, and at which size."""

    height: int = 1360
    """Pixels."""
    width: int = 768
    """Pixels."""
    num_frames: int = 37
    """Frames of a training clip."""
    fps: float = 16.0
    """Frames per second; clips are resampled by their time stamps. 0 keeps each clip's own."""
    windows_per_clip: int = 0
    """Training windows a clip offers, evenly spread; 0: any frame may be the first. Few windows let a cache work."""
    caption_dropout: float = 0.1
    """Share of samples shown without their caption; 1.0 trains the Non-text baseline."""
    image_dropout: float = 0.05
    """Share of samples shown without their reference image."""
    image_noise: bool = True
    """Noise of random strength exp(N(-3, 0.5)) on the reference image, in pixel space (CogVideoX I2V recipe)."""
    masked_reference: Masked = "none"
    """Region of the reference image that is blacked out, for the caption to fill."""
    cache_gib: float = 8.0
    """GiB of host memory per worker for encoded clips and captions; 0 encodes every time."""
    share_encodings: bool = False
    """Encoded clips are also kept in the run folder until its end, so that each is encoded once for all workers."""
    loader_threads: int = 2
    """Threads per worker that read and draw clips ahead; 0 reads in the training thread."""

    def __post_init__(self):
        _positive(self, "height", "width", "num_frames")
        _share(self, "caption_dropout", "image_dropout")
        _not_negative(self, "fps", "windows_per_clip", "cache_gib", "loader_threads")


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How long and how hard."""

    steps: int = 50_000
    """Optimizer steps."""
    batch_size: int = 32
    """Samples per step over all workers; the same samples whatever the number of workers."""
    micro_batch_size: int = 1
    """Samples per worker held on the device at once; the rest of the batch is accumulated."""
    learning_rate: float = 5e-6
    """Peak."""
    schedule: Schedule = "cosine"
    """Of the learning rate after the warm-up; cosine ends at 0."""
    warmup_steps: int = 1000
    """Steps of linear rise."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's two averages."""
    weight_decay: float = 1e-3
    """AdamW's, decoupled."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0 clips nothing."""
    stratified_timesteps: bool = True
    """Timesteps of one batch are spread evenly over the schedule: less noise in the gradient at no cost."""

    def __post_init__(self):
        _positive(self, "steps", "batch_size", "micro_batch_size")
        _not_negative(self, "learning_rate", "warmup_steps", "weight_decay", "max_grad_norm")


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where it runs."""

    num_workers: int = 8
    """Ray Train workers, one device each; 0 trains in this process without Ray."""
    device: Device = "cuda"
    """Device of a worker."""
    zero_stage: Literal[1, 2, 3] = 2
    """DeepSpeed ZeRO: 1 shards optimizer states, 2 gradients too, 3 parameters too."""
    precision: Precision = "bf16"
    """Of weights and activations; master weights, schedule and loss are fp32 always."""
    threads_per_worker: int = 0
    """CPU threads of torch in each worker; 0 leaves the choice to torch."""
    max_restarts: int = 3
    """Times a run that lost a worker is started again from its last checkpoint."""

    def __post_init__(self):
        _not_negative(self, "num_workers", "threads_per_worker", "max_restarts")


@dataclass(frozen=True, kw_only=True)
class Records:
    """What is kept of the run."""

    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    log_every: int = 10
    """Steps between log lines; every step's metrics are recorded all the same."""
    experiment: str = "dynamictrl"
    """MLflow experiment."""
    registered_model: str = "dynamictrl"
    """Name under which the exported model is registered in MLflow; empty registers nothing."""
    alias: str = "champion"
    """Alias the new version gets; serving follows `champion`."""

    def __post_init__(self):
        _positive(self, "checkpoint_every", "keep_checkpoints", "log_every")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every setting of a run but its data and its place; a named run is a function that returns one."""

    seed: int = 42
    """Everything random is drawn from (seed, global sample index)."""
    model: Model = field(default_factory=Model)
    lora: Lora = field(default_factory=Lora)
    clips: Clips = field(default_factory=Clips)
    optimization: Optimization = field(default_factory=Optimization)
    workers: Workers = field(default_factory=Workers)
    records: Records = field(default_factory=Records)

    def __post_init__(self):
        _not_negative(self, "seed")
        if self.lora.lora_rank and self.model.pose_encoding == "expert":
            raise ConfigError(
                "an expert pose encoder learns whole, and a LoRA run trains an adapter alone; leave lora_rank 0",
                code="setting_conflict",
                param="lora_rank",
            )
        if self.lora.lora_rank and not self.model.learn_pose and "pose_control" in self.lora.lora_parts:
            raise ConfigError(
                "lora_parts has pose_control and learn_pose is off; leave one of them",
                code="setting_conflict",
                param="lora_parts",
            )
        per_pass = max(self.workers.num_workers, 1) * self.optimization.micro_batch_size
        if self.optimization.batch_size % per_pass:
            raise ConfigError(
                f"batch_size {self.optimization.batch_size} does not divide into {self.workers.num_workers} workers "
                f"x micro_batch_size {self.optimization.micro_batch_size}; choose a multiple of {per_pass}",
                code="setting_conflict",
                param="batch_size",
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches a worker passes through before each optimizer step."""
        return self.optimization.batch_size // (max(self.workers.num_workers, 1) * self.optimization.micro_batch_size)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run, whole: given the same Run and data, the same model."""

    name: str
    """The recipe's name."""
    data: Path
    """Data set folder written by `python -m pipelines`."""
    out: Path
    """Run folder; the exported model is `out/model`."""
    recipe: Recipe

    def to_dict(self) -> dict[str, Any]:
        """The run as JSON can hold it."""
        return {
            "name": self.name,
            "data": str(self.data.resolve()),
            "out": str(self.out.resolve()),
            "recipe": dataclasses.asdict(self.recipe),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Run:
        """The inverse of `to_dict`; raises ConfigError for a field this release does not know."""
        return cls(
            name=values["name"],
            data=Path(values["data"]),
            out=Path(values["out"]),
            recipe=_build(Recipe, values["recipe"]),
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Which model is measured on which clips."""

    model: str
    """Model folder, such as RUN/model, or `mini/NAME`."""
    data: Path
    """Data set folder; its clips give reference image, driving pose, caption and ground truth."""
    out: Path
    """Folder for metrics.json, index.html and the clips."""
    against: str = ""
    """A second model measured on the same clips, such as the one before fine-tuning."""
    samples: int = 8
    """Clips measured, the first of the data set's order; 0 takes all."""
    height: int = 0
    """Pixels; 0 takes the size that the model was trained at."""
    width: int = 0
    """Pixels; 0 takes the size that the model was trained at."""
    num_frames: int = 0
    """Frames; 0 takes the number that the model was trained at."""
    fps: float = -1.0
    """Frames per second; 0 keeps each clip's own, -1 takes the rate that the model was trained at."""
    num_inference_steps: int = 25
    """Denoising steps."""
    guidance_scale: float = 3.0
    """Classifier-free guidance on the caption; 1 is off."""
    seed: int = 42
    """Of the initial noise."""
    device: Device = "cpu"
    """Where the models run."""

    def __post_init__(self):
        _not_negative(self, "samples", "height", "width", "num_frames")
        _positive(self, "num_inference_steps")


FREE_TO_CHANGE = {
    "recompute_activations", "cache_gib", "share_encodings", "loader_threads", "micro_batch_size", "num_workers",
    "threads_per_worker", "max_restarts", "checkpoint_every", "keep_checkpoints", "log_every", "experiment",
    "registered_model", "alias",
}  # fmt: skip
"""Settings that do not shape the trained model (beyond the order of sums): a run may go on with others."""


def differences(first: Recipe, second: Recipe) -> list[str]:
    """Settings that shape the trained model and differ, as `name: old -> new`."""
    old, new = _flat(first), _flat(second)
    return [
        f"{name}: {old[name]} -> {new[name]}" for name in old if name not in FREE_TO_CHANGE and old[name] != new[name]
    ]


def _flat(recipe: Recipe) -> dict[str, object]:
    values: dict[str, object] = {}
    for entry in dataclasses.fields(recipe):
        value = getattr(recipe, entry.name)
        values |= dataclasses.asdict(value) if dataclasses.is_dataclass(value) else {entry.name: value}  # pyright: ignore[reportArgumentType]
    return values


def _build(kind: type, values: dict[str, Any]) -> Any:  # noqa: ANN401 - one of the dataclasses above
    hints = get_type_hints(kind)
    unknown = set(values) - set(hints)
    if unknown:
        raise ConfigError(
            f"{kind.__name__} has no field {sorted(unknown)}; it has {sorted(hints)}", code="setting_unknown"
        )
    filled = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = _build(hints[name], value)
        elif isinstance(value, list):
            value = tuple(value)
        filled[name] = value
    return kind(**filled)
