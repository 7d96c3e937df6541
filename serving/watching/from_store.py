"""The numbers that the job store knows: the same from every replica, and over every restart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from sqlalchemy import JSON, Connection, cast, func, select

from serving.backend import Backend
from serving.jobs.database import files, videos
from serving.rollout import numbers as rollout_numbers
from serving.tenants.keyring import Keyring
from serving.tenants.ledger import month_of
from serving.tenants.tables import tenant_quotas, usage
from serving.watching.metrics import PREFIX
from serving.webhooks.outbox import webhook_outbox

MOST_TENANTS = 200
"""Tenants with a label of their own, by what they have used; the others share one named `(others)`."""
OTHERS = "(others)"


@dataclass(frozen=True)
class _Ask:
    connection: Connection
    now: float

    def number(self, query: object) -> float:
        return float(self.connection.execute(query).scalar() or 0.0)  # type: ignore[call-overload]


def families(backend: Backend) -> Iterator[Metric]:
    """Everything that the store can say; raises what SQLAlchemy does where it is away."""
    now = backend.store.clock()
    with backend.store.engine.connect() as connection:
        ask = _Ask(connection, now)
        found = [*_queue(ask), *_troubles(ask), *_usage(ask, backend), *_webhooks(ask)]
    yield from found
    yield from rollout_numbers.families(backend.rollouts)
    yield _gauge("jobs", "Jobs in the store by status.", "status", backend.store.counts().items())
    yield GaugeMetricFamily(PREFIX + "workers_warm", "Workers that gave a sign of life in the last seconds.",
                            value=backend.presence.count())  # fmt: skip


def _queue(ask: _Ask) -> Iterator[Metric]:
    quality = _quality(ask.connection)
    query = select(videos.c.status, videos.c.model, quality, func.count(), func.min(videos.c.created_at))
    query = query.where(videos.c.status.in_(("queued", "in_progress"))).group_by(
        videos.c.status, videos.c.model, quality
    )
    by_name = {
        "queued": GaugeMetricFamily(PREFIX + "jobs_queued", "Jobs that wait.", labels=("model", "quality")),
        "in_progress": GaugeMetricFamily(PREFIX + "jobs_running", "Jobs at work.", labels=("model", "quality")),
    }
    oldest = GaugeMetricFamily(
        PREFIX + "queue_oldest_age_seconds", "Age of the job that has waited longest.", labels=("model", "quality")
    )
    for status, model, word, count, since in ask.connection.execute(query):
        labels = (model, word or "exact")
        by_name[status].add_metric(labels, count)
        if status == "queued":
            oldest.add_metric(labels, max(0.0, ask.now - since))
    yield from (*by_name.values(), oldest)


def _troubles(ask: _Ask) -> Iterator[Metric]:
    running = videos.c.status == "in_progress"
    since = ask.connection.execute(select(func.min(videos.c.started_at)).where(running)).scalar()
    overdue = select(func.count()).where(running, videos.c.lease_expires_at < ask.now)
    retried = select(func.count()).where(
        ((videos.c.status == "queued") & (videos.c.attempts >= 1)) | (running & (videos.c.attempts >= 2))
    )
    for name, about, value in (
        ("running_oldest_age_seconds", "Time since the oldest running attempt began.", ask.now - (since or ask.now)),
        ("leases_overdue", "Running jobs whose lease has run out.", ask.number(overdue)),
        ("jobs_retried", "Unfinished jobs that have lost a worker.", ask.number(retried)),
    ):
        yield GaugeMetricFamily(PREFIX + name, about, value=max(0.0, value))


def _usage(ask: _Ask, backend: Backend) -> Iterator[Metric]:
    ended = CounterMetricFamily(
        PREFIX + "jobs_ended", "Ended jobs since the store was made.", labels=("model", "quality", "outcome")
    )
    keys = (usage.c.model, usage.c.quality, usage.c.outcome)
    for *labels, count in ask.connection.execute(select(*keys, func.sum(usage.c.jobs)).group_by(*keys)):
        ended.add_metric(labels, count)
    yield ended
    total = func.sum(usage.c.gpu_seconds)
    query = select(usage.c.tenant, total).group_by(usage.c.tenant).order_by(total.desc())
    seconds = _few({tenant: used for tenant, used in ask.connection.execute(query)})
    price = backend.service.gpu_hour_price
    spent, cost = (
        CounterMetricFamily(PREFIX + name, about, labels=("tenant",))
        for name, about in (
            ("gpu_seconds", "GPU seconds of ended jobs since the store was made."),
            ("gpu_cost", "The same at gpu_hour_price, in its currency."),
        )
    )
    for tenant, used in seconds.items():
        spent.add_metric([tenant], used)
        cost.add_metric([tenant], used / 3600.0 * price)
    yield from (spent, cost, _budgets(ask, backend), _storage(ask))


def _budgets(ask: _Ask, backend: Backend) -> Metric:
    """A tenant's share used of this month's budget, for tenants that have one."""
    month = usage.c.month == month_of(ask.now)
    query = select(usage.c.tenant, func.sum(usage.c.gpu_seconds)).where(month).group_by(usage.c.tenant)
    used = {tenant: seconds for tenant, seconds in ask.connection.execute(query)}
    named = set(ask.connection.execute(select(tenant_quotas.c.tenant)).scalars()) | set(used)
    keyring = Keyring(backend.store.engine, quotas=backend.service.quotas)
    shares: dict[str, float] = {}
    for tenant in sorted(named)[:MOST_TENANTS]:
        budget = keyring.quotas(tenant).gpu_seconds_per_month
        if budget:
            shares[tenant] = used.get(tenant, 0.0) / budget
    return _gauge("gpu_budget_used_ratio", "Used share of the month's GPU seconds.", "tenant", shares.items())


def _storage(ask: _Ask) -> Metric:
    kept: dict[str, float] = {}
    for table, column in ((files, files.c.bytes), (videos, videos.c.stored_bytes)):
        query = select(table.c.tenant, func.sum(column)).group_by(table.c.tenant)
        for tenant, count in ask.connection.execute(query):
            kept[tenant] = kept.get(tenant, 0.0) + float(count or 0)
    return _gauge("stored_bytes", "Bytes of files, inputs and clips.", "tenant", _few(kept).items())


def _webhooks(ask: _Ask) -> Iterator[Metric]:
    table = webhook_outbox
    pending = table.c.status == "pending"
    oldest = ask.connection.execute(select(func.min(table.c.created_at)).where(pending)).scalar()
    dead = select(func.count()).where(table.c.status == "dead")
    for name, about, value in (
        ("webhooks_pending", "Events to be delivered.", ask.number(select(func.count()).where(pending))),
        ("webhooks_dead", "Events that nobody took for a day.", ask.number(dead)),
        ("webhook_oldest_pending_age_seconds", "Age of the oldest pending event.", ask.now - (oldest or ask.now)),
    ):
        yield GaugeMetricFamily(PREFIX + name, about, value=max(0.0, value))


def _quality(connection: Connection):  # noqa: ANN202 - SQLAlchemy's column
    if connection.dialect.name == "postgresql":
        return cast(videos.c.settings, JSON)["quality"].as_string()
    return func.json_extract(videos.c.settings, "$.quality")


def _gauge(name: str, about: str, label: str, values) -> Metric:  # noqa: ANN001 - pairs of a label and a number
    family = GaugeMetricFamily(PREFIX + name, about, labels=(label,))
    for key, value in values:
        family.add_metric([str(key)], value)
    return family


def _few(values: dict[str, float]) -> dict[str, float]:
    """The largest, and one sum of the others: labels stay bounded whatever keys are made."""
    ranked = sorted(values.items(), key=lambda item: -item[1])
    kept = {tenant: float(value) for tenant, value in ranked[:MOST_TENANTS]}
    if rest := ranked[MOST_TENANTS:]:
        kept[OTHERS] = float(sum(value for _, value in rest))
    return kept
