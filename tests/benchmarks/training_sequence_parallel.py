"""One long clip on one GPU against the same clip shared by several (Ulysses): seconds, efficiency, exchanges, memory.

    python -m tests.benchmarks.training_sequence_parallel --shape 5b --workers 1,2          # 41,026 tokens
    python -m tests.benchmarks.training_sequence_parallel --shape 2b --workers 1,2          # 30 heads, 17,776 tokens
    python -m tests.benchmarks.training_sequence_parallel --shape tiny --device cpu --workers 1,2

A step is forward, loss, backward, the mean of the gradients over the ranks (sent as they come, as DeepSpeed does) and
AdamW; random weights of the true architecture and random latents, batch 1. On CUDA weights, gradients and moments are
bfloat16, blocks compiled, attention on the kernel that was fastest; nothing is sharded but the tokens, so AdamW's time
(about 30 ms for 5B) and the gradients' are not divided by the ranks. Efficiency is the speed-up over the number of
ranks; MFU counts 3 forward passes of L (24 d^2 S + 4 S^2 d) against 989.4 TFLOP/s a GPU. One more step is profiled:
kernel times of rank 0, where an exchange lasts from its start on this rank, waits for others included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
PEAK_TFLOPS = 989.4
WARM_UP = 1
_COGVIDEOX: dict[str, Any] = {
    "attention_head_dim": 64,
    "in_channels": 32,
    "time_embed_dim": 512,
    "text_embed_dim": 4096,
    "pose_control": "padaln",
}
_FIVE_B: dict[str, Any] = _COGVIDEOX | {
    "num_attention_heads": 48,
    "num_layers": 42,
    "use_rotary_positional_embeddings": True,
}
KINDS = {
    "compiled": ("triton_",),
    "exchange": ("SendRecv", "all_to_all"),
    "gradients": ("AllReduce", "all_reduce"),
    "attention": ("sdpa", "flash", "fmha", "attention"),
    "matrices": ("gemm", "nvjet", "cutlass", "addmm", "mm"),
    "optimizer": ("adam", "Adam", "multi_tensor"),
}
"""Kernel kinds by parts of their names, the first that fits."""


@dataclass(frozen=True)
class Shape:
    """A transformer and the latents [frames, height, width] of its clip."""

    config: Mapping[str, Any]
    latents: tuple[int, int, int]
    text: int = 226


SHAPES = {
    "5b": Shape(_FIVE_B, (10, 96, 170)),
    "5b-1.5": Shape(_FIVE_B | {"patch_size_t": 2, "ofs_embed_dim": 512, "patch_bias": False}, (10, 96, 170)),
    "2b": Shape(_COGVIDEOX | {"num_attention_heads": 30, "num_layers": 30}, (13, 60, 90)),
    "tiny": Shape(
        _COGVIDEOX
        | {
            "num_attention_heads": 5,
            "attention_head_dim": 16,
            "num_layers": 2,
            "time_embed_dim": 32,
            "text_embed_dim": 32,
            "max_text_seq_length": 9,
            "use_rotary_positional_embeddings": True,
        },
        (3, 18, 10),
        9,
    ),
}


@dataclass
class Measured:
    """What one number of ranks took."""

    ranks: int
    seconds: list[float] = field(default_factory=list)
    peak_gib: float = 0.0
    loss: float = 0.0
    exchange_seconds: float = 0.0
    """Of a step's exchanges one after the other with nothing else, from one block's."""
    exchange_gb: float = 0.0
    """That a rank sends to others in a step."""
    kernels: dict[str, float] = field(default_factory=dict)
    """Seconds on rank 0's device by kind, in one step."""


def tokens_of(shape: Shape) -> int:
    frames, height, width = shape.latents
    return frames // (shape.config.get("patch_size_t") or 1) * (height // 2) * (width // 2) + shape.text


def forward_flop(shape: Shape) -> float:
    width, count = shape.config["num_attention_heads"] * shape.config["attention_head_dim"], tokens_of(shape)
    return shape.config["num_layers"] * (24.0 * width**2 * count + 4.0 * count**2 * width)


