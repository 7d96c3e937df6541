"""How long a job will take an engine: what jobs of its shape took, or what its amount of work took in other shapes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Column, Connection, Engine, Float, Integer, String, Table, insert, select, update
from sqlalchemy.exc import IntegrityError

from serving.jobs.database import METADATA
from serving.jobs.job import Settings

NEWEST = 0.3
"""Weight of the newest job in a shape's mean: a change of engine shows after a few jobs."""
REMEMBERED_S = 5.0
"""Seconds for which a process remembers what it has read."""

rates = Table(
    "render_rates",
    METADATA,
    Column("model", String(200), primary_key=True),
    Column("shape", String(200), primary_key=True),
    Column("work", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("jobs", Integer, nullable=False),
    Column("at", Float, nullable=False),
)


@dataclass(frozen=True)
class Rate:
    """What jobs of one shape took."""

    work: float
    seconds: float


def shape(settings: Settings, media: Sequence[str]) -> str:
    """What a job's time depends on, as one word."""
    guided = "guided" if settings.guidance_scale > 1 else "plain"
    motion = "driving" if "driving_video" in media else "pose"
    return f"{settings.size}x{settings.num_frames} {settings.num_inference_steps} {guided} {settings.quality} {motion}"


def work(settings: Settings) -> float:
    """What the denoiser has to do, up to a constant: linear layers and attention (width 3072, 2x2x2 patches)."""
    latent_frames = (settings.num_frames - 1) // 4 + 1
    tokens = -(-latent_frames // 2) * (settings.width / 16) * (settings.height / 16) + 226
    branches = 2 if settings.guidance_scale > 1 else 1
    return settings.num_inference_steps * branches * tokens * (24 * 3072 + 4 * tokens) / 1e9


def learn(connection: Connection, *, model: str, settings: str, inputs: str, seconds: float, at: float) -> None:
    """Takes a finished job into its shape's mean, in the transaction that finishes it."""
    known = Settings(**json.loads(settings))
    key = {"model": model, "shape": shape(known, json.loads(inputs))}
    mine = (rates.c.model == key["model"]) & (rates.c.shape == key["shape"])
    blended = {"seconds": (1 - NEWEST) * rates.c.seconds + NEWEST * seconds, "jobs": rates.c.jobs + 1, "at": at}
    if connection.execute(update(rates).where(mine).values(blended)).rowcount:
        return
    # Two first jobs of a shape may end at once: the second then finds the row there.
    with suppress(IntegrityError), connection.begin_nested():
        connection.execute(insert(rates).values(**key, work=work(known), seconds=seconds, jobs=1, at=at))


class Estimates:
    """Reads the rates table, and remembers it for a few seconds. Threads may share it."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic):
        self.engine = engine
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, Rate]] = {}
        self._read_at = float("-inf")

    def seconds(self, model: str, settings: Settings, media: Sequence[str] | Mapping[str, str]) -> float | None:
        """Engine seconds of such a job; None where the model has not finished any job yet."""
        known = self._rates().get(model)
        if not known:
            return None
        exact = known.get(shape(settings, list(media)))
        if exact is not None:
            return round(exact.seconds, 3)
        # The same quality tells most; another one tells more than nothing.
        alike = [rate for key, rate in known.items() if f" {settings.quality} " in key]
        return round(predict(alike or list(known.values()), work(settings)), 3)

    def forget(self) -> None:
        """Reads anew at the next question."""
        with self._lock:
            self._read_at = float("-inf")

    def _rates(self) -> dict[str, dict[str, Rate]]:
        with self._lock:
            if self._clock() - self._read_at > REMEMBERED_S:
                found: dict[str, dict[str, Rate]] = {}
                with self.engine.connect() as connection:
                    for row in connection.execute(select(rates)):
                        found.setdefault(row.model, {})[row.shape] = Rate(row.work, row.seconds)
                self._known, self._read_at = found, self._clock()
            return self._known


def predict(known: Sequence[Rate], amount: float) -> float:
    """Seconds of an amount of work: the straight line through what is known, with neither part of it negative."""
    count, mean_work = len(known), sum(rate.work for rate in known) / len(known)
    mean_seconds = sum(rate.seconds for rate in known) / count
    spread = sum((rate.work - mean_work) ** 2 for rate in known)
    slope = 0.0
    if spread > 0:
        slope = sum((rate.work - mean_work) * (rate.seconds - mean_seconds) for rate in known) / spread
    fixed = mean_seconds - slope * mean_work
    if count == 1 or slope <= 0 or fixed < 0:
        # One point, or a line that says nonsense: proportional to the work.
        return mean_seconds * amount / mean_work
    return fixed + slope * amount


def remaining(estimate: float | None, elapsed: float, progress: int) -> float | None:
    """Seconds that a running job still needs, by its estimate at first and ever more by its own pace."""
    share = progress / 100
    if estimate is None:
        return elapsed * (1 - share) / share if share > 0.1 else None
    if share <= 0.1:
        return max(0.0, estimate - elapsed)
    return (1 - share) * ((1 - share) * estimate + elapsed)
