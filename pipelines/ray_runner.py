"""The same operators on Ray Data. The only file of this folder that imports Ray.

Ray moves rows of names and numbers; bytes and outcomes lie on disk, written by the operators themselves. So nothing is
asked of Ray that it was measured to get wrong: no native checkpoint, no tolerated errors, no retries without end, no
`write_webdataset`, no numpy batches (they turn None into nan).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.data
import ray.exceptions
from ray.util.annotations import RayDeprecationWarning

from dynamictrl import errors
from dynamictrl.errors import ConfigError, DynamiCtrlError
from pipelines import storage
from pipelines.clip import Clip, from_table, to_table
from pipelines.operators import Operator
from pipelines.publication import Publication
from pipelines.runner import Advance, Seen

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

RETRIES = 2
"""Of a task or an actor whose process died. A source that kills its decoder is caught before that (`isolation`)."""
BLOCKS_PER_WORKER = 4
"""More would cost: each task takes Ray 60 to 75 ms of processor time. Fewer would leave workers idle at the end."""
MOST_UNITS_PER_BLOCK = 16
ROWS_MEMORY = 256 * 2**20
"""Bytes of a local Ray's object store: only rows pass through it."""
NO_PROGRESS_SECONDS = 24 * 3600
"""Ray gives up on a plan without finished rows for so long; our own time limit per source is the real one."""


_ready: dict[Path, Operator] = {}
"""The operators that this worker process has set up, by the folder that they record in: a worker may outlive a run, and
the next run's operator has another folder where its settings are the same."""


def _apply(table: pa.Table, operator: Operator, needed: tuple[Path, ...]) -> pa.Table:
    """One block of rows through one operator, set up once in each process; `needed` are the folders still in use."""
    for folder in _ready.keys() - set(needed):
        _ready.pop(folder).close()
    if operator.folder not in _ready:
        _set_up(operator)
        _ready[operator.folder] = operator
    ready = _ready[operator.folder]
    return to_table(ready.run_many(from_table(table)))


def _set_up(operator: Operator) -> None:
    """Sets up, and notes a failure on disk: Ray loses the cause of an error on its way home."""
    try:
        operator.setup()
    except DynamiCtrlError as problem:
        fields = {"kind": type(problem).__name__, "message": str(problem), "code": problem.code, "param": problem.param}
        storage.write_bytes(_failure_note(operator), json.dumps(fields).encode())
        raise


def _failure_note(operator: Operator) -> Path:
    return operator.folder.with_suffix(".failure.json")


class _Worker:
    """`_apply` in an actor, for operators that hold a GPU."""

    def __call__(self, table: pa.Table, operator: Operator, needed: tuple[Path, ...]) -> pa.Table:
        return _apply(table, operator, needed)


