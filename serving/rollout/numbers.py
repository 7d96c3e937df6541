"""A rollout in numbers, for /metrics."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from serving.rollout.store import Rollouts
from serving.watching.metrics import PREFIX


def families(rollouts: Rollouts | None) -> Iterator[Metric]:
    """Which version serves, which is tried on what share of the tenants, and since when; nothing without a rollout."""
    state = rollouts.get() if rollouts else None
    if state is None:
        return
    versions = GaugeMetricFamily(
        PREFIX + "model_version", "1 for each version that has a part.", labels=("model", "version", "part")
    )
    for part in ("stable", "candidate", "previous", "rejected"):
        if version := getattr(state, part):
            versions.add_metric((state.model, version, part), 1)
    yield versions
    for name, about, value in (
        ("rollout_percent", "Share of the tenants that the candidate serves, per cent.", state.percent),
        ("rollout_phase_began_seconds", "When the rollout's phase began, Unix seconds.", state.since),
    ):
        gauge = GaugeMetricFamily(PREFIX + name, about, labels=("model", "phase"))
        gauge.add_metric((state.model, state.phase.value), value)
        yield gauge
