"""What checkpoints cost: seconds that the steps wait, seconds in the background, and how a resume goes.

    torchrun --nproc-per-node 2 -m tests.benchmarks.training_checkpoints --billions 2.9 --folder FOLDER
    torchrun --nproc-per-node 1 -m tests.benchmarks.training_checkpoints --billions 2.9 --folder FOLDER --resume
    python -m tests.benchmarks.training_checkpoints --device cpu --billions 0.01 --folder FOLDER

A stack of square linear layers with so many parameters under the trainer's own engine (ZeRO-2, bfloat16 with float32
master weights: 14 bytes a parameter) and its own Saver. Two workers with 2.9 billion hold as much each as four with a
5B model. With --resume, on any number of workers, the checkpoint is taken up, and the weights are compared with those
that were saved.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist
from torch import nn

from training.checkpoints import on_disk
from training.checkpoints.saver import Saver
from training.config import Recipe
from training.engine import parallel
from training.engine.parallel import Place
from training.recipes import tiny_on_cpu
from training.run_folder import RunFolder

WIDTH = 3072


class Stack(nn.Module):
    """Linear layers [WIDTH, WIDTH] one after another."""

    def __init__(self, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + 0.01 * layer(x)
        return x


def recipe_of(device: str, workers: int) -> Recipe:
    small = tiny_on_cpu()
    precision = "bf16" if device == "cuda" else "fp32"
    return replace(
        small,
        workers=replace(small.workers, device=device, precision=precision, num_workers=workers, zero_stage=2),
        optimization=replace(small.optimization, batch_size=workers * (2 // workers), micro_batch_size=1),
    )


def step(engine: object, place: Place, number: int) -> float:
    """One optimizer step; seconds."""
    dist.barrier()
    started = time.perf_counter()
    model: nn.Module = engine  # pyright: ignore[reportAssignmentType]
    generator = torch.Generator().manual_seed(number * place.size + place.rank)
    dtype = torch.bfloat16 if place.device.type == "cuda" else torch.float32
    for _ in range(model.gradient_accumulation_steps()):  # pyright: ignore[reportCallIssue]
        x = torch.randn(256, WIDTH, generator=generator).to(place.device, dtype)
        loss = model(x).float().square().mean()
        model.backward(loss)  # pyright: ignore[reportCallIssue]
        model.step()  # pyright: ignore[reportCallIssue]
    if place.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def fingerprint(engine: object) -> str:
    """Of all weights, on the first worker."""
    whole = parallel.gather_weights(engine)  # pyright: ignore[reportArgumentType]
    digest = hashlib.sha256()
    for name in sorted(whole or {}):
        digest.update((whole or {})[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save(engine: object, saver: Saver, place: Place, number: int) -> None:
    """One checkpoint with steps behind it, told in a line."""
    dist.barrier()
    started = time.perf_counter()
    saver.save(engine, None, number)  # pyright: ignore[reportArgumentType]
    blocked = time.perf_counter() - started
    beside: list[float] = []
    while not saver.arrived():
        beside.append(step(engine, place, 1000 * number + len(beside)))
        saver.hear(parallel_rows(saver.say(), place))
    told = saver.metrics()
    if place.is_first:
        print(
            f"| {number} | {blocked:.2f} | {told['checkpoint_seconds']:.1f} | {median(beside):.3f} | {len(beside)} |",
            flush=True,
        )


def parallel_rows(mine: list[float], place: Place) -> list[list[float]]:
    rows: list[list[float]] = [[] for _ in range(place.size)]
    dist.all_gather_object(rows, mine)
    return rows


def measure(engine: object, saver: Saver, place: Place, folder: Path) -> None:
    times = [step(engine, place, number) for number in range(5)]
    if place.is_first:
        print(f"a step without a checkpoint: {median(times[1:]):.3f} s\n")
        print("| checkpoint | blocked, s | whole after, s | a step meanwhile, s | steps meanwhile |")
        print("|---|---|---|---|---|", flush=True)
    for number in (1, 2, 3):
        save(engine, saver, place, number)
    marks = fingerprint(engine)
    saver.save(engine, None, 4)  # pyright: ignore[reportArgumentType]
    saver.close()
    if not place.is_first:
        return
    found = on_disk.newest(RunFolder(folder).checkpoints)
    assert found is not None
    size = sum(written.size for written in found.files.values())
    started = time.perf_counter()
    damage = found.damage()
    print(f"\n{size / 1e9:.1f} GB a checkpoint; one process checks it in {time.perf_counter() - started:.1f} s: "
          f"{damage or 'undamaged'}")  # fmt: skip
    (folder / "fingerprint").write_text(marks)


def resume(engine: object, saver: Saver, place: Place, folder: Path) -> None:
    started = time.perf_counter()
    done = saver.resume(engine, None)  # pyright: ignore[reportArgumentType]
    seconds = time.perf_counter() - started
    marks = fingerprint(engine)
    step(engine, place, 0)
    saver.close()
    if place.is_first:
        same = marks == (folder / "fingerprint").read_text()
        print(f"resumed at {done} on {place.size} workers in {seconds:.1f} s; weights "
              f"{'equal, bit for bit' if same else 'DIFFER'}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--billions", type=float, default=2.9)
    parser.add_argument("--folder", type=Path, required=True, help="is emptied, but with --resume")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    place = parallel.join(recipe_of(given.device, 1))
    recipe = recipe_of(given.device, place.size)
    if place.is_first and not given.resume:
        shutil.rmtree(given.folder, ignore_errors=True)
        given.folder.mkdir(parents=True)
    layers = max(1, round(given.billions * 1e9 / WIDTH**2))
    with torch.device(place.device):
        model = Stack(layers).to(torch.bfloat16 if given.device == "cuda" else torch.float32)
    engine = parallel.make_engine(model, recipe, place)
    if place.is_first:
        print(f"on {place.size} x {parallel.device_name(place.device)}, torch {torch.__version__}; {layers} layers, "
              f"{layers * WIDTH**2 / 1e9:.2f} billion parameters, ZeRO-2")  # fmt: skip
    saver = Saver(RunFolder(given.folder), recipe, place)
    (resume if given.resume else measure)(engine, saver, place, given.folder)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
