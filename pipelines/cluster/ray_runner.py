"""The same operators on Ray Data. This file and `vllm_captions` alone import Ray here.

Ray moves rows of names and numbers; bytes and outcomes lie on disk, written by the operators themselves. So nothing is
asked of Ray that it was measured to get wrong: no native checkpoint, no tolerated errors, no retries without end, no
`write_webdataset`, no numpy batches (they turn None into nan).

A worker process that dies has its block done again: what was decided is recalled from the ledger, and the unit that it
died on is charged after a few deaths (`attempts`). So the number of retries is finite and yet enough for any number of
such units.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.data
import ray.exceptions

from dynamictrl import errors
from dynamictrl.errors import CheckpointError, ConfigError, DynamiCtrlError
from pipelines.clip import Clip, from_table, to_table
from pipelines.cluster import lanes
from pipelines.cluster.bundles import bundled, grouped, merged
from pipelines.cluster.ray_watch import Callback, Watch
from pipelines.files import storage
from pipelines.publishing.publication import Publication
from pipelines.records import attempts
from pipelines.stages.caption import Caption
from pipelines.work.clip_operator import ClipOperator
from pipelines.work.engines import caption_all, engine_stage
from pipelines.work.operators import Operator, unit_name
from pipelines.work.phases import recalled
from pipelines.work.runner import Advance, say_committed, units_of

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

RETRIES = 2
"""Of a task or an actor that lost its process while no unit was in it."""
STARTS = 3
"""Of a local Ray, before it is given up."""
BLOCKS_IN_FLIGHT = 2
"""Per GPU worker: one at work, the next at hand."""
ROWS_MEMORY = 256 * 2**20
"""Bytes of a local Ray's object store: only rows pass through it."""
NO_PROGRESS_SECONDS = 24 * 3600
"""Ray gives up on a plan without finished rows for so long; our own time limit per source is the real one."""


@dataclass(frozen=True)
class _Chain:
    """Operators that one worker takes its rows through, one after the other."""

    operators: tuple[Operator, ...]
    needed: tuple[tuple[str, str], ...]
    """All operators of this run: what else a worker process still holds can go."""
    patience: int
    """Workers that may die in a row while they set up."""

    @property
    def name(self) -> str:
        return self.operators[0].name

    @property
    def need(self) -> lanes.Need:
        each = self.operators
        memory = max(o.memory_gib for o in each)
        return lanes.Need(self.name, max(o.num_cpus for o in each), sum(o.num_gpus for o in each), memory)

    def ready(self) -> list[Operator]:
        """The operators as this process has set them up. It may outlive a run; the next run's are others."""
        for place in _ready.keys() - set(self.needed):
            _ready.pop(place).close()
        for operator in self.operators:
            if _place(operator) not in _ready:
                _set_up(operator, self.patience)
                _ready[_place(operator)] = operator
        return [_ready[_place(operator)] for operator in self.operators]


_ready: dict[tuple[str, str], Operator] = {}
"""The operators that this worker process has set up."""


def _place(operator: Operator) -> tuple[str, str]:
    return str(operator.folder), operator.run_id


def _apply(table: pa.Table, chain: _Chain) -> pa.Table:
    """One block of rows through operators that are set up once in each process."""
    began = time.monotonic()
    units, results = from_table(table), []
    operators = chain.ready()
    first = operators[0].meter
    # Without a GPU nothing is gained by many at once, and what is done is on record as soon as it is done.
    for step in [units] if chain.need.gpus else [[unit] for unit in units]:
        for operator in operators:
            _count_lost(operator, step)
            step = operator.run_many(step)
            operator.meter.save(operator.work, operator.name)
        results += step
        first.busy_seconds += time.monotonic() - began
        began = time.monotonic()
    first.blocks += 1
    for operator in operators:
        operator.meter.save(operator.work, operator.name, now=True)
    return to_table(results)


def _count_lost(operator: Operator, units: Sequence[Clip]) -> None:
    """Counts the deaths that brought units here again, before one of them kills this process, too."""
    lost = sum(attempts.made(operator.work, operator.run_id, unit_name(unit)) > 0 for unit in units)
    if lost:
        operator.meter.attempts_lost += lost
        operator.meter.save(operator.work, operator.name, now=True)


