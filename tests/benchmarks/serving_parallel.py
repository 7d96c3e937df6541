"""One clip on several GPUs: seconds of a denoising step on one, and on N that share guidance and tokens.

    python -m tests.benchmarks.serving_parallel --processes 2
    python -m tests.benchmarks.serving_parallel --processes 4 --compile
    python -m tests.benchmarks.serving_parallel --shape tiny --device cpu --processes 4      # does it run at all

Random weights of the true architecture made where they are used, the pipeline's own denoising loop between the same
random latents, guidance 3. Every process first renders alone (all of them at once, so a host's GPUs are equally warm),
then they share one clip as an engine's processes do (`serving.rendering.team`): `latents` is the largest difference
between both, relative to the largest latent. The text encoder and VAE take no part.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from dynamictrl import DynamiCtrlPipeline
from dynamictrl.acceleration import Acceleration
from dynamictrl.conventions import conventions_named
from dynamictrl.geometry import latent_frames
from dynamictrl.mini.tiny import cogvideox_scheduler
from dynamictrl.transformer import DynamiCtrlTransformer3DModel
from serving.rendering.speed import Speed
from serving.rendering.team import join

_ALL: dict[str, Any] = {
    "in_channels": 32, "patch_size_t": 2, "patch_bias": False, "use_rotary_positional_embeddings": True,
    "pose_control": "padaln", "sample_frames": 81
}  # fmt: skip
SHAPES: dict[str, tuple[dict[str, Any], int, int, int]] = {
    "5b-1.5": (
        _ALL | {"num_attention_heads": 48, "num_layers": 42, "ofs_embed_dim": 512, "sample_height": 96,
                "sample_width": 170}, 768, 1360, 37
    ),
    "tiny": (
        _ALL | {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 4, "ofs_embed_dim": 32,
                "time_embed_dim": 32, "text_embed_dim": 64, "max_text_seq_length": 16, "sample_height": 12,
                "sample_width": 8}, 64, 96, 13
    ),
}  # fmt: skip
"""A transformer's config, and the width, height and frames of its clip."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="5b-1.5", choices=SHAPES)
    parser.add_argument("--size", help="WIDTHxHEIGHTxFRAMES instead of the shape's own")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="timed ones, after two")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.device == "cuda":
        machine = f"{options.processes} x {torch.cuda.get_device_name()}"
    else:
        machine = f"{platform.machine()} CPU"
    print(f"{options.shape} on {machine}, torch {torch.__version__}, compile {options.compile}", flush=True)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    mp.spawn(one_process, args=(store.port, options), nprocs=options.processes)  # pyright: ignore


def one_process(rank: int, port: int, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    config, width, height, frames = SHAPES[options.shape]
    if options.size:
        width, height, frames = map(int, options.size.split("x"))
    groups = join(dist.TCPStore("127.0.0.1", port, is_master=False), rank, options.processes, options.device)
    started = time.perf_counter()
    pipeline = pipeline_of(config, options.device)
    given = inputs(pipeline, width, height, frames, options.device)
    alone = measure(pipeline, given, options, (width, height, frames), None)
    say(rank, f"alone {alone['step']:.3f} s a step ({alone['spread']}), peak {alone['gib']:.1f} GiB, "
              f"{time.perf_counter() - started:.0f} s after the start")  # fmt: skip
    dist.barrier()
    groups.apply(pipeline)
    together = measure(pipeline, given, options, (width, height, frames), groups.tokens)
    difference = float((together["latents"] - alone["latents"]).abs().max() / alone["latents"].abs().max())
    say(rank, f"together {together['step']:.3f} s a step ({together['spread']}), peak {together['gib']:.1f} GiB, "
              f"{alone['step'] / together['step']:.3f} times as fast, latents {difference:.1e}")  # fmt: skip
    if rank == 0 and options.out:
        row = {name: {k: v for k, v in found.items() if k != "latents"} for name, found in
               (("alone", alone), ("together", together))}  # fmt: skip
        options.out.write_text(json.dumps({**row, "difference": difference, "options": str(options)}) + "\n")
    dist.barrier()
    dist.destroy_process_group()


def pipeline_of(config: dict[str, Any], device: str) -> DynamiCtrlPipeline:
    """The same random weights in every process, made on its device."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        transformer = DynamiCtrlTransformer3DModel(**config)
    torch.set_default_dtype(torch.float32)
    nothing: Any = None
    pipeline = DynamiCtrlPipeline(nothing, nothing, nothing, transformer.eval(), cogvideox_scheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def inputs(pipeline: DynamiCtrlPipeline, width: int, height: int, frames: int, device: str) -> dict[str, Any]:
    config, way = pipeline.transformer.config, conventions_named("none")
    generator = torch.Generator().manual_seed(1)
    plan = way.plan(frames, config, 0, None)
    shape = (1, plan.padding + latent_frames(frames), 16, height // 8, width // 8)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, pipeline.transformer.dtype)

    text = draw(2, config["max_text_seq_length"], config["text_embed_dim"])
    return {"plan": plan, "way": way, "latents": draw(*shape).float(), "image": draw(*shape), "pose": draw(*shape),
            "text": text}  # fmt: skip


def measure(
    pipeline: DynamiCtrlPipeline,
    given: dict[str, Any],
    options: argparse.Namespace,
    size: tuple[int, int, int],
    tokens: Any,
) -> dict[str, Any]:
    cuda = options.device == "cuda"
    wanted = Acceleration(attention=options.attention, compile_blocks=options.compile)
    Speed(wanted, options.device, size=size, tokens=tokens).prepare(pipeline.transformer)
    wait: Callable[[], None] = torch.cuda.synchronize if cuda else (lambda: None)
    ends: list[float] = []

    def step_end(*_: object) -> dict[str, Tensor]:
        wait()
        ends.append(time.perf_counter())
        return {}

    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        latents = pipeline._denoise(
            given["plan"], given["way"], given["latents"], given["image"], [given["pose"]], given["text"],
            options.steps + 2, 3.0, False, torch.Generator().manual_seed(2), step_end, (), None
        )  # fmt: skip
    steps = np.diff(ends)[1:].tolist()
    gib = torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")
    spread = f"{min(steps):.3f} to {max(steps):.3f}, {len(steps)} steps"
    return {"step": median(steps), "spread": spread, "latents": latents.float().cpu(), "gib": gib}


def say(rank: int, text: str) -> None:
    print(f"process {rank}: {text}", flush=True)


if __name__ == "__main__":
    main()
