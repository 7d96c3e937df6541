"""Several processes, one clip: this one leads, the others hold transformers alone and denoise with it, step by step.

With an even number of processes half of them compute each branch of guidance (`dynamictrl.guidance`), and those that
share a branch share its tokens (`dynamictrl.sequence_parallel`). With an odd number all share the tokens of both
branches. Text, VAE and poses are the leader's; what a clip starts from is sent once, then each step exchanges one
latent and one word: go on, or stop. A follower lives as long as its standard input, which the leader's end closes.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dynamictrl import DynamiCtrlPipeline
from dynamictrl.errors import ConfigError
from dynamictrl.guidance import SharedBranches

logger = logging.getLogger(__name__)

PATIENCE = timedelta(minutes=10)
"""Longest time that one exchange may take: a step, and whatever is compiled in it."""
LOADING_S = 1800.0
"""Seconds in which followers must have loaded the models."""
LOOK_S = 0.2
"""Seconds between two looks at the followers."""

StepCallback = Callable[[Any, int, Tensor, dict[str, Tensor]], Mapping[str, Tensor]]


class EngineLost(Exception):
    """A part of the engine is gone: no job is to blame, and this engine renders no more."""


class Team:
    """The leader's side."""

    def __init__(self, size: int, device: str, setting: Mapping[str, Any]):
        """Starts `size` - 1 followers, which begin to load; `setting` is what `follower.load` takes."""
        if dist.is_initialized():
            raise ConfigError("this process is part of a distributed job already", code="setting_conflict")
        self.size, self.device = size, device
        self._broken = ""
        self._closing = threading.Event()
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=PATIENCE)
        self._followers = [self._start(rank, setting) for rank in range(1, size)]
        threading.Thread(target=self._watch, name="team", daemon=True).start()

    def join(self) -> Groups:
        """Waits until all followers have loaded, and returns the groups; EngineLost where one did not come."""
        deadline = time.monotonic() + LOADING_S
        waited = [f"ready {rank}" for rank in range(1, self.size)]
        while not self._store.check(waited):
            if self._broken or time.monotonic() > deadline:
                self.close()
                raise EngineLost(f"a follower did not start: {self._broken or 'it took too long'}")
            time.sleep(LOOK_S / 2)
        return join(self._store, 0, self.size, self.device)

    @property
    def is_whole(self) -> bool:
        """Whether every follower is there."""
        return not self._broken

    def tell(self, order: Mapping[str, Any]) -> None:
        """Sends one order to every follower."""
        line = (json.dumps(order) + "\n").encode()
        for follower in self._followers:
            assert follower.stdin is not None
            try:
                follower.stdin.write(line)
                follower.stdin.flush()
            except OSError as problem:
                self._break(f"a follower takes no orders ({problem})")
                raise EngineLost(self._broken) from problem

    @contextmanager
    def denoising(
        self,
        told: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        generator: torch.Generator | None,
        callback: StepCallback | None,
    ) -> Iterator[StepCallback]:
        """All denoise while the block runs; yields the step's end, which says to all whether they go on.

        What `callback` raises ends the clip on every process and the team lives on; anything else breaks the team and
        becomes an EngineLost.
        """
        if self._broken:
            raise EngineLost(self._broken)
        stopped: list[BaseException] = []

        def step_end(pipeline: Any, index: int, timestep: Tensor, known: dict[str, Tensor]) -> Mapping[str, Tensor]:  # noqa: ANN401
            try:
                changed = callback(pipeline, index, timestep, known) if callback else {}
            except BaseException as problem:
                stopped.append(problem)
                go_on(False)
                raise
            go_on(True)
            return changed

        try:
            state = None if generator is None else generator.get_state()
            given = {**tensors, **({} if state is None else {"generator": state})}
            listed = {name: [list(x.shape), str(x.dtype), x.device.type] for name, x in given.items()}
            self.tell({"do": "denoise", **told, "tensors": listed})
            for tensor in given.values():
                broadcast(tensor)
            yield step_end
        except BaseException as problem:
            if problem in stopped or isinstance(problem, EngineLost):
                raise
            self._break(f"{type(problem).__name__}: {problem}")
            self.close()
            raise EngineLost(f"denoising together failed ({self._broken})") from problem

    def close(self) -> None:
        """Ends the followers; safe to call twice."""
        self._closing.set()
        self._broken = self._broken or "it was closed"
        for follower in self._followers:
            with suppress(OSError):
                assert follower.stdin is not None
                follower.stdin.close()
        for follower in self._followers:
            try:
                follower.wait(5)
            except subprocess.TimeoutExpired:
                follower.kill()
                follower.wait()
        if dist.is_initialized():
            with suppress(Exception):
                dist.destroy_process_group()

    def _start(self, rank: int, setting: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        place = {"rank": rank, "ranks": self.size, "port": self._store.port, "device": self.device}
        follower = subprocess.Popen(
            [sys.executable, "-m", "serving.rendering.follower_process"],
            stdin=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        assert follower.stdin is not None
        follower.stdin.write((json.dumps({**place, **setting}) + "\n").encode())
        follower.stdin.flush()
        return follower

    def _watch(self) -> None:
        while not self._closing.wait(LOOK_S):
            for rank, follower in enumerate(self._followers, start=1):
                code = follower.poll()
                if code is not None and not self._closing.is_set():
                    self._break(f"follower {rank} ended with code {code}")
                    return

    def _break(self, why: str) -> None:
        if self._broken:
            return
        self._broken = why
        logger.error("this engine renders no more: %s", why)
        if self.device == "cuda" and dist.is_initialized():
            # An exchange on GPUs would wait for the dead for ever.
            with suppress(Exception):
                dist.distributed_c10d._get_default_group()._get_backend(torch.device("cuda")).abort()  # pyright: ignore


class Groups:
    """Who shares what with this process."""

    def __init__(self, rank: int, size: int):
        """Every process must call this, with the same size: groups are made by all."""
        branches = 2 if size % 2 == 0 else 1
        sharing = size // branches
        self.tokens: Any = None
        self.guidance: Any = None
        for branch in range(branches):
            ranks = list(range(branch * sharing, (branch + 1) * sharing))
            group = dist.new_group(ranks, timeout=PATIENCE) if sharing > 1 else None
            if rank in ranks:
                self.tokens = group
        for place in range(sharing):
            ranks = [place, sharing + place]
            group = dist.new_group(ranks, timeout=PATIENCE) if branches == 2 else None
            if rank in ranks:
                self.guidance = group

    def apply(self, pipeline: DynamiCtrlPipeline) -> None:
        """From now on guidance is shared between this process and its partner."""
        if self.guidance is not None:
            pipeline.guidance = SharedBranches(self.guidance)


def join(store: dist.Store, rank: int, size: int, device: str) -> Groups:
    """Becomes one of the processes; all of them must call this."""
    # All of them are on this machine.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    return Groups(rank, size)


def broadcast(tensor: Tensor) -> Tensor:
    """The leader's tensor, byte for byte; a follower gives one to be filled."""
    flat = tensor.contiguous().view(-1)
    data = flat.view(torch.uint8)
    dist.broadcast(data, src=0)
    return flat.view(tensor.shape)


def go_on(leaders_word: bool = True) -> bool:
    """The leader's word on whether there is another step; followers' own word does not count."""
    word = torch.tensor([int(leaders_word)], dtype=torch.int32)
    dist.broadcast(word, src=0)
    return bool(word.item())
