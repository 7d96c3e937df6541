"""Seconds of a clip on one GPU by its parts: the real pipeline on random weights of the true 5B 1.5 architecture.

    python -m tests.benchmarks.serving_speed                              # 37 frames, 1360x768, 25 steps
    python -m tests.benchmarks.serving_speed --size 1024x576 --ways exact,balanced,fast
    python -m tests.benchmarks.serving_speed --model tiny --size 64x96 --frames 9 --steps 6 --device cpu   # does it run

`reference` is diffusers' attention, VAE and eager blocks, on `--reference-steps` steps. `exact` compiles the blocks,
takes the fastest attention kernel and the fast VAE; `float8` multiplies in 8 bits; `balanced` and `fast` take steps
from the cache too. Random weights change otherwise from step to step than learned ones, so every step that may come
from the cache does: at most one in a row for `balanced`, two for `fast`. What a computed step and one from the cache
take is printed, hence any other number of them. All ways share one process and one set of weights.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.attention_processor import CogVideoXAttnProcessor2_0
from PIL import Image

from dynamictrl import DynamiCtrlPipeline
from dynamictrl.acceleration import EXACT, Acceleration, Shortcuts
from dynamictrl.acceleration.accelerate import accelerate, accelerate_vae, tokens
from dynamictrl.mini.tiny import cogvideox_scheduler, tiny_vae
from dynamictrl.mini.tokenizer import build_tokenizer
from dynamictrl.transformer import DynamiCtrlTransformer3DModel
from tests.benchmarks.training_kernels import KINDS, group_of

PROMPT = "a person in a red shirt waves with one hand in front of a white wall"
FIVE_B: dict[str, Any] = {
    "num_attention_heads": 48, "attention_head_dim": 64, "num_layers": 42, "in_channels": 32, "patch_size_t": 2,
    "ofs_embed_dim": 512, "use_rotary_positional_embeddings": True, "sample_width": 300, "sample_height": 300,
    "sample_frames": 81, "text_embed_dim": 4096,
}  # fmt: skip
TINY: dict[str, Any] = {**FIVE_B, "num_attention_heads": 2, "num_layers": 3, "text_embed_dim": 32}
EVERY = 1e9
"""A threshold that every step is below."""
WAYS: dict[str, Shortcuts] = {
    "reference": EXACT,
    "exact": EXACT,
    "float8": Shortcuts(float8=True),
    "balanced": Shortcuts(float8=True, step_cache=EVERY, steps_in_a_row=1),
    "fast": Shortcuts(float8=True, step_cache=EVERY, steps_in_a_row=2),
}


def main() -> None:
    args = _arguments()
    torch.manual_seed(0)
    pipeline = build(args.model, torch.device(args.device))
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    rows = []
    for size in args.size.split(","):
        width, height = map(int, size.split("x"))
        shape = (width, height, args.frames)
        count = tokens(shape, pipeline.transformer.config)
        print(f"{args.model} {size}, {args.frames} frames, {args.steps} steps, {count} tokens, {name}, "
              f"torch {torch.__version__}", flush=True)  # fmt: skip
        for way in args.ways.split(","):
            prepare(pipeline, way, shape)
            rows.append({"size": size, **measure(pipeline, way, shape, args)})
            print(line(rows[-1]), flush=True)
            if way in args.profile.split(","):
                print_profile(pipeline, way, shape)
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="5b", choices=["5b", "tiny"])
    parser.add_argument("--size", default="1360x768", help="such as 1360x768,1024x576")
    parser.add_argument("--frames", type=int, default=37)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--reference-steps", type=int, default=3)
    parser.add_argument(
        "--ways", default="reference,exact,float8,balanced,fast", help=f"of {', '.join(WAYS)}, in order"
    )
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--profile", default="", help="ways whose kernels are shown too, of two steps and the VAE")
    parser.add_argument("--out", help="JSON file for the rows")
    return parser.parse_args()


def build(model: str, device: torch.device) -> DynamiCtrlPipeline:
    """The pipeline with weights of N(0, 0.02), norms of 1, in 16 bits on a GPU; T5-XXL beside the 5B model."""
    from transformers import T5Config, T5EncoderModel

    big = model == "5b"
    text: dict[str, Any] = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24}
    small: dict[str, Any] = {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2}
    t5 = T5Config(vocab_size=32128, feed_forward_proj="gated-gelu", **(text if big else small))
    with torch.device("meta"):
        transformer = DynamiCtrlTransformer3DModel(**(FIVE_B if big else TINY))
        encoder = T5EncoderModel(t5)
    vae = true_vae(device) if big else tiny_vae()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    parts: list[Any] = [fill(part, device, dtype) for part in (transformer, encoder)]
    pipeline = DynamiCtrlPipeline(
        build_tokenizer([PROMPT]), parts[1], vae.to(device, dtype).eval(), parts[0], cogvideox_scheduler()  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def true_vae(device: torch.device) -> AutoencoderKLCogVideoX:
    """CogVideoX's own."""
    with device:
        return AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,  # pyright: ignore[reportArgumentType]
            up_block_types=("CogVideoXUpBlock3D",) * 4,  # pyright: ignore[reportArgumentType]
            block_out_channels=(128, 256, 256, 512),  # pyright: ignore[reportArgumentType]
            layers_per_block=3,
            sample_height=300,
            sample_width=300,
            scaling_factor=0.7,
            invert_scale_latents=True,
        )


