"""How many workers each operator gets of a cluster's processors, GPUs and memory.

Fixed before the work starts: a pool that grows as blocks come was measured to lose a quarter of a run to workers that
load their weights one after another, and a fast pool upstream takes the room of a slow one downstream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynamictrl.errors import ConfigError

GIBIBYTE = 2**30
SMALLEST_SHARE = 0.01
ROUNDING = 1e-6


@dataclass(frozen=True)
class Need:
    """What one worker of an operator takes."""

    name: str
    cpus: float = 1.0
    gpus: float = 0.0
    """Below 1 a share of one GPU, above it a whole number of them."""
    memory_gib: float = 0.0


@dataclass(frozen=True)
class Lanes:
    """What an operator is given."""

    workers: int
    cpus: float
    """Reserved by each: as needed, or less of it where the cluster has fewer processors than there are operators."""


@dataclass(frozen=True)
class Cluster:
    """What there is in all."""

    cpus: float
    gpus: float = 0.0
    memory_gib: float = float("inf")


def shared(needs: Sequence[Need], cluster: Cluster, *, most: int) -> list[Lanes]:
    """The lanes of each operator, `most` at most, so that one worker of each and all GPU workers fit at once.

    GPU operators are given workers in turn as long as GPUs, processors and memory last; the others then use what
    processors are left, each of them all, as their tasks come and go.

    Raises ConfigError with the code `no_gpu` or `no_memory` where not even one worker of each fits.
    """
    _check_memory(needs, cluster)
    cpus = [max(SMALLEST_SHARE, need.cpus * min(1.0, _fitting(needs, cluster))) for need in needs]
    counts = _gpu_workers(needs, cluster, cpus, most)
    free = cluster.cpus - sum(
        count * share for count, share, need in zip(counts, cpus, needs, strict=True) if need.gpus
    )
    memory = cluster.memory_gib - sum(c * n.memory_gib for c, n in zip(counts, needs, strict=True) if n.gpus)
    for i, need in enumerate(needs):
        if not need.gpus:
            room = free / cpus[i]
            if need.memory_gib:
                room = min(room, memory / need.memory_gib)
            counts[i] = max(1, min(most, int(room + ROUNDING)))
    # Ray counts in ten-thousandths.
    return [Lanes(count, int(share * 1e4) / 1e4) for count, share in zip(counts, cpus, strict=True)]


def _fitting(needs: Sequence[Need], cluster: Cluster) -> float:
    """The share of its processors that every worker can have when there is one of each; above 1 there is room."""
    return cluster.cpus / sum(need.cpus for need in needs)


def _check_memory(needs: Sequence[Need], cluster: Cluster) -> None:
    # Tasks that wait for memory come and go, actors stay.
    staying = sum(need.memory_gib for need in needs if need.gpus)
    largest = max((need.memory_gib for need in needs if not need.gpus), default=0.0)
    if staying + largest > cluster.memory_gib:
        names = ", ".join(f"{need.name} {need.memory_gib:g}" for need in needs if need.memory_gib)
        raise ConfigError(
            f"one worker of each step needs {staying + largest:g} GiB of memory ({names}) and the cluster has "
            f"{cluster.memory_gib:.1f}. Lower the steps' memory_gib if they take less, or name a larger cluster by "
            f"RAY_ADDRESS.",
            code="no_memory",
        )


def _gpu_workers(needs: Sequence[Need], cluster: Cluster, cpus: Sequence[float], most: int) -> list[int]:
    """Workers per operator, 0 for those without a GPU: one each, then one more to whoever has fewest."""
    counts = [0] * len(needs)
    on_gpus = [i for i, need in enumerate(needs) if need.gpus]
    rooms = [1.0] * int(cluster.gpus)
    for i in sorted(on_gpus, key=lambda i: -needs[i].gpus):
        if not _placed(needs[i].gpus, rooms):
            raise _no_gpu([needs[j] for j in on_gpus], cluster)
        counts[i] = 1
    free = cluster.cpus - sum(cpus)
    memory = cluster.memory_gib - sum(need.memory_gib for need in needs)
    open_to_more = set(on_gpus)
    while open_to_more:
        i = min(open_to_more, key=lambda i: (counts[i], i))
        fits = counts[i] < most and cpus[i] <= free + ROUNDING and needs[i].memory_gib <= memory
        if not fits or not _placed(needs[i].gpus, rooms):
            open_to_more.remove(i)
            continue
        counts[i] += 1
        free -= cpus[i]
        memory -= needs[i].memory_gib
    return counts


def _no_gpu(needs: Sequence[Need], cluster: Cluster) -> ConfigError:
    return ConfigError(
        f"{', '.join(need.name for need in needs)} need {sum(need.gpus for need in needs):g} GPUs together and the "
        f"cluster has {cluster.gpus:g}. Name a cluster by RAY_ADDRESS, take smaller shares (gpu_share), set their "
        f"device to cpu, or use recipe curate-mini.",
        code="no_gpu",
    )


def _placed(share: float, rooms: list[float]) -> bool:
    """Takes a share of the fullest GPU that has room for it, or whole GPUs; False where there is none."""
    wanted = 1 if share <= 1 else round(share)
    size = min(share, 1.0)
    fitting = sorted((i for i, room in enumerate(rooms) if room + ROUNDING >= size), key=lambda i: (rooms[i], i))
    if len(fitting) < wanted:
        return False
    for i in fitting[:wanted]:
        rooms[i] -= size
    return True
