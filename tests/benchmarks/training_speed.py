"""Seconds of a training step, MFU, memory: the real Trainer with DeepSpeed on a base of the true size.

    python -m tests.benchmarks.training_speed --shape 5b --ways ours,reference
    python -m tests.benchmarks.training_speed --shape 5b --ways ours --workers 1,2        # weak scaling
    python -m tests.benchmarks.training_speed --shape tiny --device cpu                   # does it run at all

Random weights of the true architecture, random latents from shards (`training_pieces`), one clip a worker and step,
full fine-tuning with AdamW and float32 master weights, ZeRO-2; no image noise, whose VAE is tiny here. Each way has
processes of its own, so one that does not fit ends nothing else. `reference` is the published recipe in the same
trainer: diffusers' attention, nothing compiled, all computed twice, attention as torch picks it. MFU = 3 forward
passes / seconds / 989.4 TFLOP/s, with a forward pass of L (24 d^2 S + 4 S^2 d); HFU counts what is computed twice too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.training_kernels import kernel_times, print_kernel_times
from tests.benchmarks.training_pieces import SHAPES, Shape, recipe_for, with_speed, write_base, write_data

ROOT = Path(__file__).parents[2]
PEAK_TFLOPS = 989.4

PLAIN: dict[str, Any] = {"compile_blocks": False, "recompute": "all", "attention_kernel": "default"}
WAYS: dict[str, dict[str, Any]] = {
    "ours": {},
    "reference": PLAIN,
    "none": {"recompute": "none"},
    "cheap": {"recompute": "cheap"},
    "attention": {"recompute": "attention"},
    "all": {"recompute": "all"},
    "eager": {"compile_blocks": False},
    "eager-attention": {"compile_blocks": False, "recompute": "attention"},
    "default-kernel": {"attention_kernel": "default"},
    "flash": {"attention_kernel": "flash"},
    "float8": {"float8": True},
    "deterministic": {"deterministic": True},
    "zero-1": {},
    "zero-3": {},
}
"""By name, what differs from the settings' defaults."""

COLUMNS = (
    ("way", "{way:<16}"), ("workers", "{workers:>3}"), ("step s", "{seconds:>7.3f}"), ("MFU %", "{mfu:>6.1f}"),
    ("HFU %", "{hfu:>6.1f}"), ("tok/s", "{tokens_per_second:>8.0f}"), ("stall %", "{stall:>6.2f}"),
    ("peak GiB", "{peak_gib:>7.1f}"), ("reserved", "{reserved_gib:>7.1f}"), ("plan s", "{plan_seconds:>7.3f}"),
    ("plan GiB", "{plan_gib:>7.1f}"), ("first step s", "{first_step_seconds:>6.0f}"), ("kept", "{kept}"),
)  # fmt: skip


def main() -> None:
    args = _arguments()
    if args.child:
        measure(args)
        return
    folder = Path(args.work or tempfile.mkdtemp(prefix="training-speed-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{args.shape} on {_machine(args.device)}, {args.steps} steps after {args.warmup}, in {folder}", flush=True)
    started = time.perf_counter()
    _run_child(args, folder, "prepare", 1)
    print(f"base and data written in {time.perf_counter() - started:.0f} s", flush=True)
    print("  ".join(name for name, _ in COLUMNS), flush=True)
    rows = []
    for workers in map(int, args.workers.split(",")):
        for way in args.ways.split(","):
            row = _run_child(args, folder, way, workers)
            rows.append(row)
            print(_line(row), flush=True)
            if "profile" in row:
                print_kernel_times(row["profile"])
    _compare(rows)
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="5b", choices=sorted(SHAPES))
    parser.add_argument("--ways", default="ours,reference", help=f"of {', '.join(WAYS)}")
    parser.add_argument("--workers", default="1", help="such as 1,2: the ways on each number of workers")
    parser.add_argument("--micro", type=int, default=1, help="clips a worker and step")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--profile", action="store_true", help="two more steps under torch's profiler")
    parser.add_argument("--reserve", type=float, default=6.0, help="GiB that recompute auto leaves free")
    parser.add_argument("--timeout", type=float, default=420.0, help="seconds that a way may take")
    parser.add_argument("--work", help="folder to write the base to, or to find it in")
    parser.add_argument("--out", help="JSON file for the rows")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = set(args.ways.split(",")) - set(WAYS)
    if unknown:
        parser.error(f"no way {sorted(unknown)}; there are {', '.join(WAYS)}")
    return args


