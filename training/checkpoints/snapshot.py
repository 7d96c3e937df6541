"""A copy of an engine's states in host memory: the steps wait for this copy alone, not for a disk.

Copying aside was chosen over letting DeepSpeed write to a fast local folder that is uploaded afterwards. Both block
for one pass over the states, but this pass runs at the bus's speed (page-locked memory, 50 GB/s) where a local disk
gives 2 to 6 GB/s for all GPUs of a node together; nothing is written or read twice; checksums are made while the only
copy is written; and no local disk is needed. The price is host memory: one more copy of a worker's states. Where there
is too little of it, that worker's files are written at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from torch import Tensor

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

logger = logging.getLogger(__name__)

LOCK_BYTES = 2**20
"""Copies at least this large are page-locked, bytes."""


class HostMemory:
    """Buffers for copies of tensors, kept from one snapshot to the next.

    The same tensors come in the same order each time, so the n-th buffer fits the n-th tensor.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._taken = 0
        self._locks = True

    def rewind(self) -> None:
        """Begins a new snapshot: what the last one held may be written over."""
        self._taken = 0

    def copy(self, tensor: Tensor) -> Tensor:
        """A host copy; on CUDA it is there once the stream is through."""
        buffer = self._next(tensor)
        buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        return buffer

    def has_room(self, needed: int) -> bool:
        """Whether so many bytes more, of every worker of this machine, leave some memory free."""
        held = sum(buffer.nbytes for buffer in self._buffers[self._taken :])
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return (needed - held) * here * 1.1 < available_bytes()

    def _next(self, tensor: Tensor) -> Tensor:
        number, self._taken = self._taken, self._taken + 1
        if number < len(self._buffers):
            kept = self._buffers[number]
            if kept.shape == tensor.shape and kept.dtype == tensor.dtype:
                return kept
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        buffer = torch.empty(tensor.shape, dtype=tensor.dtype)
        if self._locks and tensor.is_cuda and buffer.nbytes >= LOCK_BYTES:
            self._locks = _lock_pages(buffer)
        self._buffers.append(buffer)
        return buffer


def _lock_pages(buffer: Tensor) -> bool:
    """Makes a buffer one that the device copies to by itself; a refusal costs only speed."""
    # Not pin_memory: its allocator rounds up to powers of two.
    runtime: Any = torch.cuda.cudart()
    if int(runtime.cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 1)) == 0:
        return True
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")  # the error waits for the next kernel, which must not be one of the steps'
    return False


def available_bytes(container: Path = Path("/sys/fs/cgroup")) -> int:
    """Host memory that can still be taken: what the machine has free, or less where a container is limited."""
    found = [2**63]
    try:
        with open("/proc/meminfo") as stream:
            found += [int(line.split()[1]) * 1024 for line in stream if line.startswith("MemAvailable:")]
        limit = (container / "memory.max").read_text().strip()
        if limit != "max":
            # Pages of files give way, and soon fill any container that reads a data set.
            held = dict(line.split() for line in (container / "memory.stat").read_text().splitlines())
            files = int(held["active_file"]) + int(held["inactive_file"])
            found.append(int(limit) - int((container / "memory.current").read_text()) + files)
    except (OSError, ValueError, KeyError):
        pass  # another kind of system: no limit is known
    return min(found)


class SnapshotEngine(CheckpointEngine):
    """DeepSpeed's way to its files, led into memory: `files` by path once the engine has saved."""

    def __init__(self, memory: HostMemory, root: Path, write_now: Any):  # noqa: ANN401 - a function
        """`write_now(name, state)` takes what finds no room in memory."""
        super().__init__()
        self.files: dict[str, Any] = {}
        self._memory, self._root, self._write_now = memory, root, write_now

    def create(self, info: CheckpointCommitInfo) -> None:
        """Nothing is on disk yet."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Folders are made by the thread that writes."""

    def save(self, state_dict: Any, path: str) -> None:  # noqa: ANN401 - nested containers
        """Copies a state dict."""
        self.add(str(Path(path).relative_to(self._root)), state_dict)

    def add(self, name: str, state: Any) -> None:  # noqa: ANN401 - nested containers
        """Copies a state, for the file `name` of the checkpoint."""
        if self._memory.has_room(sum(tensor.nbytes for tensor in _tensors(state))):
            self.files[name] = _copied(state, self._memory, {})
        else:
            logger.warning("too little host memory to copy %s aside: training waits until it is written", name)
            self._write_now(name, state)

    def load(self, path: str, map_location: Any = None) -> Any:  # noqa: ANN401 - torch's
        """Not asked for while a snapshot is taken."""
        return torch.load(path, map_location=map_location, weights_only=False)

    def commit(self, info: CheckpointCommitInfo) -> None:
        """The writing thread does."""


@contextmanager
def led_aside(engine: DeepSpeedEngine, snapshot: SnapshotEngine) -> Iterator[None]:
    """While the block runs, what the engine saves goes to the snapshot, without its recovery scripts."""
    theirs = engine.checkpoint_engine
    engine.checkpoint_engine = snapshot
    # An instance's attribute hides the method: the scripts would be written at once, by one worker, on a disk that
    # may be full, while the others wait for it in a collective.
    engine._copy_recovery_script = lambda folder: None  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        engine.checkpoint_engine = theirs
        del engine._copy_recovery_script  # pyright: ignore[reportPrivateUsage]


def _tensors(state: Any) -> Iterator[Tensor]:  # noqa: ANN401 - nested containers
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)


def _copied(state: Any, memory: HostMemory, seen: dict[Any, Tensor]) -> Any:  # noqa: ANN401 - nested containers
    """The same containers around host copies; a tensor that stands in two places is copied once."""
    if isinstance(state, Tensor):
        key = (state.data_ptr(), state.dtype, tuple(state.shape), state.stride(), state.device)
        if key not in seen or not state.numel():
            seen[key] = memory.copy(state)
        return seen[key]
    if isinstance(state, dict):
        copies = {key: _copied(value, memory, seen) for key, value in state.items()}
        return copies if type(state) is dict else _like(state, copies)
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*(_copied(value, memory, seen) for value in state))
    if isinstance(state, list | tuple) and type(state) in (list, tuple):
        return type(state)(_copied(value, memory, seen) for value in state)
    return state


def _like(state: Any, copies: dict[Any, Any]) -> Any:  # noqa: ANN401 - a kind of dict
    from collections import OrderedDict

    return OrderedDict(copies) if isinstance(state, OrderedDict) else copies
