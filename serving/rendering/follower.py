"""One of a team's other processes (`team`): orders come by standard input, tensors by torch.distributed."""

from __future__ import annotations

import queue
from datetime import timedelta
from pathlib import Path
from typing import Any

import diffusers
import torch
import torch.distributed as dist
from torch import Tensor

from dynamictrl.acceleration import Acceleration
from dynamictrl.acceleration.float8_linear import multiplying_in_8_bits
from dynamictrl.conventions import conventions_named
from dynamictrl.long_videos import WindowPlan
from serving.rendering.model_source import ModelSource
from serving.rendering.residents import Residents, load_own_parts
from serving.rendering.speed import Speed
from serving.rendering.team import broadcast, go_on, join


class Ended(Exception):
    """The leader said that there is no further step."""


def follow(orders: queue.Queue[Any]) -> None:
    """Loads, joins, and denoises whenever the leader does; the first order is the setting."""
    setting = orders.get()
    rank, ranks, device = setting["rank"], setting["ranks"], setting["device"]
    if setting["threads"]:
        torch.set_num_threads(setting["threads"])
    if device == "cuda":
        torch.cuda.set_device(rank)
    store = dist.TCPStore("127.0.0.1", setting["port"], is_master=False, timeout=timedelta(minutes=10))
    store.set(f"ready {rank}", "soon")
    groups = join(store, rank, ranks, device)
    size = tuple(setting["size"]) if setting["size"] else None
    speed = Speed(Acceleration(**setting["acceleration"]), device, size=size, tokens=groups.tokens)
    follower = Follower(setting, speed)
    groups.apply(follower.residents.pipeline)
    while True:
        order = orders.get()
        getattr(follower, order.pop("do"))(order)


class Follower:
    """Transformers, and how to denoise with them."""

    def __init__(self, setting: dict[str, Any], speed: Speed):
        self.device = setting["device"]
        self.speed = speed
        self.weights_type = getattr(torch, setting["dtype"])
        first, *others = [_source(told) for told in setting["models"]]
        pipeline = load_own_parts(first, self.weights_type)
        pipeline.set_progress_bar_config(disable=True)
        self.residents = Residents(pipeline, first, self._prepare)
        for source in others:
            self.residents.add(source, self.weights_type)
        for name, file in setting["loras"]:
            self.residents.add_lora(name, Path(file))

    def _prepare(self, transformer: Any) -> None:  # noqa: ANN401 - the transformer
        torch.nn.Module.to(transformer, self.device, self.weights_type)  # as the leader does
        self.speed.prepare(transformer)

    def add(self, order: dict[str, Any]) -> None:
        """Loads another model."""
        self.residents.add(_source(order["model"]), self.weights_type)

    def remove(self, order: dict[str, Any]) -> None:
        """Forgets a model."""
        self.residents.remove(order["name"])

    @torch.no_grad()
    def denoise(self, order: dict[str, Any]) -> None:
        """One clip's steps, with the leader."""
        given = {name: self._receive(*told) for name, told in order["tensors"].items()}
        poses = [tensor for name, tensor in given.items() if name.startswith("pose_")]  # in the leader's order
        generator = None
        if "generator" in given:
            generator = torch.Generator("cpu")
            generator.set_state(given["generator"])
        name, config = order["scheduler"]
        plan = WindowPlan(**{**order["plan"], "starts": tuple(order["plan"]["starts"])})
        pipeline = self.residents.pipeline
        shortcuts = self.speed.shortcuts(order["shortcuts"])
        with (
            self.residents.in_use(order["model"], order["loras"]),
            multiplying_in_8_bits(pipeline.transformer, shortcuts.float8),
        ):
            pipeline.step_caches = shortcuts.step_caches(plan.count, order["steps"], pipeline.guidance.group)
            scheduler, pipeline.scheduler = pipeline.scheduler, getattr(diffusers, name).from_config(config)
            try:
                pipeline._denoise(
                    plan, conventions_named(order["compatibility"]), given["latents"], given["image_latents"], poses,
                    given["prompt_embeds"], order["steps"], order["scale"], order["dynamic"], generator, _step_end, (),
                    None
                )  # fmt: skip
            except Ended:
                pass
            finally:
                pipeline.scheduler = scheduler

    def _receive(self, shape: list[int], dtype: str, device: str) -> Tensor:
        return broadcast(torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")), device=device))


def _step_end(*_: object) -> dict[str, Tensor]:
    if not go_on():
        raise Ended
    return {}


def _source(told: dict[str, Any]) -> ModelSource:
    paths = {name: Path(told[name]) if told[name] else None for name in ("folder", "transformer")}
    return ModelSource(**{**told, **paths})
