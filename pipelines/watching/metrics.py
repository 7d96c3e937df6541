"""A run in numbers for machines: the Prometheus text of a run, by HTTP (`--metrics-port N`) and as a file.

The file `OUT/.work/metrics.prom` is what node_exporter's textfile collector takes; both say the same, need neither
Ray's dashboard nor another package, and are refreshed while the run lasts. Sums are over the workers of this run of
the command (a rerun begins at 0, as Prometheus counters do).

| name (all begin with `dynamictrl_curation_`) | type | labels | what |
|---|---|---|---|
| `units` | gauge | phase, state = total, done | sources, clips or shards that this run has to do, and has done |
| `phase_seconds` | gauge | phase | since the phase began, or what it took |
| `eta_seconds` | gauge | phase | to the end of the phase at the rate so far |
| `units_per_hour` | gauge | phase | done / time, in the phase |
| `rows_total` | counter | phase, outcome = kept, rejected, quarantined | what the units became |
| `stage_units_total` | counter | stage | rows that a stage worked on; recalled results are not work |
| `stage_refused_total` | counter | stage, outcome = rejected, quarantined, reason | rows that it refused |
| `stage_seconds_total` | counter | stage | wall time inside the stage, over all workers |
| `stage_cpu_seconds_total` | counter | stage | processor time inside the stage |
| `workers` | gauge | operator | processes that an operator may use at once |
| `worker_seconds_total` | counter | operator, state = busy, waiting, blocked | what worker time went on, see below |
| `queue_blocks` | gauge | operator | blocks of rows that wait before an operator |
| `blocks_total` | counter | operator | blocks done |
| `attempts_lost_total` | counter | operator | attempts at a unit that ended with the death of the process |
| `bytes_total` | counter | kind = read, written | bytes of finished sources (local ones), of committed shards |
| `object_store_bytes` | gauge | state = peak, spilled | of Ray: rows only pass through it, so spilled stays 0 |
| `driver_rss_bytes` | gauge | | memory of the driver |

States of a worker: `busy` = between taking a block and giving it back; `blocked` = idle while blocks wait before it,
since Ray holds them back (the steps behind are full, or processors are reserved elsewhere); `waiting` = idle for want
of input. The three add up to `workers` x the time that the operator was at work. Operators are groups of stages that
share a worker (`operators`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from dynamictrl.errors import ConfigError
from pipelines.clip import Clip
from pipelines.files import storage
from pipelines.stage import Cost
from pipelines.watching import meter

logger = logging.getLogger(__name__)

PREFIX = "dynamictrl_curation_"
SECONDS_BETWEEN_FILES = 5.0
DRIVER = "driver.json"
"""Beside the workers' files: what only the driver knows (`say_operators`)."""
WRITTEN = "written.json"
"""The same for `say_written`."""

Samples = list[tuple[dict[str, str], float]]

METRICS = {
    "units": ("gauge", "Units of the phase: sources, clips or shards."),
    "phase_seconds": ("gauge", "Seconds since the phase began, or what it took."),
    "eta_seconds": ("gauge", "Seconds to the end of the phase at the rate so far."),
    "units_per_hour": ("gauge", "Units done per hour of the phase."),
    "rows_total": ("counter", "Rows that the units became, by outcome."),
    "stage_units_total": ("counter", "Rows that a stage worked on."),
    "stage_refused_total": ("counter", "Rows that a stage refused, by reason."),
    "stage_seconds_total": ("counter", "Wall seconds inside a stage, over all workers."),
    "stage_cpu_seconds_total": ("counter", "Processor seconds inside a stage, over all workers."),
    "workers": ("gauge", "Processes that an operator may use at once."),
    "worker_seconds_total": ("counter", "Worker seconds by what they went on."),
    "queue_blocks": ("gauge", "Blocks of rows that wait before an operator."),
    "blocks_total": ("counter", "Blocks of rows done by an operator."),
    "attempts_lost_total": ("counter", "Attempts at a unit that ended with the death of the process."),
    "bytes_total": ("counter", "Bytes of finished local sources, and of committed shards."),
    "object_store_bytes": ("gauge", "Bytes in Ray's object store at its fullest, and spilled to disk."),
    "driver_rss_bytes": ("gauge", "Resident memory of the driver."),
}
"""Type and help by name, in the order of the table above."""