def fill(part: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """Random weights in the place of none."""
    part.to(dtype).to_empty(device=device)
    for name, parameter in part.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02)
        else:
            torch.nn.init.constant_(parameter, float("norm" in name and name.endswith("weight")))
    for module in part.modules():
        if hasattr(module, "pos_embedding"):
            raise ValueError("this architecture has a table of positions that would stay empty")
    return part.eval().requires_grad_(False)


def prepare(pipeline: DynamiCtrlPipeline, way: str, shape: tuple[int, int, int]) -> None:
    """Makes the pipeline the way's; `reference` comes first, and what has been made fast stays so."""
    transformer = pipeline.transformer
    if way == "reference":
        for block in transformer.transformer_blocks:
            block.attn1.set_processor(CogVideoXAttnProcessor2_0())
        return
    if getattr(pipeline, "_fast_for", None) == shape:
        return
    if not hasattr(pipeline, "_fast_for"):
        from dynamictrl.joint_attention import JointAttention

        for block in transformer.transformer_blocks:
            block.attn1.set_processor(JointAttention())
        on_gpu = next(transformer.parameters()).device.type == "cuda"
        how = Acceleration(attention="auto", compile_blocks=on_gpu, float8=True, fast_vae=True)
        accelerate(transformer, how, shape=shape)
        accelerate_vae(pipeline.vae, how)
        processor = transformer.transformer_blocks[0].attn1.processor
        print(f"  attention by {processor.kernel}, {'heads' if processor.heads_first else 'tokens'} first", flush=True)
    pipeline._fast_for = shape


def measure(
    pipeline: DynamiCtrlPipeline, way: str, shape: tuple[int, int, int], args: argparse.Namespace
) -> dict[str, Any]:
    """One clip after a short one that compiles, warms and counts the compiler's breaks."""
    from torch._dynamo.utils import counters

    steps = args.reference_steps if way == "reference" else args.steps
    started = time.perf_counter()
    render(pipeline, way, shape, 2)
    first = time.perf_counter() - started
    counters.clear()
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    parts, marks = render(pipeline, way, shape, steps)
    computed = pipeline.step_caches[0].computed if pipeline.step_caches else list(range(steps))
    durations = [b - a for a, b in zip(marks, marks[1:], strict=False)]
    full = median(seconds for step, seconds in enumerate(durations) if step in computed and step > 0)
    cached = [seconds for step, seconds in enumerate(durations) if step not in computed]
    dit = parts["denoise"] if steps == args.steps else full * args.steps
    return {
        "way": way, "steps": steps, "computed": len(computed), "step": full,
        "cached": median(cached) if cached else 0.0, "dit": dit, **parts,
        "whole": sum(parts.values()) - parts["denoise"] + dit, "first": first,
        "graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values()),
        "peak": torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else 0.0,
    }  # fmt: skip


