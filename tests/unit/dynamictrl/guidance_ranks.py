"""Run by test_guidance.py: `python guidance_ranks.py MODEL OUT RANKS ...` renders with one process and with several.

Imports once, then forks each number of ranks. OUT gets, by number of ranks and case, the largest difference of latents.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from dynamictrl import DynamiCtrlPipeline
from dynamictrl.guidance import SharedBranches

CASES: dict[str, dict[str, Any]] = {
    "guided": {"guidance_scale": 3.0, "num_frames": 9},
    "unguided": {"guidance_scale": 1.0, "num_frames": 9},
    "windows": {"guidance_scale": 2.0, "num_frames": 13, "window_frames": 9, "window_overlap": 4},
}


def render(pipeline: DynamiCtrlPipeline) -> dict[str, torch.Tensor]:
    drawn = np.random.default_rng(0).integers(0, 255, (13, 96, 64, 3), dtype=np.uint8)
    ways = {"num_inference_steps": 2, "output_type": "latent"}
    return {
        name: pipeline(
            Image.fromarray(drawn[0]), drawn, "a figure", generator=torch.Generator().manual_seed(3), **ways, **case
        ).frames
        for name, case in CASES.items()
    }  # fmt: skip


def rank(number: int, size: int, pipeline: DynamiCtrlPipeline, whole: dict[str, torch.Tensor], folder: Path) -> None:
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=number, world_size=size, timeout=timedelta(minutes=5))
    sharing = size // 2
    for branch in range(2):
        ranks = list(range(branch * sharing, (branch + 1) * sharing))
        group = dist.new_group(ranks) if sharing > 1 else None
        if group is not None and number in ranks:
            pipeline.transformer.share_tokens(group)
    for place in range(sharing):
        ranks = [place, sharing + place]
        group = dist.new_group(ranks)
        if number in ranks:
            pipeline.guidance = SharedBranches(group)
    found = render(pipeline)
    worst = {name: float((found[name] - whole[name]).abs().max()) for name in CASES}
    (folder / f"{number}.json").write_text(json.dumps(worst))
    dist.barrier()
    dist.destroy_process_group()


def main(model: str, out: str, sizes: list[int]) -> None:
    torch.set_num_threads(1)
    pipeline = DynamiCtrlPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    whole, found = render(pipeline), {}
    for size in sizes:
        folder = Path(tempfile.mkdtemp())
        children = []
        for number in range(size):
            child = os.fork()
            if child == 0:
                try:
                    rank(number, size, pipeline, whole, folder)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            children.append(child)
        assert all(os.waitpid(child, 0)[1] == 0 for child in children)
        rows = [json.loads((folder / f"{number}.json").read_text()) for number in range(size)]
        found[size] = {name: max(row[name] for row in rows) for name in CASES}
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], [int(word) for word in sys.argv[3:]])