class Rank:
    """One process: the model, its clip, and steps."""

    def __init__(self, shape: Shape, device: Any, recompute: str, compiled: bool):  # noqa: ANN401 - torch.device
        import torch
        import torch.distributed as dist

        from dynamictrl.mini.tiny import cogvideox_scheduler
        from dynamictrl.objective import Schedule
        from dynamictrl.transformer import DynamiCtrlTransformer3DModel
        from training.engine import acceleration
        from training.planning.memory import Kept

        self.shape, self.device, self.size, self.recompute = shape, device, dist.get_world_size(), recompute
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        torch.manual_seed(0)
        with device:
            made = DynamiCtrlTransformer3DModel(**shape.config)
        self.model: Any = torch.nn.Module.to(made, self.dtype).train()
        if self.size > 1:
            self.group = dist.new_group(list(range(self.size)))
            self.model.share_tokens(self.group)
        blocks = len(self.model.transformer_blocks)
        plans = {"all": Kept(0, 0, blocks), "attention": Kept(0, blocks, 0), "none": Kept(blocks, 0, 0)}
        acceleration.set_recomputation(self.model, plans[recompute])
        if compiled:
            acceleration.compile_blocks(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=device.type == "cuda")
        self.schedule = Schedule.from_scheduler(cogvideox_scheduler())
        self._under_way: list[Any] = []
        if self.size > 1:
            for parameter in self.model.parameters():
                parameter.register_post_accumulate_grad_hook(self._send)

    def _send(self, parameter: Any) -> None:  # noqa: ANN401 - a parameter
        import torch.distributed as dist

        # bfloat16 halves and sums of two exactly enough; gloo has no mean.
        parameter.grad.div_(self.size)
        self._under_way.append(dist.all_reduce(parameter.grad, async_op=True))

    def step(self, number: int) -> float:
        """One optimizer step; its loss."""
        import torch

        from dynamictrl.objective import training_loss

        draws = torch.Generator(self.device).manual_seed(number)
        frames, height, width = self.shape.latents
        made = torch.randn((4, 1, frames, 16, height, width), generator=draws, device=self.device)
        text = (1, self.shape.text, self.shape.config["text_embed_dim"])
        prompt = torch.randn(text, generator=draws, device=self.device)
        times = torch.randint(0, 1000, (1,), generator=draws, device=self.device)
        video, image, pose, noise = made
        loss = training_loss(self.model, self.schedule, video, image, pose, prompt, times, noise).mean()
        loss.backward()
        for work in self._under_way:
            work.wait()
        self._under_way.clear()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def wait(self) -> None:
        import torch
        import torch.distributed as dist

        if self.device.type == "cuda":
            torch.cuda.synchronize()
        dist.barrier()
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def measure(self, steps: int) -> Measured:
        import torch

        found = Measured(self.size)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        for number in range(WARM_UP):
            self.step(number)
            self.wait()
        for number in range(steps):
            self.wait()
            started = time.perf_counter()
            found.loss = self.step(WARM_UP + number)
            self.wait()
            found.seconds.append(time.perf_counter() - started)
        if self.device.type == "cuda":
            found.peak_gib = torch.cuda.max_memory_allocated() / 2**30
        if self.size > 1:
            found.exchange_seconds, found.exchange_gb = self._exchanges()
        found.kernels = self._kernels()
        return found

    def _exchanges(self) -> tuple[float, float]:
        """A step's exchanges alone: forward, forward again for the recomputation, and the gradients' way back."""
        import torch

        from dynamictrl.sequence_parallel import SharedClip

        clip: SharedClip = self.model._clip
        heads, width = self.shape.config["num_attention_heads"], self.shape.config["attention_head_dim"]
        counts = clip._joint
        mine = clip._rank
        token_major = torch.zeros((1, counts[mine], heads, width), dtype=self.dtype, device=self.device)
        whole = torch.zeros((1, clip._heads[mine], sum(counts), width), dtype=self.dtype, device=self.device)
        runs = 5
        with torch.no_grad():
            for counted in (False, True):
                self.wait()
                started = time.perf_counter()
                for _ in range(runs if counted else 1):
                    clip.to_heads(token_major, token_major, token_major, counts)
                    clip.to_tokens(whole, counts)
                self.wait()
        passes = (2 if self.recompute == "none" else 3) * self.shape.config["num_layers"]
        seconds = (time.perf_counter() - started) / runs * passes
        sent = 4 * token_major.numel() * token_major.element_size() * (1 - 1 / self.size) * passes
        return seconds, sent / 1e9

    def _kernels(self) -> dict[str, float]:
        """Where the device's time goes in one more step."""
        from torch.profiler import ProfilerActivity, profile

        cuda = self.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiled:
            self.step(99)
            self.wait()
        sums: dict[str, float] = {}
        for event in profiled.key_averages():
            if event.key.startswith("nccl:"):
                continue  # a span round kernels that are counted
            seconds = (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6
            kind = next((kind for kind, parts in KINDS.items() if any(p in event.key for p in parts)), "other")
            sums[kind] = sums.get(kind, 0.0) + seconds
        return sums


def rank_main(options: argparse.Namespace) -> None:
    """One process of a group; the first writes what it measured."""
    import torch
    import torch.distributed as dist

    rank = int(os.environ["RANK"])
    cuda = options.device == "cuda"
    device = torch.device(f"cuda:{rank}" if cuda else "cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if cuda else "gloo")
    one = Rank(SHAPES[options.shape], device, options.recompute, not is_eager(options))
    if cuda:
        _prefer_fastest(one)
    found = one.measure(options.steps)
    if rank == 0:
        name = torch.cuda.get_device_name() if cuda else platform.processor() or "CPU"
        about = {"measured": vars(found), "on": name, "torch": torch.__version__}
        Path(options.out).write_text(json.dumps(about))
    dist.destroy_process_group()


def is_eager(options: argparse.Namespace) -> bool:
    return options.eager or options.device == "cpu"


def _prefer_fastest(rank: Rank) -> None:
    """The kernel, and the order of its inputs, that the trainer would take: timed at the rank's own shape."""
    import torch
    import torch.distributed as dist

    from dynamictrl.acceleration import attention_kernels

    config = rank.shape.config
    heads = -(-config["num_attention_heads"] // rank.size)
    shape = (1, heads, tokens_of(rank.shape), config["attention_head_dim"])
    choice = [attention_kernels.choose(shape, rank.device, torch.bfloat16)]
    if rank.size > 1:
        dist.broadcast_object_list(choice, src=0, device=rank.device)
    best = choice[0]
    if best is None:
        return
    attention_kernels.use(rank.model, best)
    if dist.get_rank() == 0:
        print(f"{rank.size} ranks, {heads} heads each: attention by {best}", flush=True)


def run_group(options: argparse.Namespace, ranks: int, folder: Path) -> dict[str, Any]:
    """Starts so many processes, waits for them, returns what the first measured; RuntimeError where one failed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = folder / f"{ranks}.json"
    children = []
    for rank in range(ranks):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        command = [
            sys.executable,
            "-m",
            "tests.benchmarks.training_sequence_parallel",
            *sys.argv[1:],
            "--out",
            str(out),
        ]
        children.append(subprocess.Popen(command, env=environment, cwd=ROOT))
    while any(child.poll() is None for child in children):
        if any(child.poll() for child in children):
            for child in children:  # those left would wait for the lost one
                child.terminate()
        time.sleep(0.2)
    if any(child.returncode for child in children) or not out.is_file():
        raise RuntimeError(f"{ranks} ranks ended with {[child.returncode for child in children]}")
    return json.loads(out.read_text())


def show(shape: Shape, options: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """The table."""
    first, peak = results[0], PEAK_TFLOPS * 1e12
    heads, blocks = shape.config["num_attention_heads"], "eager" if is_eager(options) else "compiled"
    print(f"\n{options.shape}: {tokens_of(shape):,} tokens, {heads} heads, recompute {options.recompute}, {blocks}")
    print(f"{first['on']}, torch {first['torch']}\n")
    print(
        "| ranks | s/step (p50) | all steps | speed-up | efficiency | MFU | peak GiB | exchanges s (share) | GB sent |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    alone = median(first["measured"]["seconds"]) * first["measured"]["ranks"]
    for result in results:
        one = Measured(**result["measured"])
        seconds = median(one.seconds)
        share = one.exchange_seconds / seconds
        print(
            f"| {one.ranks} | {seconds:.3f} | {min(one.seconds):.3f} to {max(one.seconds):.3f} | {alone / seconds:.2f} "
            f"| {alone / seconds / one.ranks:.1%} | {3 * forward_flop(shape) / seconds / one.ranks / peak:.1%} "
            f"| {one.peak_gib:.1f} | {one.exchange_seconds:.3f} ({share:.1%}) | {one.exchange_gb:.1f} |"
        )
    print("\nSeconds of rank 0's device in a step, by kind:\n")
    print("| ranks | " + " | ".join([*KINDS, "other"]) + " |")
    print("|---" * (len(KINDS) + 2) + "|")
    for result in results:
        one = Measured(**result["measured"])
        print(
            f"| {one.ranks} | " + " | ".join(f"{one.kernels.get(kind, 0.0):.3f}" for kind in [*KINDS, "other"]) + " |"
        )
    losses = ", ".join(f"{result['measured']['loss']:.6f}" for result in results)
    print(f"\nLoss of the last timed step by number of ranks: {losses}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="5b")
    parser.add_argument("--workers", default="1,2", help="numbers of ranks, the first is compared with")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--recompute", choices=("all", "attention", "none"), default="attention")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--out", default="", help="used by the processes that this one starts")
    options = parser.parse_args()
    if options.out:
        rank_main(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        results = [run_group(options, ranks, Path(folder)) for ranks in map(int, options.workers.split(","))]
    show(SHAPES[options.shape], options, results)


if __name__ == "__main__":
    main()