def render(
    pipeline: DynamiCtrlPipeline, way: str, shape: tuple[int, int, int], steps: int
) -> tuple[dict[str, float], list[float]]:
    """Seconds of each part, and the times at which steps ended, the first entry when they began."""
    width, height, frames = shape
    poses = np.random.default_rng(0).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)
    parts: dict[str, float] = {}
    marks: list[Any] = []

    def after_step(*_: object) -> dict[str, Any]:
        marks.append(_mark(pipeline))
        return {}

    with _timed(pipeline, parts, lambda: marks.append(_mark(pipeline))):
        started = _now(pipeline)
        pipeline(
            Image.fromarray(poses[0]), poses, PROMPT, num_inference_steps=steps, guidance_scale=3.0, window_frames=0,
            generator=torch.Generator("cpu").manual_seed(0), output_type="np", callback_on_step_end=after_step,
            shortcuts=WAYS[way],
        )  # fmt: skip
        whole = _now(pipeline) - started
    parts["rest"] = whole - sum(parts.values())
    if isinstance(marks[0], float):
        return parts, marks
    return parts, [marks[0].elapsed_time(mark) / 1e3 for mark in marks]


PARTS = {"encode_prompt": "text", "prepare_latents": "prepare", "_denoise": "denoise", "_finish": "finish"}
"""What of the pipeline is timed, and under which name; the VAE's own shares are inside of prepare and finish."""


@contextmanager
def _timed(pipeline: DynamiCtrlPipeline, parts: dict[str, float], began: Callable[[], None]) -> Iterator[None]:
    inner = {"pose encode": 0.0, "decode": 0.0}
    vae: Any = pipeline.vae
    stock = {name: getattr(pipeline, name) for name in PARTS}
    vae_encode, vae_decode = vae.encode, vae.decode

    def timing(call: Callable[..., Any], add: Callable[[float], None], before: Callable[[], None] | None = None) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            started = _now(pipeline)
            if before is not None:
                before()
            try:
                return call(*args, **kwargs)
            finally:
                add(_now(pipeline) - started)

        return run

    for name, part in PARTS.items():
        add = lambda seconds, part=part: parts.__setitem__(part, seconds)  # noqa: E731
        setattr(pipeline, name, timing(stock[name], add, began if part == "denoise" else None))
    vae.encode = timing(vae_encode, lambda s: inner.__setitem__("pose encode", max(s, inner["pose encode"])))
    vae.decode = timing(vae_decode, lambda s: inner.__setitem__("decode", inner["decode"] + s))
    try:
        yield
    finally:
        for name in PARTS:
            delattr(pipeline, name)
        del vae.encode, vae.decode
        parts["prepare"] -= inner["pose encode"]
        parts["finish"] -= inner["decode"]
        parts.update(inner)


def _now(pipeline: DynamiCtrlPipeline) -> float:
    if pipeline.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _mark(pipeline: DynamiCtrlPipeline) -> Any:
    if pipeline.device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def line(row: dict[str, Any]) -> str:
    """One way's numbers in words."""
    short = f", {row['step'] * 1e3:.0f} ms a computed step"
    if row["cached"]:
        short += f", {row['cached'] * 1e3:.0f} ms a step from the cache"
    names = {"decode": "VAE decode", "prepare": "other preparing", "finish": "other finishing"}
    shown = ("pose encode", "decode", "text", "prepare", "finish", "rest")
    parts = ", ".join(f"{names.get(part, part)} {row[part]:.2f}" for part in shown)
    return (
        f"  {row['way']:<10} DiT {row['dit']:6.2f} s ({row['computed']} of {row['steps']} steps computed{short}); "
        f"{parts}; whole {row['whole']:.2f} s; peak {row['peak']:.1f} GiB; first clip {row['first']:.0f} s; "
        f"new graphs {row['graphs']}, breaks {row['breaks']}"
    )


def print_profile(pipeline: DynamiCtrlPipeline, way: str, shape: tuple[int, int, int]) -> None:
    """Milliseconds by kind of kernel of two steps' clip, the VAE in it."""
    from torch.profiler import ProfilerActivity, profile

    activity = ProfilerActivity.CUDA if pipeline.device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        render(pipeline, way, shape, 2)
    groups = dict.fromkeys([*KINDS, "other"], 0.0)
    kernels = []
    for event in profiler.key_averages():
        spent = event.self_device_time_total if pipeline.device.type == "cuda" else event.self_cpu_time_total
        groups[group_of(event.key)] += spent / 1e3
        kernels.append((spent / 1e3, event.count, event.key))
    print("    of two steps: " + ", ".join(f"{name} {spent:.0f} ms" for name, spent in groups.items() if spent > 1))
    for spent, count, key in sorted(kernels, reverse=True)[:22]:
        print(f"      {spent:9.1f} ms {count:6d} x  {key[:110]}", flush=True)


if __name__ == "__main__":
    main()
