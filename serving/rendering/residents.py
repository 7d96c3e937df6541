"""Transformers and LoRAs in memory, by name: switched from job to job in milliseconds, with nothing to load."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dynamictrl import DynamiCtrlPipeline
from dynamictrl.errors import CheckpointError, ConfigError, InputError
from serving.rendering.model_source import ModelSource, weights_hash

logger = logging.getLogger(__name__)

Loras = Sequence[tuple[str, float]]
"""Names of LoRAs and the weight of each."""
PARTS = ("transformer", "scheduler", "pose_encoder")
"""What differs from model to model; text encoder, tokenizer and VAE are the first one's."""


@dataclass
class Resident:
    """One model's own parts."""

    source: ModelSource
    parts: dict[str, Any]
    image_latent_rule: str
    loras: set[str] = field(default_factory=set)
    """Names of the LoRAs that sit on it."""


class Residents:
    """The models of one pipeline. Not safe to use from several threads: one job at a time."""

    def __init__(self, pipeline: DynamiCtrlPipeline, first: ModelSource, prepare: Callable[[Any], None]):
        """`pipeline` holds the first model; `prepare` makes a transformer ready to render (device, type, speed)."""
        self.pipeline = pipeline
        self.lora_files: dict[str, Path] = {}
        self._prepare = prepare
        self._models: dict[str, Resident] = {}
        self.default = first.name
        self._take_in(first, pipeline)

    @property
    def names(self) -> list[str]:
        """The models, the default one first."""
        return [self.default, *(name for name in self._models if name != self.default)]

    def source(self, name: str) -> ModelSource:
        """Where a model came from; InputError for a name that is not served."""
        return self._model(name).source

    def loras(self, name: str) -> set[str]:
        """The LoRAs that a model can wear."""
        return self._model(name).loras

    def add(self, source: ModelSource, weights_type: torch.dtype) -> None:
        """Loads another model's own parts; ConfigError where it does not go with the text encoder and VAE in memory."""
        if source.name in self._models:
            raise ConfigError(f"two models are called {source.name!r}", code="model_name", param="models")
        _check_shared_parts(self._models[self.default].source, source)
        self._take_in(source, load_own_parts(source, weights_type))
        for name, file in self.lora_files.items():
            self._put_on(self._models[source.name], name, file)
        self._show(self._models[self.default])

    def remove(self, name: str) -> None:
        """Forgets a model, and frees its memory once no job uses it; the default one cannot be removed."""
        if name == self.default:
            raise ConfigError(f"{name!r} is the default model; make another one the default first", code="model_name")
        del self._models[name]

    def add_lora(self, name: str, file: Path) -> None:
        """Puts a LoRA, switched off, on every model whose shapes it has; CheckpointError where there is none."""
        problems = [self._put_on(resident, name, file) for resident in self._models.values()]
        self._show(self._models[self.default])
        if all(problems):
            raise CheckpointError(
                f"the LoRA {name!r} ({file}) goes with none of the models: {problems[0]}",
                code="weights_mismatch",
                param="loras",
            )
        self.lora_files[name] = file

    def check(self, name: str, loras: Loras) -> None:
        """InputError for a model or a LoRA that is not there, or not for this model."""
        known = self._model(name).loras
        for lora, _ in loras:
            if lora not in known:
                there = f"it has {', '.join(sorted(known))}" if known else "it has none"
                raise InputError(
                    f"the LoRA {lora[:60]!r} is not served on the model {name!r}; {there}",
                    code="lora_not_found",
                    param="loras",
                )

    @contextmanager
    def in_use(self, name: str, loras: Loras = ()) -> Iterator[ModelSource]:
        """The pipeline is this model, wearing these LoRAs and no others; however the block ends, they are off again."""
        self.check(name, loras)
        resident = self._model(name)
        self._show(resident)
        transformer = resident.parts["transformer"]
        _take_off(resident)
        try:
            if loras:
                names, weights = [_adapter(lora) for lora, _ in loras], [float(weight) for _, weight in loras]
                transformer.set_adapters(names, weights)
                transformer.enable_adapters()
            yield resident.source
        finally:
            _take_off(resident)

    def _model(self, name: str) -> Resident:
        if name not in self._models:
            raise InputError(
                f"model {name[:60]!r} is not served; there is {', '.join(self.names)}",
                code="model_not_found",
                param="model",
            )
        return self._models[name]

    def _take_in(self, source: ModelSource, pipeline: DynamiCtrlPipeline) -> None:
        parts = {name: getattr(pipeline, name) for name in PARTS}
        self._prepare(parts["transformer"])
        if parts["pose_encoder"] is not None:
            parts["pose_encoder"].to(parts["transformer"].device, parts["transformer"].dtype)
        self._models[source.name] = Resident(source, parts, pipeline.config["image_latent_rule"])

    def _show(self, resident: Resident) -> None:
        """Makes a model the pipeline's."""
        if self.pipeline.transformer is not resident.parts["transformer"]:
            self.pipeline.register_modules(**resident.parts)
        if self.pipeline.config["image_latent_rule"] != resident.image_latent_rule:
            self.pipeline.register_to_config(image_latent_rule=resident.image_latent_rule)

    def _put_on(self, resident: Resident, name: str, file: Path) -> CheckpointError | None:
        self._show(resident)
        try:
            self.pipeline.load_lora_weights(file, adapter_name=_adapter(name))
        except CheckpointError as problem:
            if problem.code != "weights_mismatch":
                raise
            logger.info("the LoRA %s does not go with the model %s", name, resident.source.name)
            return problem
        transformer = resident.parts["transformer"]
        for parameter_name, parameter in transformer.named_parameters():
            if ".lora_" in parameter_name:
                # PEFT makes what it loads ready to learn; nothing learns here.
                parameter.requires_grad_(False)
                parameter.data = parameter.data.to(transformer.device)
        resident.loras.add(name)
        _take_off(resident)
        return None


def load_own_parts(source: ModelSource, weights_type: torch.dtype) -> DynamiCtrlPipeline:
    """A model without text encoder and VAE."""
    lent: Mapping[str, Any] = {"transformer": source.transformer} if source.transformer else {}
    nothing: Mapping[str, Any] = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
    return DynamiCtrlPipeline.from_pretrained(
        source.folder, dtype=weights_type, low_cpu_mem_usage=False, **lent, **nothing
    )


def _take_off(resident: Resident) -> None:
    if resident.loras:
        resident.parts["transformer"].disable_adapters()


def _adapter(lora: str) -> str:
    """A LoRA's name as PEFT can take it: a module's name has no dots."""
    return "lora_" + lora.encode().hex()


def _check_shared_parts(first: ModelSource, other: ModelSource) -> None:
    if other.folder == first.folder:
        return
    for part in ("text_encoder", "vae"):
        if weights_hash(other.folder / part) != weights_hash(first.folder / part):
            raise ConfigError(
                f"the model {other.name!r} has another {part} than {first.name!r}; one service shares text encoder and "
                "VAE between its models: serve it by a service of its own",
                code="model_parts",
                param="models",
            )