@dataclass
class Phase:
    """How far one phase is."""

    total: int
    done: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    """By outcome."""
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.began

    @property
    def per_hour(self) -> float:
        return 3600 * self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def eta(self) -> float:
        """Seconds; 0 as long as nothing is done."""
        return self.seconds * (self.total - self.done) / self.done if self.done else 0.0


@dataclass
class RunMetrics:
    """The numbers of one run in the driver; its size does not depend on the number of units."""

    work: Path
    phases: dict[str, Phase] = field(default_factory=dict)
    read: int = 0
    """Bytes of finished local sources."""
    port: int = 0
    """Where they are served; 0 = nowhere."""
    _highest: dict[tuple[str, str], float] = field(default_factory=dict)

    def begin(self, phase: str, total: int) -> Phase:
        self.phases[phase] = Phase(total)
        return self.phases[phase]

    def samples(self) -> dict[str, Samples]:
        """Every metric's labels and values, by name without its prefix."""
        found: dict[str, Samples] = {name: [] for name in METRICS}
        for name, phase in self.phases.items():
            where = {"phase": name}
            found["units"] += [({**where, "state": "total"}, phase.total), ({**where, "state": "done"}, phase.done)]
            found["phase_seconds"].append((where, phase.seconds))
            found["eta_seconds"].append((where, phase.eta))
            found["units_per_hour"].append((where, phase.per_hour))
            found["rows_total"] += [({**where, "outcome": o}, n) for o, n in sorted(phase.rows.items())]
        totals = Totals.of(self.work)
        for stage, cost in totals.stages.items():
            found["stage_units_total"].append(({"stage": stage}, cost.units))
            found["stage_seconds_total"].append(({"stage": stage}, cost.seconds))
            found["stage_cpu_seconds_total"].append(({"stage": stage}, cost.cpu_seconds))
        for (stage, outcome, reason), count in sorted(totals.refused.items()):
            found["stage_refused_total"].append(({"stage": stage, "outcome": outcome, "reason": reason}, count))
        _add_operators(found, totals, _said(self.work))
        found["worker_seconds_total"] = [self._risen(labels, value) for labels, value in found["worker_seconds_total"]]
        written = _said(self.work, WRITTEN).get("bytes", 0)
        found["bytes_total"] = [({"kind": "read"}, self.read), ({"kind": "written"}, written)]
        found["driver_rss_bytes"] = [({}, resident_bytes())]
        return found

    def _risen(self, labels: dict[str, str], value: float) -> tuple[dict[str, str], float]:
        """A counter may not fall, and workers write what they did a moment late."""
        place = (labels["operator"], labels["state"])
        self._highest[place] = max(value, self._highest.get(place, 0.0))
        return labels, self._highest[place]

    def text(self) -> str:
        """Prometheus' exposition format."""
        lines = []
        for name, samples in self.samples().items():
            kind, meaning = METRICS[name]
            lines += [f"# HELP {PREFIX}{name} {meaning}", f"# TYPE {PREFIX}{name} {kind}"] if samples else []
            lines += [f"{PREFIX}{name}{_labels(labels)} {value:.10g}" for labels, value in samples]
        return "\n".join(lines) + "\n"

    def save(self) -> None:
        storage.write_bytes(self.work / "metrics.prom", self.text().encode())

    def summary(self) -> list[str]:
        """One line per stage that worked, in the order in which stages were first seen."""
        totals = Totals.of(self.work)
        refused: Counter[str] = Counter()
        for (stage, _, _), count in totals.refused.items():
            refused[stage] += count
        return [
            f"{stage}: {cost.units} seen, {refused[stage]} refused, {cost.seconds:.1f} s ({cost.cpu_seconds:.1f} s of "
            f"processor)"
            for stage, cost in totals.stages.items()
        ]


@dataclass
class Totals:
    """The workers' files, added up."""

    stages: dict[str, Cost] = field(default_factory=dict)
    refused: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    busy: Counter[str] = field(default_factory=Counter)
    """Seconds by operator."""
    blocks: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, work: Path) -> Totals:
        totals = cls()
        for worker in meter.load(work):
            name = worker["operator"]
            totals.busy[name] += worker["busy_seconds"]
            totals.blocks[name] += worker["blocks"]
            totals.lost[name] += worker["attempts_lost"]
            for stage, cost in worker["stages"].items():
                totals.stages.setdefault(stage, Cost()).add(Cost(*cost))
            for *place, count in worker["refused"]:
                totals.refused[tuple(place)] += count
        return totals


