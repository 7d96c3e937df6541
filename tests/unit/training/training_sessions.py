"""Sessions of a run in processes of their own, which may be killed: forked from one that has everything imported.

`python training_sessions.py` reads one JSON object a line from stdin, trains as it says, and answers one line with the
exit codes of its workers (minus the signal's number where one killed it):
{"run": Run, "workers": 1, "kill_at": "marker", "stop_after": 0, "samples": FOLDER, "group_elements": 0}
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def main() -> None:
    """Answers until stdin ends."""
    import deepspeed  # noqa: F401 - imported once, before the forks

    import training.checkpoints.writing
    import training.trainer  # noqa: F401

    _say("ready")
    for line in sys.stdin:
        _say(json.dumps(_session(json.loads(line))))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _session(job: dict[str, Any]) -> list[int]:
    workers, port = job.get("workers", 1), _free_port()
    children = []
    for rank in range(workers):
        child = os.fork()
        if child == 0:
            _work(job, rank, workers, port)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _work(job: dict[str, Any], rank: int, workers: int, port: int) -> None:
    code = 1
    try:
        os.dup2(2, 1)  # gloo says things there, and the answers must stay alone
        if workers > 1:
            os.environ.update(
                RANK=str(rank), WORLD_SIZE=str(workers), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(workers),
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
            )  # fmt: skip
        code = _train(job, rank)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _train(job: dict[str, Any], rank: int) -> int:
    import traceback

    from dynamictrl.errors import DynamiCtrlError
    from training.callbacks.metrics_file import MetricsFile
    from training.config import Run
    from training.engine import parallel
    from training.run_folder import RunFolder
    from training.trainer import train

    run = Run.from_dict(job["run"])
    callbacks = [MetricsFile(RunFolder(run.out).metrics)] if rank == 0 else []
    if job.get("group_elements"):
        parallel.GROUP_ELEMENTS = job["group_elements"]
    if job.get("samples"):
        _record_samples(Path(job["samples"]) / f"{os.getpid()}.txt")
    if job.get("kill_at"):
        _kill_at(job["kill_at"], job.get("kill_rank", 0) == rank)
    stop_after = job.get("stop_after")
    leaving = (lambda: _steps_of(run.out) >= stop_after) if stop_after and rank == 0 else None
    try:
        train(run, callbacks, is_leaving=leaving)
    except DynamiCtrlError as problem:
        sys.stderr.write(f"{problem}\n")
        return 10 if problem.code == "run_stopped" else 2
    except BaseException:
        traceback.print_exc()
        return 3
    return 0


def _steps_of(out: Path) -> int:
    from training.callbacks.metrics_file import read_lines
    from training.run_folder import RunFolder

    # The step that is being asked about is recorded after the question.
    return len(read_lines(RunFolder(out).metrics)) + 1


def _record_samples(path: Path) -> None:
    """Writes down the global index of every sample that this worker makes a batch of."""
    from training.samples.batches import Collator

    theirs = Collator.__call__

    def collate(self: Collator, samples: list[Any], *arguments: Any) -> Any:  # noqa: ANN401 - a batch
        with path.open("a") as stream:
            stream.writelines(f"{draw.position}\n" for draw, _ in samples)
        return theirs(self, samples, *arguments)

    Collator.__call__ = collate


def _kill_at(phase: str, mine: bool) -> None:
    """Kills this process in a phase of its second checkpoint: the first is what is gone on from."""
    from training.checkpoints import on_disk, writing
    from training.checkpoints.saver import Saver

    places: Mapping[str, tuple[object, str, bool]] = {
        "before": (Saver, "_take", False),
        "shards": (writing, "write_state", True),
        "marker": (on_disk, "seal", False),
        "named": (on_disk, "seal", True),
        "pruning": (on_disk.shutil, "rmtree", False),
    }
    owner, name, afterwards = places[phase]
    theirs: Callable[..., Any] = getattr(owner, name)
    seen: list[object] = []

    def counted(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        second = _second_save(phase, seen, arguments)
        if second and mine and not afterwards:
            os.kill(os.getpid(), signal.SIGKILL)
        result = theirs(*arguments, **named)
        if second and mine:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, counted)


def _second_save(phase: str, seen: list[object], arguments: tuple[Any, ...]) -> bool:
    if phase == "pruning":
        return ".step-00000002.aside" in str(arguments[0]) and Path(str(arguments[0])).is_dir()
    if phase == "shards":
        return ".step-00000004." in str(arguments[0])
    seen.append(phase)
    return len(seen) == 2


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


if __name__ == "__main__":
    main()