def _machine(device: str) -> str:
    import torch

    # Named without taking the device: the ways need all of its memory.
    name = f"{platform.machine()} CPU"
    if device == "cuda":
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        name = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.splitlines()[0]
    return f"{name}, torch {torch.__version__}"


def _run_child(args: argparse.Namespace, folder: Path, way: str, workers: int) -> dict[str, Any]:
    """Runs a way in processes of its own; its row, or a row that says how it failed."""
    answer, log = folder / f"{way}-{workers}.json", folder / f"{way}-{workers}.log"
    answer.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "tests.benchmarks.training_speed", "--child", way, "--work", str(folder),
        "--shape", args.shape, "--device", args.device, "--micro", str(args.micro), "--steps", str(args.steps),
        "--warmup", str(args.warmup), "--reserve", str(args.reserve), *(["--profile"] if args.profile else []),
    ]  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(workers):
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        if workers > 1:
            environment |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers),
                "LOCAL_WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        with (log if rank == 0 else log.with_suffix(f".{rank}.log")).open("w") as output:
            children.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
            )
    problem = _wait(children, args.timeout)
    if answer.is_file():
        return json.loads(answer.read_text())
    lines = log.read_text().splitlines()
    told = [line for line in lines if re.search(r"Error|error:", line)][-1:] or lines[-1:]
    if way == "prepare" or args.device == "cpu":
        print("\n".join(lines[-25:]), flush=True)
    if way == "prepare":
        raise SystemExit("the base could not be written")
    return {"way": way, "workers": workers, "failed": f"{problem}: {' '.join(told)[:400]}"}


def _wait(children: list[subprocess.Popen[bytes]], limit: float) -> str:
    """Waits for all, and ends the rest where one fails or the time is up; says what went wrong."""
    end = time.monotonic() + limit
    problem = ""
    while any(child.poll() is None for child in children):
        failed = [child.returncode for child in children if child.poll() not in (None, 0)]
        if failed or time.monotonic() > end:
            problem = f"exit {failed[0]}" if failed else f"not done in {limit:.0f} s"
            time.sleep(2.0)  # the others' own words come first
            for child in children:
                child.kill()
            break
        time.sleep(0.2)
    for child in children:
        child.wait()
    return problem or "no answer"


def measure(args: argparse.Namespace) -> None:
    """One worker of one way; the first one writes the row."""
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    folder, shape = Path(args.work), SHAPES[args.shape]
    if args.child == "prepare":
        _prepare(folder, shape, args.device)
        return
    started = time.perf_counter()
    if args.child == "reference":
        _use_stock_attention()

    from training.config import Run
    from training.engine import parallel
    from training.trainer import Trainer

    workers = int(os.environ.get("WORLD_SIZE", "1"))
    recipe = recipe_for(shape, folder / "base", device=args.device, workers=workers, micro_batch_size=args.micro)
    recipe = with_speed(recipe, memory_reserve_gib=args.reserve, **WAYS[args.child])
    if args.child.startswith("zero-"):
        recipe = replace(recipe, workers=replace(recipe.workers, zero_stage=int(args.child[-1])))
    place = parallel.join(recipe)
    run = Run(name=args.child, data=folder / "data", out=folder / f"run-{args.child}-{workers}", recipe=recipe)
    run.out.mkdir(exist_ok=True)
    trainer = Trainer(run, place, [], None)
    ready = time.perf_counter() - started
    steps, taken = [], []
    first = 0.0
    for number in range(args.warmup + args.steps):
        before = time.perf_counter()
        steps.append(trainer.step(number))
        _synchronize(args.device)
        taken.append(time.perf_counter() - before)
        first = first or time.perf_counter() - started
        print(f"step {number} {taken[-1]:.3f} s {steps[-1]}", flush=True)
    row = {"way": args.child, "shape": args.shape, "workers": workers, "micro": args.micro, "ready_seconds": ready}
    row |= {"first_step_seconds": first, "all_seconds": taken, "last_metrics": steps[-1]}
    row |= _facts(trainer, recipe, shape, place, steps[args.warmup :], taken[args.warmup :])
    if args.profile:
        row["profile"] = kernel_times(trainer, args.device, args.warmup + args.steps)
    if place.is_first:
        temporary = folder / "row.tmp"
        temporary.write_text(json.dumps(row))
        temporary.rename(folder / f"{args.child}-{workers}.json")
    parallel.dist.barrier()
    os._exit(0)  # reading threads and NCCL have nothing more to say