def say_operators(work: Path, content: dict[str, Any]) -> None:
    """Written by the runner in the driver.

    {"operators": {name: {workers, seconds, queue, blocked}}, "object_store": {"peak": bytes, "spilled": bytes}}, where
    `seconds` is how long the operator has been at work and `blocked` the worker seconds of it that Ray held it back.
    """
    meter.write(work, DRIVER, content)


def say_written(work: Path, size: int) -> None:
    """Written by the runner in the driver, where shards of `size` bytes in all have been committed."""
    meter.write(work, WRITTEN, {"bytes": _said(work, WRITTEN).get("bytes", 0) + size})


def _said(work: Path, name: str = DRIVER) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return json.loads((meter.folder(work) / name).read_bytes())
    return {}


def _add_operators(found: dict[str, Samples], totals: Totals, said: dict[str, Any]) -> None:
    """What is known by operator: worker time that went on work, on waiting for input, on being held back."""
    for name, state in said.get("operators", {}).items():
        where, busy = {"operator": name}, totals.busy[name]
        idle = max(0.0, state["workers"] * state["seconds"] - busy)
        blocked = min(idle, state["blocked"])
        spent = {"busy": busy, "waiting": idle - blocked, "blocked": blocked}
        found["workers"].append((where, state["workers"]))
        found["worker_seconds_total"] += [({**where, "state": s}, seconds) for s, seconds in spent.items()]
        found["queue_blocks"].append((where, state["queue"]))
    for name in sorted(totals.blocks):
        found["blocks_total"].append(({"operator": name}, totals.blocks[name]))
        found["attempts_lost_total"].append(({"operator": name}, totals.lost[name]))
    found["object_store_bytes"] = [({"state": s}, v) for s, v in sorted(said.get("object_store", {}).items())]


def outcomes(clips: Sequence[Clip]) -> Counter[str]:
    """Rows by what became of them: kept, rejected, quarantined."""
    return Counter("quarantined" if c.quarantined else "rejected" if c.rejected else "kept" for c in clips)


def resident_bytes() -> int:
    """Memory of this process that is in RAM; 0 where that cannot be read."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _labels(labels: dict[str, str]) -> str:
    def quoted(text: str) -> str:
        return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    return "{" + ",".join(f'{name}="{quoted(value)}"' for name, value in labels.items()) + "}" if labels else ""


@contextlib.contextmanager
def exported(work: Path, port: int = 0) -> Iterator[RunMetrics]:
    """A run's numbers, kept in `work/metrics.prom` and, with a port, at http://HOST:PORT/metrics while it lasts.

    Raises ConfigError where the port is taken.
    """
    meter.sweep(work)
    metrics, done = RunMetrics(work, port=port), threading.Event()
    server = _server(metrics, port) if port else None
    keeper = threading.Thread(target=_keep, args=(metrics, done), daemon=True)
    keeper.start()
    try:
        yield metrics
    finally:
        done.set()
        keeper.join()
        if server is not None:
            server.shutdown()
            server.server_close()
        with contextlib.suppress(OSError):
            metrics.save()


def _keep(metrics: RunMetrics, done: threading.Event) -> None:
    while not done.wait(SECONDS_BETWEEN_FILES):
        try:
            metrics.save()
        except OSError as problem:
            # A full disk stops the run where data is written; numbers alone must not.
            logger.warning("the metrics file cannot be written: %s", problem)


def _server(metrics: RunMetrics, port: int) -> ThreadingHTTPServer:
    try:
        server = ThreadingHTTPServer(("", port), partial(_Handler, metrics))
    except OSError as problem:
        raise ConfigError(
            f"--metrics-port {port} cannot be opened ({problem}); give a free port, or 0 for none", param="metrics_port"
        ) from problem
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    """Answers GET /metrics."""

    def __init__(self, metrics: RunMetrics, *arguments: Any):  # noqa: ANN401
        self.metrics = metrics
        super().__init__(*arguments)

    def do_GET(self) -> None:
        if self.path.split("?")[0] != "/metrics":
            self.send_error(404, "the numbers are at /metrics")
            return
        body = self.metrics.text().encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        logger.debug(format, *arguments)
