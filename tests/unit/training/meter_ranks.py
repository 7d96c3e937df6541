"""One of two workers that meter a step apart, then one whose clips they share: `python meter_ranks.py RANK OUT`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from training.engine.parallel import Place
from training.planning.memory import Kept
from training.recipes import tiny_on_cpu
from training.samples.batches import Batch
from training.watching.meter import Meter

CONFIG = {
    "patch_size": 2, "patch_size_t": None, "num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 8,
    "pose_control": "padaln",
}  # fmt: skip


def batch_of(timesteps: list[int], frames: int) -> Batch:
    """Micro-batch of clips of 4x4 tokens a frame and 3 of text."""
    clip = torch.zeros(len(timesteps), frames, 16, 8, 8)
    return Batch(clip, clip, clip, torch.zeros(len(timesteps), 3, 16), clip, torch.tensor(timesteps))


def main(rank: int, out: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{out / 'store'}", rank=rank, world_size=2)
    for sequence_parallel in (1, 2):
        (out / f"{sequence_parallel}-{rank}.json").write_text(json.dumps(metered(rank, sequence_parallel)))


def metered(rank: int, sequence_parallel: int) -> dict[str, float]:
    """Of a step in which every worker passes two micro-batches through."""
    place = Place(rank, 2, torch.device("cpu"), sequence_parallel)
    tiny = tiny_on_cpu()
    recipe = replace(tiny, optimization=replace(tiny.optimization, batch_size=4 // sequence_parallel))
    step = Meter(recipe, place, CONFIG, Kept(1, 1, 2), num_timesteps=1000, clips=8).step(4)
    # The second worker has other clips, longer ones; workers that share clips have the same.
    mine = 0 if sequence_parallel == 2 else rank
    for frames, timestep, loss in ((1 + mine, 100 + 500 * mine, 1.0), (2 + mine, 199 + 700 * mine, 3.0 + 4 * mine)):
        batch = batch_of([timestep], frames)
        for _ in step.fed(iter([batch])):
            step.add(batch, torch.tensor([loss]))
    engine: Any = SimpleNamespace(get_global_grad_norm=lambda: torch.tensor(2.0), skipped_steps=0)
    return step.metrics(engine, 0.1)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