class RayRunner:
    """Connects to RAY_ADDRESS, or starts a local Ray and stops it again. A Ray that runs already is left running."""

    def __init__(self, workers: int = 0):
        """`workers` is the number of processes per operator, 0 = as the cluster has room for."""
        self._workers = workers
        self._started = not ray.is_initialized()
        if self._started:
            _start(workers)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = False
        context.execution_no_progress_timeout_s = NO_PROGRESS_SECONDS
        logging.getLogger("ray.data").setLevel(logging.ERROR)

    def run(self, operators: Sequence[Operator], units: Sequence[Clip], advance: Advance) -> None:
        """As `Runner.run`; raises what an operator raised about settings or weights."""
        lanes = self._lanes(operators, len(units))
        dataset = ray.data.from_arrow([to_table(block) for block in _blocks(units, lanes)])
        needed = tuple(operator.folder for operator in operators)
        cpus = self._cpus(operators, lanes)
        for operator in operators:
            _failure_note(operator).unlink(missing_ok=True)
            dataset = _mapped(dataset, operator, needed, lanes, cpus)
        by_source, seen = not units[0].key, Seen()
        try:
            for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                clips = from_table(batch)
                advance(seen.new(clips, by_source=by_source), clips)
        except ray.exceptions.RayError as problem:
            raise _ours(problem, operators) from problem

    def commit(self, publication: Publication, shards: Sequence[str], advance: Advance) -> None:
        """As `Runner.commit`: one task per shard."""
        write = ray.remote(max_retries=RETRIES)(_commit)
        pending = [write.remote(publication, shard) for shard in shards]
        try:
            while pending:
                done, pending = ray.wait(pending, num_returns=1)
                ray.get(done)
                advance(len(done), ())
        except ray.exceptions.RayError as problem:
            raise _ours(problem) from problem

    def close(self) -> None:
        if self._started:
            ray.shutdown()

    def _lanes(self, operators: Sequence[Operator], units: int) -> int:
        """Workers per operator: as many as the cluster holds of one worker of each, at least one, at most the units."""
        have = ray.cluster_resources()
        gpus = sum(operator.num_gpus for operator in operators)
        if gpus > have.get("GPU", 0):
            names = ", ".join(o.name for o in operators if o.num_gpus)
            raise ConfigError(
                f"{names} need {gpus:g} GPUs together and the cluster has {have.get('GPU', 0):g}. Name a cluster by "
                f"RAY_ADDRESS, take smaller shares (gpu_share), set their device to cpu, or use recipe curate-mini.",
                code="no_gpu",
            )
        cpus = sum(operator.num_cpus for operator in operators)
        room = have.get("CPU", 1) / cpus
        if gpus:
            room = min(room, have["GPU"] / gpus)
        return max(1, min(self._workers or int(room), units))

    def _cpus(self, operators: Sequence[Operator], lanes: int) -> float:
        """Cores reserved by one worker: one, or an even share where there are fewer cores than workers."""
        share = ray.cluster_resources().get("CPU", 1) / (len(operators) * lanes)
        return min(1.0, max(0.01, int(share * 100) / 100))


def _mapped(
    dataset: ray.data.Dataset, operator: Operator, needed: tuple[Path, ...], lanes: int, cpus: float
) -> ray.data.Dataset:
    """The dataset behind one operator. A GPU gets actors, of a fixed number; what runs on the CPU is tasks, which share
    their processes with the steps before and after and so start nothing anew."""
    if operator.num_gpus:
        how: dict[str, Any] = {"compute": ray.data.ActorPoolStrategy(size=lanes), "num_gpus": operator.num_gpus}
        how |= {"max_restarts": RETRIES, "max_task_retries": RETRIES}
    else:
        how = {"compute": ray.data.TaskPoolStrategy(size=lanes), "max_retries": RETRIES}
    function: Any = _Worker if operator.num_gpus else _apply
    with warnings.catch_warnings():
        # Ray wants to drop these arguments and has no others for the number of retries, which is endless without.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map_batches(
            function,
            fn_kwargs={"operator": operator, "needed": needed},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=cpus,
            **how,
        )


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
    root = str(Path(__file__).parents[1])
    # Workers import this project from the checkout that the command runs from.
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    ray.init(num_cpus=max(cores or 1, workers), include_dashboard=False, object_store_memory=ROWS_MEMORY, **quiet)


def _blocks(units: Sequence[Clip], lanes: int) -> list[list[Clip]]:
    """Sources go one by one; clips in bundles that keep Ray's cost per task small."""
    size = 1
    if units[0].key:
        size = min(MOST_UNITS_PER_BLOCK, max(1, len(units) // (lanes * BLOCKS_PER_WORKER)))
    return [list(units[i : i + size]) for i in range(0, len(units), size)]


def _commit(publication: Publication, shard: str) -> None:
    publication.commit(shard)


def _ours(problem: BaseException, operators: Sequence[Operator] = ()) -> BaseException:
    """The error that one of our operators raised: as noted on disk, or dug out of Ray's wrapping; else Ray's own."""
    for operator in operators:
        note = _failure_note(operator)
        if note.is_file():
            fields = json.loads(note.read_bytes())
            note.unlink()
            return getattr(errors, fields.pop("kind"), DynamiCtrlError)(fields.pop("message"), **fields)
    inner: BaseException | None = problem
    while inner is not None:
        if isinstance(inner, DynamiCtrlError) and not isinstance(inner, ray.exceptions.RayError):
            return inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    return problem
