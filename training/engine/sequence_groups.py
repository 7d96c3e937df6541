"""Workers that share clips token by token: which ones, and what is refused or warned of before they do.

Neighbouring ranks share, as they are likely to be on one machine. The sharing itself is `dynamictrl.sequence_parallel`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dynamictrl.errors import ConfigError
from training.config import Recipe

if TYPE_CHECKING:
    from torch import nn

    from training.engine.parallel import Place

logger = logging.getLogger(__name__)


def check_heads(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """ConfigError where more workers would share a clip than the base, whose `config` it is, has attention heads."""
    ways, heads = recipe.speed.sequence_parallel, config["num_attention_heads"]
    if ways > heads:
        raise ConfigError(
            f"sequence_parallel is {ways} and {recipe.model.base} has {heads} attention heads, of which each worker "
            f"needs one; choose {heads} or less",
            code="setting_conflict",
            param="sequence_parallel",
        )


def share(transformer: nn.Module, place: Place, stall_minutes: float) -> None:
    """Tells a transformer which workers share its clips; all workers must call it, once, before the first step.

    An exchange among them may take `stall_minutes`, as all other collectives; torch's default is shorter than that.
    """
    if place.sequence_parallel == 1:
        return
    import torch.distributed as dist

    local = int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    if place.is_first and spans_machines(place.sequence_parallel, local):
        logger.warning(
            "some %d workers that share a clip are on two machines (%d workers on each): every attention waits for the "
            "network between them. Choose a sequence_parallel that divides %d",
            place.sequence_parallel,
            local,
            local,
        )
    ways = place.sequence_parallel
    patience = timedelta(minutes=stall_minutes)
    groups = [
        dist.new_group(list(range(first, first + ways)), timeout=patience) for first in range(0, place.size, ways)
    ]
    sharing: Any = transformer
    sharing.share_tokens(groups[place.data_rank])


def spans_machines(ways: int, workers_per_machine: int) -> bool:
    """Whether so many neighbours lie on two machines somewhere; False where it is not known (0)."""
    return workers_per_machine > 0 and workers_per_machine % ways != 0
