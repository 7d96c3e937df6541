"""A trace of two steps on request (`profile_step`): what the device did when, and a table of where its time went.

Written by the first worker to `RUN/profile`: `step-00000012.json.gz` for chrome://tracing or Perfetto, a text table by
kind of kernel, and on CUDA a memory snapshot for https://pytorch.org/memory_viz.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from training.callbacks import Callback
from training.engine.parallel import Place

logger = logging.getLogger(__name__)

STEPS = 2
MEMORY_EVENTS = 200_000
"""Allocations that a memory snapshot holds."""
LISTED = 30
"""Kernels that the table names one by one."""

KINDS: tuple[tuple[str, str], ...] = (
    ("communication", r"nccl|gloo|c10d|all_?reduce|all_?gather|reduce_?scatter|all_?to_?all"),
    ("attention", r"sdpa|flash|fmha|attention|cudnn_generated_fort_native"),
    ("optimizer", r"adam|multi_tensor_apply|optimizer"),
    (
        "GEMM",
        r"gemm|nvjet|cutlass|cublas|xmma|wgmma|\b(aten::)?(add)?(mm|bmm|matmul|linear)\b|mkldnn_linear|convolution",
    ),
    ("elementwise", r"elementwise|triton_|vectorized|reduce_kernel|norm|softmax|memcpy|memset|copy|fill|cat|foreach"),
    ("elementwise", r"aten::\w+"),
)
"""Kinds and what their kernels' names hold, the first that fits; the rest is `other`."""


@dataclass(frozen=True)
class Kernel:
    """One kernel, or on the CPU one operator, over the traced steps."""

    name: str
    milliseconds: float
    calls: int

    @property
    def kind(self) -> str:
        """Which row of the table it counts to."""
        return kind_of(self.name)


def kind_of(name: str) -> str:
    """attention, GEMM, elementwise, communication, optimizer or other, by a kernel's name."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), "other")


class Trace:
    """Traces the steps that the recipe asks for; on other workers than the first it does nothing."""

    def __init__(self, profile_step: int, place: Place, folder: Path, callbacks: Sequence[Callback]):
        """`folder` is the run's; `callbacks` hear of the files."""
        self._first = profile_step if place.is_first else 0
        self._cuda = place.device.type == "cuda"
        self._folder, self._callbacks = folder / "profile", callbacks
        self._profile: profile | None = None

    def before(self, step: int) -> None:
        """Call before every step, counted from 1; the step before the first traced one warms the profiler up."""
        if not self._first or step not in (self._first - 1, self._first):
            return
        if self._profile is None:
            self._start(warm_up=step < self._first)
        if step == self._first and self._cuda:
            torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)

    def after(self, step: int, last: int) -> None:
        """Call after every step; `last` is the run's."""
        if self._profile is None:
            return
        if step in (self._first + STEPS - 1, last):
            self._profile.stop()
            try:
                self._write(step)
            except OSError as problem:  # as on a full disk: a restart would come to the same step again
                logger.warning("the trace up to step %d could not be written: %s", step, problem)
            if self._cuda:
                torch.cuda.memory._record_memory_history(enabled=None)
            self._profile = None
        else:
            self._profile.step()

    def _start(self, *, warm_up: bool) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
        schedule = torch.profiler.schedule(wait=0, warmup=int(warm_up), active=STEPS + 1, repeat=1)
        self._profile = profile(activities=activities, schedule=schedule, acc_events=True)
        self._profile.start()

    def _write(self, last: int) -> None:
        assert self._profile is not None
        steps = max(1, last - self._first + 1)
        self._folder.mkdir(exist_ok=True)
        name = f"step-{self._first:08d}"
        table, trace = self._folder / f"{name}.txt", self._folder / f"{name}.json.gz"
        kernels = kernels_of(self._profile.events() or [], cuda=self._cuda)
        table.write_text(table_text(kernels, steps, "GPU" if self._cuda else "CPU"))
        self._profile.export_chrome_trace(str(trace))
        files = [table, trace]
        if self._cuda:
            files.append(self._folder / f"{name}-memory.pickle")
            torch.cuda.memory._dump_snapshot(str(files[-1]))
        logger.info("traced %d steps: %s", steps, table)
        for path in files:
            for callback in self._callbacks:
                callback.on_artifact(path)


def kernels_of(events: Iterable[Any], *, cuda: bool) -> list[Kernel]:
    """The device's kernels by name, or the CPU's operators by their own time, the longest first."""
    from torch.autograd import DeviceType

    found: dict[str, tuple[float, int]] = {}
    for event in events:
        if cuda != (event.device_type == DeviceType.CUDA) or getattr(event, "is_user_annotation", False):
            continue
        if event.name.startswith("ProfilerStep"):
            continue
        micros = event.self_device_time_total if cuda else event.self_cpu_time_total
        sums = found.get(event.name, (0.0, 0))
        found[event.name] = (sums[0] + micros / 1000, sums[1] + 1)
    kernels = [Kernel(name, total, calls) for name, (total, calls) in found.items()]
    return sorted(kernels, key=lambda kernel: -kernel.milliseconds)


def table_text(kernels: Sequence[Kernel], steps: int, device: str) -> str:
    """Milliseconds a step by kind, then the longest kernels."""
    total = sum(kernel.milliseconds for kernel in kernels) or 1.0
    kinds: dict[str, tuple[float, int]] = {}
    for kernel in kernels:
        before = kinds.get(kernel.kind, (0.0, 0))
        kinds[kernel.kind] = (before[0] + kernel.milliseconds, before[1] + kernel.calls)
    ranked = sorted(kinds.items(), key=lambda item: -item[1][0])
    rows = [_row(name, time, calls, steps, total) for name, (time, calls) in ranked]
    longest = [_row(k.name[:90], k.milliseconds, k.calls, steps, total, k.kind) for k in kernels[:LISTED]]
    head = f"{'ms a step':>11} {'share':>7} {'calls':>7}  "
    return "\n".join(
        [f"{device} time of {steps} steps, {total / steps:.1f} ms a step", "", head + "kind", *rows, "",
         head + "kind           kernel", *longest, ""]
    )  # fmt: skip


def _row(name: str, milliseconds: float, calls: int, steps: int, total: float, kind: str = "") -> str:
    label = f"{kind:<14} {name}" if kind else name
    return f"{milliseconds / steps:>11.3f} {milliseconds / total:>7.1%} {calls // steps:>7}  {label}"
