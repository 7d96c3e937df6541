"""Named services. A recipe is a function; `python -m serving up RECIPE --help` shows its every field."""

from __future__ import annotations

from dynamictrl.acceleration import Acceleration
from serving.config import Defaults, Service


def production() -> Service:
    """The real model on GPUs: the registry's champion at 768x1360, one clip per GPU at a time."""
    return Service(acceleration=Acceleration(attention="auto", compile_blocks=True, float8=True, fast_vae=True))


def mini() -> Service:
    """The shipped mini model on the CPU: small clips in seconds, for trying the service and for tests."""
    return Service(
        model="mini/dynamictrl",
        pose_model="mini/dwpose",
        device="cpu",
        dtype="float32",
        gpus_per_engine=0.0,
        # The mini model's clips are as good after 12 steps as after 25, and 2 is enough for its prompts (docs/mini.md).
        defaults=Defaults(width=128, height=192, num_frames=25, num_inference_steps=12, guidance_scale=2.0),
        person_check="submit",
        longest_job_s=900.0,
        drain_s=30.0,
    )


RECIPES = {"production": production, "mini": mini}
