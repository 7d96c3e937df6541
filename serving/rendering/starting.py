"""From a service's settings to an engine that is loaded and warm."""

from __future__ import annotations

import logging
import os

from serving.config import Service
from serving.media.decoding import Decoder
from serving.rendering import tiers, warm_up
from serving.rendering.engine import Engine
from serving.rendering.model_source import locate_all, lora_file
from serving.rendering.speed import Size

logger = logging.getLogger(__name__)

SHORTEST = 5
"""Frames of the clip with which an engine is warmed that has no declared shapes: it pays for each kernel's start."""


def usual_size(service: Service, shapes: list[warm_up.Shape]) -> Size:
    """What most clips are like: the first declared shape, else the defaults."""
    if shapes:
        return shapes[0].width, shapes[0].height, shapes[0].num_frames
    return service.defaults.width, service.defaults.height, service.defaults.num_frames


def engine_for(service: Service, decoder: Decoder) -> Engine:
    """Loads a service's models and LoRAs and renders its declared shapes once.

    Raises CheckpointError and ConfigError for what cannot be had or does not fit, before anything is loaded where that
    can be known.
    """
    shapes = [warm_up.parse(text) for text in service.warm_shapes]
    if service.compile_cache:
        # Read by torch when the first graph is compiled; followers inherit it.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = service.compile_cache
    first, *others = locate_all(service.model, service.transformer, service.named_models)
    engine = Engine(
        first,
        service.pose_model,
        device=service.device,
        dtype=service.dtype,
        threads=service.threads,
        compatibility=service.compatibility,
        alignment=service.alignment,
        decoder=decoder,
        models=others,
        loras={name: lora_file(place) for name, place in service.named_loras.items()},
        acceleration=service.acceleration,
        parallel=service.parallel,
        usual_size=usual_size(service, shapes),
        cache_bytes=service.cache_mib * 2**20,
    )
    try:
        if shapes:
            warm_up.all_shapes(engine, shapes, tuple(tiers.TIERS), service.defaults.guidance_scale)
        else:
            shape = warm_up.Shape(service.defaults.width, service.defaults.height, SHORTEST)
            warm_up.one_shape(engine, shape, steps=1, qualities=("exact",))
    except BaseException:
        engine.close()
        raise
    return engine


def warm_model(service: Service, engine: Engine, name: str) -> None:
    """Renders the declared shapes once with a model that has come later."""
    for text in service.warm_shapes:
        shape, guidance = warm_up.parse(text), service.defaults.guidance_scale
        warm_up.one_shape(engine, shape, steps=2, qualities=tuple(tiers.TIERS), model=name, guidance=guidance)