def _prepare(folder: Path, shape: Shape, device: str) -> None:
    import torch

    if not (folder / "data" / "dataset.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        base = write_base(folder / "base", shape, torch.device(device))
        write_data(folder / "data", shape, base)
    (folder / "prepare-1.json").write_text("{}")


def _use_stock_attention() -> None:
    from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0

    import dynamictrl.transformer

    dynamictrl.transformer.JointAttention = CogVideoXAttnProcessor2_0  # pyright: ignore[reportAttributeAccessIssue]


def _synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _facts(
    trainer: Any, recipe: Any, shape: Shape, place: Any, steps: list[dict[str, float]], taken: list[float]
) -> dict[str, Any]:
    """What the steps achieved, against the plan."""
    import torch

    from training.planning.memory import Kept
    from training.planning.shapes import video_tokens

    config = dict(shape.config) | {"patch_size": 2, "patch_size_t": shape.config.get("patch_size_t")}
    clip = video_tokens(recipe, config) + config["max_text_seq_length"]
    plans = [block.recompute for block in trainer._pipeline.transformer.transformer_blocks]
    kept = Kept(plans.count("none") + plans.count("cheap"), plans.count("attention"), plans.count("all"))
    seconds = median(taken)
    linear, attention = _forward_tflop(config, clip)
    clips, blocks = recipe.optimization.micro_batch_size, len(plans)
    again = (kept.attention + kept.inputs) / blocks * linear + kept.inputs / blocks * attention
    peak = reserved = float(steps[-1]["peak_memory_gib"])
    if place.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
        reserved = torch.cuda.max_memory_reserved() / 2**30
    return {
        "seconds": seconds,
        "fastest_seconds": min(taken),
        "slowest_seconds": max(taken),
        "tokens": clip,
        "mfu": 100 * clips * 3 * (linear + attention) / seconds / PEAK_TFLOPS,
        "hfu": 100 * clips * (3 * (linear + attention) + again) / seconds / PEAK_TFLOPS,
        "tokens_per_second": clips * place.size * clip / seconds,
        "stall": 100 * median(step["data_stall_fraction"] for step in steps),
        "peak_gib": peak,
        "reserved_gib": reserved,
        "kept": f"{kept.whole} whole, {kept.attention} attention, {kept.inputs} inputs",
        "losses": [step["loss"] for step in steps],
        **_planned(recipe, config, place.size, kept),
    }


def _forward_tflop(config: Mapping[str, Any], tokens: int) -> tuple[float, float]:
    """Of one clip's forward pass: linear layers, attention."""
    width, layers = config["num_attention_heads"] * config["attention_head_dim"], config["num_layers"]
    return layers * 24 * width**2 * tokens / 1e12, layers * 4 * tokens**2 * width / 1e12


def _planned(recipe: Any, config: Mapping[str, Any], workers: int, kept: Any) -> dict[str, float]:
    from training.planning.plan import predicted
    from training.planning.shapes import base_config

    try:
        told = predicted(recipe, base_config(recipe.model.base), workers, kept=kept, gpu_memory_gib=139.0)
    except Exception as problem:
        print(f"no plan for this: {problem!r}", flush=True)
        return {"plan_seconds": float("nan"), "plan_gib": float("nan")}
    return {"plan_seconds": told.seconds, "plan_gib": told.peak_gib}


def _line(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['way']:<16}{row['workers']:>3}  {row['failed']}"
    return "  ".join(form.format(**row) for _, form in COLUMNS)


def _compare(rows: list[dict[str, Any]]) -> None:
    """Speed against the reference, and each number of workers against the first."""
    done = {(row["way"], row["workers"]): row for row in rows if "failed" not in row}
    for (way, workers), row in done.items():
        reference = done.get(("reference", workers))
        if reference is not None and way != "reference":
            print(f"{way}: {reference['seconds'] / row['seconds']:.2f}x the reference's speed on {workers} worker(s)")
        fewest = min(count for name, count in done if name == way)
        if fewest != workers:
            before = done[way, fewest]
            share = row["tokens_per_second"] / workers / (before["tokens_per_second"] / fewest)
            print(f"{way}: weak scaling {fewest} -> {workers}: {100 * share:.1f} %")


if __name__ == "__main__":
    main()