def _set_up(operator: Operator, patience: int) -> None:
    """Sets up, and notes a failure on disk: Ray loses the cause of an error on its way home."""
    mark = f"setup-{operator.name}"
    try:
        if attempts.made(operator.work, operator.run_id, mark) >= patience:
            raise CheckpointError(
                f"{patience} processes in a row died while they set up {operator.name}. Check its weights, its device "
                f"and the memory of its node.",
                code="setup_crashed",
            )
        with attempts.attempt(operator.work, operator.run_id, [mark]):
            operator.setup()
    except DynamiCtrlError as problem:
        fields = {"kind": type(problem).__name__, "message": str(problem), "code": problem.code, "param": problem.param}
        storage.write_bytes(_failure_note(operator), json.dumps(fields).encode())
        raise


def _failure_note(operator: Operator) -> Path:
    return operator.folder.with_suffix(".failure.json")


class _Worker:
    """`_apply` in an actor, for operators that hold a GPU; it loads its weights before the first rows come."""

    def __init__(self, chain: _Chain):
        self.chain = chain
        try:
            chain.ready()
        except DynamiCtrlError:
            # Ray would start another actor, and another. The first block says it again, and that ends the run.
            logger.warning("%s cannot be set up", chain.name)

    def __call__(self, table: pa.Table) -> pa.Table:
        return _apply(table, self.chain)


class RayRunner:
    """Connects to RAY_ADDRESS, or starts a local Ray and stops it again. A Ray that runs already is left running."""

    def __init__(self, workers: int = 0):
        """`workers` is the number of processes per operator, 0 = as the cluster has room for."""
        self._workers = workers
        self._started = not ray.is_initialized()
        if self._started:
            _start(workers)
        self._watch = Watch(_store_bytes)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = False
        context.execution_no_progress_timeout_s = NO_PROGRESS_SECONDS
        context.max_errored_blocks = 0
        context.custom_execution_callback_classes = [Callback]  # pyright: ignore[reportAttributeAccessIssue]
        logging.getLogger("ray.data").setLevel(logging.ERROR)

    def run(self, operators: Sequence[Operator], units: Sequence[Clip], advance: Advance) -> None:
        """As `Runner.run`; raises what an operator raised about settings or weights."""
        for place, operator in enumerate(operators):
            stage = engine_stage(operator)
            if stage is not None and isinstance(operator, ClipOperator):
                self._ask_engine(operators[:place], operator, stage, units)
        for operator in operators:
            _failure_note(operator).unlink(missing_ok=True)
        chains = _chains(operators, self._workers)
        given = lanes.shared([chain.need for chain in chains], _cluster(), most=self._workers or len(units))
        bundles = bundled(units, max(lane.workers for lane in given))
        if any(chain.need.gpus for chain in chains):
            bundles = merged(bundles, max(lane.workers for lane in given))
        deaths = attempts.MOST * max(map(len, bundles))
        dataset = ray.data.from_arrow([to_table(bundle) for bundle in bundles])
        for chain, lane in zip(chains, given, strict=True):
            dataset = _mapped(dataset, chain, lane, deaths=deaths, restarts=attempts.MOST * len(units))
        self._watch.begin(operators[0].work, {c.name: lane.workers for c, lane in zip(chains, given, strict=True)})
        Callback.watch = self._watch
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                clips = from_table(batch)
                advance(units_of(clips, by_source=not units[0].key), clips)
        except ray.exceptions.RayError as problem:
            raise _ours(problem, operators) from problem
        finally:
            Callback.watch = None
        self._watch.end()

    def _ask_engine(self, before: Sequence[Operator], operator: ClipOperator, stage: Caption, units: Sequence[Clip]):
        """Has vLLM caption what comes out of the operators before; the operator itself then finds it on record."""
        from pipelines.cluster import vllm_captions

        if before:
            self.run(before, units, lambda *_: None)
        known = (recalled([b for b in before if isinstance(b, ClipOperator)], unit) for unit in units)
        engines = max(1, int(ray.cluster_resources().get("GPU", 0)))
        ask = partial(vllm_captions.caption_clips, engines=engines)
        caption_all(operator, stage, [clip for clip in known if clip is not None], ask)

    def commit(self, publication: Publication, shards: Sequence[str], advance: Advance) -> None:
        """As `Runner.commit`: a few shards per task, each of them committed by itself."""
        write = ray.remote(max_retries=RETRIES)(_commit)
        cores = min(int(ray.cluster_resources().get("CPU", 1)), self._workers or len(shards))
        pending = {write.remote(publication, names): names for names in grouped(shards, max(1, cores))}
        try:
            while pending:
                (done,), _ = ray.wait(list(pending), num_returns=1)
                ray.get(done)
                names = pending.pop(done)
                say_committed(publication, names)
                advance(len(names), ())
        except ray.exceptions.RayError as problem:
            raise _ours(problem) from problem

    def close(self) -> None:
        if self._started:
            ray.shutdown()


