"""The service on Ray Serve: an HTTP ingress, a dispatcher, and model replicas that it calls through their handle.

So running work is a Serve request: a drain waits for it, and a dead replica raises in the dispatcher at once. Media and
clips never pass through Serve's handles; they lie in the data folder. `serving.cluster` is the only folder of `serving`
that imports Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from dynamictrl.errors import ConfigError
from serving.cluster.autoscaler import autoscaling
from serving.cluster.dispatch import Dispatch
from serving.cluster.renderer import Renderer
from serving.cluster.rollout_lead import RolloutLead
from serving.cluster.routing import any_free_replica
from serving.config import Service
from serving.recipes import RECIPES
from serving.rollout.registry import followed_name
from serving.watching.process import name_it

logger = logging.getLogger(__name__)

APP = "dynamictrl"
DRAIN_MARGIN_S = 30.0
"""Seconds over the longest job that Serve grants a replica before it is killed."""


def application(service: Service) -> serve.Application:
    """The Serve application of one service.

    In a redeploy the next ingress and the next dispatcher are there before the old ones stop, for which neither needs
    room; an engine stops first, for its GPU is needed. Each may take as long as the longest job to stop.
    """
    renderer = serve.deployment(
        name="renderer",
        autoscaling_config=autoscaling(service),
        max_ongoing_requests=1,
        request_router_config=any_free_replica(),
        graceful_shutdown_timeout_s=service.longest_job_s + DRAIN_MARGIN_S,
        graceful_shutdown_wait_loop_s=0.5,
        # One actor holds all GPUs of an engine, and Ray never spreads an actor over nodes.
        ray_actor_options={"num_cpus": service.cpus_per_engine, "num_gpus": service.gpus_per_engine},
    )(Renderer).bind(service)
    dispatch = serve.deployment(
        name="dispatcher",
        max_surge_percent=100,
        max_ongoing_requests=100,  # also the number of its threads, and each lease needs one now and then
        graceful_shutdown_timeout_s=service.longest_job_s + DRAIN_MARGIN_S,
        ray_actor_options={"num_cpus": 0},
    )(Dispatch).bind(service, renderer)
    others = [dispatch]
    if followed_name(service.model, follow=service.canary.follow):
        lead = serve.deployment(name="rollout", max_surge_percent=100, ray_actor_options={"num_cpus": 0})
        others.append(lead(RolloutLead).bind(service, renderer))
    return serve.deployment(
        name="ingress",
        max_surge_percent=100,
        max_ongoing_requests=100,
        graceful_shutdown_timeout_s=service.limits.wait_seconds + DRAIN_MARGIN_S,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": 0},
    )(serve.ingress(_api_builder(service))(Front)).bind(service, *others)


class Front:
    """The HTTP ingress; its routes are `api.build_api`'s. It holds the other deployments so that Serve deploys them."""

    def __init__(self, service: Service, *others: DeploymentHandle):
        name_it(service, "ingress")
        self._others = others


def _api_builder(service: Service) -> Callable[[], Any]:
    def build_asgi_app() -> Any:  # noqa: ANN401 - Serve evaluates its return type
        from serving.web.api import build_api

        return build_api(service)

    return build_asgi_app


def build(args: dict[str, str]) -> serve.Application:
    """For Serve config files (`infra/kuberay/serve.yaml`): `recipe` and any plain field of it, as text.

    `scaling.clear_within_s` names a field of a group. Raises ConfigError for a recipe or field that is not there, and
    for a value out of its range.
    """
    words = dict(args)
    recipe = words.pop("recipe", "production")
    if recipe not in RECIPES:
        raise ConfigError(f"there is no recipe {recipe!r}; there are {', '.join(RECIPES)}", code="recipe")
    service = RECIPES[recipe]()
    for name, text in words.items():
        service = _with_field(service, name.split("."), str(text), name)
    return application(service)


def _with_field(settings: Any, path: list[str], text: str, name: str) -> Any:  # noqa: ANN401 - any settings group
    current = getattr(settings, path[0], None)
    if len(path) > 1 and is_dataclass(current):
        return replace(settings, **{path[0]: _with_field(current, path[1:], text, name)})
    if len(path) > 1 or not isinstance(current, (str, int, float, Path, tuple)):
        raise ConfigError(f"{name!r} is no plain field of a service; see serving/config.py", code="unknown_field")
    return replace(settings, **{path[0]: _as(current, text, name)})


def _as(current: Any, text: str, name: str) -> Any:  # noqa: ANN401 - a field's type is its default's
    if isinstance(current, bool):
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{name} is {text!r}; it must be true or false", code="bad_field", param=name)
        return text.lower() == "true"
    if isinstance(current, tuple):
        return tuple(text.split(","))
    try:
        return type(current)(text)
    except ValueError as problem:
        raise ConfigError(
            f"{name} is {text!r}; it must be a {type(current).__name__}", code="bad_field", param=name
        ) from problem
