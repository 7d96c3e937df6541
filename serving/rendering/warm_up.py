"""Rendering nothing of the declared shapes, so that no job pays for compiling, timing kernels or filling caches."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dynamictrl import geometry
from dynamictrl.errors import ConfigError, InputError
from serving.rendering import tiers
from serving.rendering.content_cache import ContentCache

if TYPE_CHECKING:
    from serving.rendering.engine import Engine

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shape:
    """A clip's size."""

    width: int
    height: int
    num_frames: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.num_frames}"


def parse(text: str) -> Shape:
    """`768x1360x37` as a shape; ConfigError for what no clip can have."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})x(\d{1,5})", text)
    if match is None:
        raise ConfigError(
            f"the shape {text!r} is not understood; write WIDTHxHEIGHTxFRAMES, such as 768x1360x37",
            code="warm_shapes",
            param="warm_shapes",
        )
    shape = Shape(*map(int, match.groups()))
    try:
        geometry.check_size(shape.height, shape.width)
        geometry.check_num_frames(shape.num_frames)
    except InputError as problem:
        raise ConfigError(f"the shape {text}: {problem}", code="warm_shapes", param="warm_shapes") from problem
    return shape


def all_shapes(engine: Engine, shapes: Sequence[Shape], qualities: Sequence[str], guidance: float) -> None:
    """Renders each shape in each quality with every model, two steps each; how far it is, goes to the log."""
    started = time.monotonic()
    for number, shape in enumerate(shapes, start=1):
        for name in engine.residents.names:
            one_shape(engine, shape, steps=2, qualities=qualities, model=name, guidance=guidance)
        logger.info("warm: %s, %d of %d, after %.1f s", shape, number, len(shapes), time.monotonic() - started)


def one_shape(
    engine: Engine, shape: Shape, *, steps: int, qualities: Sequence[str], model: str = "", guidance: float = 3.0
) -> None:
    """Renders nothing, once in each quality; keeps nothing in the caches."""
    blank = np.zeros((shape.num_frames, shape.height, shape.width, 3), np.uint8)
    pipeline, name = engine.pipeline, model or engine.residents.default
    kept, pipeline.cache = pipeline.cache, ContentCache(0)
    ways: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "np"}
    try:
        for quality in qualities:
            shortcuts = tiers.said(tiers.tier(quality))
            pipeline.order = {"model": name, "loras": [], "shortcuts": shortcuts}
            with engine.residents.in_use(name):
                pipeline(Image.fromarray(blank[0]), blank, "", shortcuts=engine.speed.shortcuts(shortcuts), **ways)
    finally:
        pipeline.cache = kept