def _chains(operators: Sequence[Operator], workers: int) -> list[_Chain]:
    """Neighbours without a GPU share their processes; a GPU's operator has some of its own."""
    needed = tuple(_place(operator) for operator in operators)
    groups: list[list[Operator]] = []
    for operator in operators:
        if not groups or operator.num_gpus or groups[-1][-1].num_gpus:
            groups.append([])
        groups[-1].append(operator)
    patience = attempts.MOST + (workers or int(ray.cluster_resources().get("CPU", 1)))
    return [_Chain(tuple(group), needed, patience) for group in groups]


def _cluster() -> lanes.Cluster:
    have = ray.cluster_resources()
    memory = have.get("memory", float("inf")) / lanes.GIBIBYTE
    return lanes.Cluster(have.get("CPU", 1.0), have.get("GPU", 0.0), memory)


def _mapped(
    dataset: ray.data.Dataset, chain: _Chain, lane: lanes.Lanes, *, deaths: int, restarts: int
) -> ray.data.Dataset:
    """The dataset behind one chain: a GPU gets actors, of a fixed number; what runs on the CPU is tasks.

    A task may lose its process `deaths` times, and an actor its own `restarts` times, before the units in it are
    charged with that.
    """
    need = chain.need
    if need.gpus:
        pool = ray.data.ActorPoolStrategy(size=lane.workers, max_tasks_in_flight_per_actor=BLOCKS_IN_FLIGHT)
        how: dict[str, Any] = {"compute": pool, "num_gpus": need.gpus, "fn_constructor_kwargs": {"chain": chain}}
        how |= {"max_restarts": restarts + RETRIES, "max_task_retries": deaths + RETRIES}
    else:
        how = {"compute": ray.data.TaskPoolStrategy(size=lane.workers), "fn_kwargs": {"chain": chain}}
        how |= {"max_retries": deaths + RETRIES}
    if need.memory_gib:
        how["memory"] = int(need.memory_gib * lanes.GIBIBYTE)
    function: Any = _Worker if need.gpus else _apply
    # Its public sister refuses whole blocks where GPUs are asked for, and warns of the numbers of retries, which are
    # endless without.
    return dataset.map_batches_internal(function, batch_format="pyarrow", num_cpus=lane.cpus, **how)


def _start(workers: int) -> None:
    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR}
    if address:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as problem:
            raise ConfigError(
                f"no Ray cluster answers at RAY_ADDRESS={address} ({problem}). Correct it, or unset it to run on this "
                f"machine alone.",
                code="ray_unreachable",
            ) from problem
        return
    root = str(Path(__file__).parents[2])
    # Workers import this project from the checkout that the command runs from.
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    here = {"num_cpus": max(cores or 1, workers), "include_dashboard": False, "object_store_memory": ROWS_MEMORY}
    for remaining in reversed(range(STARTS)):
        try:
            ray.init(address="local", **here, **quiet)
            return
        except Exception as problem:
            # Ray gives its own helpers 15 seconds to come up, which a busy machine may not have for them.
            if not remaining or "timed out during startup" not in str(problem):
                raise
            logger.warning("Ray did not come up in its own time; starting it again")
            ray.shutdown()


def _store_bytes() -> Mapping[str, float]:
    """Bytes that the cluster's object stores hold, and have spilled to disk since they were started."""
    from ray._private import internal_api

    # Without its address Ray looks for the only cluster of this machine, and there may be several.
    state = internal_api.get_state_from_address(ray.get_runtime_context().gcs_address)
    stats = internal_api.get_memory_info_reply(state).store_stats
    return {"used": stats.object_store_bytes_used, "spilled": stats.spilled_bytes_total}


def _commit(publication: Publication, shards: Sequence[str]) -> None:
    for shard in shards:
        publication.commit(shard)


def _ours(problem: BaseException, operators: Sequence[Operator] = ()) -> BaseException:
    """The error that one of our operators raised: as noted on disk, or dug out of Ray's wrapping; else Ray's own."""
    for operator in operators:
        note = _failure_note(operator)
        if note.is_file():
            fields = json.loads(note.read_bytes())
            note.unlink()
            return getattr(errors, fields.pop("kind"), DynamiCtrlError)(fields.pop("message"), **fields)
    for inner in _causes(problem):
        if isinstance(inner, DynamiCtrlError) and not isinstance(inner, ray.exceptions.RayError):
            return inner
    return problem


def _causes(problem: BaseException) -> Iterator[BaseException]:
    inner: BaseException | None = problem
    while inner is not None:
        yield inner
        inner = getattr(inner, "cause", None) or inner.__cause__
