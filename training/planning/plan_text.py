"""A plan as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.planning.fitting import Choice
from training.planning.memory import GB, GIB, Kept

if TYPE_CHECKING:
    from training.planning.plan import Plan

SHOWN_CHOICES = 6


def text(plan: Plan) -> str:
    """Lines of name and value, and a table of the settings that fit."""
    return "\n".join([*_model(plan), *_memory(plan), *_time(plan), *_disk(plan), *_choices(plan)])


def _model(plan: Plan) -> list[str]:
    lines = [
        f"base                  {plan.base}",
        f"parameters            {plan.parameters:,} (pose control {plan.pose_parameters:,})",
        f"of which learn        {plan.trained:,}",
        f"latent frames         {plan.latent_frames}",
        f"tokens                {plan.tokens:,}",
    ]
    if len(plan.sizes) > 1:
        lines += [f"  {size!s:<20}{tokens:,} tokens, {seconds:,.2f} s" for size, tokens, seconds in plan.sizes]
    return [
        *lines,
        f"forward pass          {plan.forward_tflop:,.2f} TFLOP a sample",
        f"training step         {3 * plan.forward_tflop:,.2f} TFLOP a sample (recomputation not counted)",
    ]


def _memory(plan: Plan) -> list[str]:
    limit = plan.gpu_memory_gib * GIB / GB
    where = (
        f"memory per GPU        {plan.total_gb:,.1f} GB of {limit:,.1f} in its {plan.memory.moment}; {plan.gpus} GPU(s)"
    )
    if plan.device == "cpu":
        where = f"memory per worker     {plan.total_gb:,.1f} GB in its {plan.memory.moment}; {plan.gpus} worker(s)"
    return [
        where,
        *(f"  {name:<20}{size:,.2f} GB" for name, size in plan.memory_gb.items()),
        f"kept in the blocks    {kept_words(plan.kept)}",
        f"host memory           {sum(plan.memory.host_gb.values()):,.1f} GB a worker",
        *(f"  {name:<20}{size:,.2f} GB" for name, size in plan.memory.host_gb.items() if size),
    ]


def _time(plan: Plan) -> list[str]:
    if plan.device == "cpu":
        return [f"steps                 {plan.steps:,} (a CPU's seconds are not estimated)"]
    rates = "estimated from an H200's by datasheets" if plan.is_estimate else "measured"
    price = f", {plan.gpu_hours * plan.gpu_hour_price:,.0f} at {plan.gpu_hour_price:g}" if plan.gpu_hour_price else ""
    return [
        f"seconds per step      {plan.seconds_per_step:,.2f} on {plan.gpu} (rates {rates})",
        *(f"  {name:<20}{seconds:,.3f} s" for name, seconds in plan.time.parts.items()),
        f"MFU, HFU              {plan.mfu:.1%}, {plan.hfu:.1%}",
        f"hours                 {plan.seconds_per_step * plan.steps / 3600:,.1f} for {plan.steps:,} steps",
        f"GPU-hours             {plan.gpu_hours:,.0f}{price}",
    ]


def _disk(plan: Plan) -> list[str]:
    return [
        f"checkpoint            {plan.checkpoint_gb:,.1f} GB, {plan.checkpoint_seconds:,.0f} s to write",
        f"disk                  {plan.checkpoints_gb:,.1f} GB for the checkpoints kept and the exported model",
    ]


def _choices(plan: Plan) -> list[str]:
    if plan.device == "cpu":
        return []
    if not plan.choices:
        return [f"what would fit        {way}" for way in plan.ways_out]
    head = f"{'settings that fit, the recommended first':<66}{'GB':>6}{'s/step':>9}  kept in the blocks"
    return ["", head, *(_row(choice) for choice in plan.choices[:SHOWN_CHOICES])]


def _row(choice: Choice) -> str:
    return f"{choice.flags:<66}{choice.memory_gb:>6.0f}{choice.seconds:>9.2f}  {kept_words(choice.kept)}"


def kept_words(kept: Kept) -> str:
    """Of how many blocks what is kept."""
    named = {"all": kept.whole, "attention": kept.attention, "inputs": kept.inputs}
    return ", ".join(f"{name} of {count}" for name, count in named.items() if count)
