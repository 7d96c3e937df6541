"""Which numbers of workers a run can go on with: the batch and the clips must go into them without a rest."""

from __future__ import annotations

from dynamictrl.errors import ConfigError
from training.config import Recipe


def legal_counts(recipe: Recipe) -> tuple[int, ...]:
    """Every number from `min_workers` to `num_workers` that shares the batch evenly, the smallest first.

    Only `num_workers` where the recipe has no `min_workers`. A cluster that offers a number between two of these
    leaves the rest of its workers idle.
    """
    workers = recipe.workers
    fewest = workers.min_workers or workers.num_workers
    return tuple(count for count in range(max(fewest, 1), workers.num_workers + 1) if _divides(recipe, count))


def _divides(recipe: Recipe, count: int) -> bool:
    try:
        recipe.accumulation_of(count)
    except ConfigError:
        return False
    return True
