"""An endless, seeded stream of drawn figures and backdrops, and the bank on the training device that keeps them.

Shape suffixes: N figures, J joints (133), H W canvas.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dynamictrl.mini.whole_body.backdrops import draw_backdrop
from dynamictrl.mini.whole_body.people import Drawn, draw_people


@dataclass(frozen=True)
class Canvas:
    """How large things are drawn, in pixels."""

    height: int
    width: int
    backdrop: int
    """Side of a backdrop."""


class FigureStream(IterableDataset[Drawn]):
    """Endless handfuls of figures and backdrops; worker k of a run draws its own part of the seed's stream."""

    def __init__(self, seed: int, canvas: Canvas, characters: int = 4, frames: int = 4, backdrops: int = 2):
        super().__init__()
        self.seed, self.canvas = seed, canvas
        self.characters, self.frames, self.backdrops = characters, frames, backdrops

    def __iter__(self) -> Iterator[Drawn]:
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        info = get_worker_info()
        step = 0
        while True:
            yield self.draw(np.random.default_rng([self.seed, info.id if info else 0, step]))
            step += 1

    def draw(self, rng: np.random.Generator) -> Drawn:
        """One handful: `characters` times `frames` figures, and `backdrop` [B, side, side, 3]."""
        size = self.canvas
        people = [draw_people(rng, self.frames, size.height, size.width) for _ in range(self.characters)]
        drawn = {name: np.concatenate([one[name] for one in people]) for name in people[0]}
        drawn["backdrop"] = np.stack([draw_backdrop(rng, size.backdrop) for _ in range(self.backdrops)])
        return drawn


def stream(figures: FigureStream, workers: int) -> Iterator[dict[str, Tensor]]:
    """Handfuls as torch tensors, drawn by `workers` processes, or by this one where there are none."""
    ahead: dict[str, Any] = {"prefetch_factor": 4} if workers else {}
    return iter(DataLoader(figures, batch_size=None, num_workers=workers, **ahead))


class Bank:
    """The last drawings of a stream on the training device; new ones replace the oldest."""

    def __init__(self, figures: int, backdrops: int, device: torch.device):
        """`figures` and `backdrops` are how many are kept."""
        self.room = {"backdrop": backdrops}
        self.figures = figures
        self.device = device
        self.kept: dict[str, Tensor] = {}
        self.count: dict[str, int] = {}

    def add(self, drawn: dict[str, Tensor]) -> None:
        """Takes a handful in."""
        for name, new in drawn.items():
            room = self.room.get(name, self.figures)
            if name not in self.kept:
                self.kept[name] = torch.empty(room, *new.shape[1:], dtype=new.dtype, device=self.device)
                self.count[name] = 0
            place = (torch.arange(len(new)) + self.count[name]) % room
            self.kept[name][place.to(self.device)] = new.to(self.device)
            self.count[name] += len(new)

    def filled(self, name: str) -> int:
        """How many drawings of a kind are held."""
        return min(self.count.get(name, 0), self.room.get(name, self.figures))

    def pick(self, count: int, *, backdrop: bool = False) -> Tensor:
        """`count` random places in the bank."""
        return torch.randint(self.filled("backdrop" if backdrop else "paint"), (count,), device=self.device)
