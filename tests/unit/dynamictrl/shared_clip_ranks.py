"""Run by test_sequence_parallel.py: ranks that share clips against one process that holds them whole.

`python shared_clip_ranks.py OUT RANKS ...` imports once, then forks each number of ranks, which is many times faster
than a start of each; `OUT/RANKS.json` gets, for every case, the largest difference of each compared thing relative to
its largest value.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dynamictrl.mini.tiny import TEXT_WIDTH, tiny_transformer
from dynamictrl.objective import Schedule, noise_for, training_loss
from dynamictrl.pose_encoder import PoseEncodedTransformer, PoseEncoder
from dynamictrl.recomputation import Recompute

LEARNED = {"use_learned_positional_embeddings": True}
BACKEND = "aot_eager_decomp_partition"
"""All of torch.compile but the kernels: traced whole, and cut into a forward and a backward as on a GPU."""
PATIENCE = timedelta(minutes=5)
SINCOS = {"use_rotary_positional_embeddings": False}


@dataclass(frozen=True)
class Case:
    """One model and one batch; 6 x 4 tokens a frame, 3 frames of them (72 tokens) unless it says otherwise."""

    base: Literal["1.0", "1.5"] = "1.5"
    control: str = "padaln"
    heads: int = 5
    batch: int = 1
    latent_frames: int = 3
    height: int = 12
    text: int = 7
    changes: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    recompute: Recompute = "none"
    compiled: str = ""
    expert: bool = False
    heads_first: bool = False


CASES = {
    "padaln": Case(batch=2),
    "padaln_residual": Case("1.0", "padaln_residual"),
    "cross_attention": Case("1.0", "cross_attention", batch=2, text=9),
    "unified_tokens": Case(control="unified_tokens"),
    "direct_addition": Case(control="direct_addition"),
    "learned positions": Case("1.0", latent_frames=4, changes=LEARNED, text=16),
    "fixed positions": Case("1.0", changes=SINCOS, text=16),
    "tokens that never divide": Case("1.0", height=10, latent_frames=1, text=3),
    "recomputed": Case(recompute="all", batch=2, heads_first=True),
    "recomputed but for attention": Case(control="cross_attention", recompute="attention"),
    "bfloat16": Case(dtype=torch.bfloat16),
    "expert encoder": Case(expert=True),
}
COMPILED = Case(control="cross_attention", compiled=BACKEND, recompute="attention", changes={"num_layers": 1})


def model_of(case: Case) -> nn.Module:
    """A transformer with weights that show, the same in every process."""
    torch.manual_seed(5)
    transformer = tiny_transformer(
        case.base, case.control, num_attention_heads=case.heads, max_text_seq_length=case.text, **case.changes
    )
    model = PoseEncodedTransformer(transformer, PoseEncoder()) if case.expert else transformer
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape) * 0.05
    blocks: Any = transformer.transformer_blocks
    for block in blocks:
        block.recompute = case.recompute
    return nn.Module.to(model, case.dtype).train()


def loss_of(model: nn.Module, case: Case, sample: int = 0) -> Tensor:
    """The training loss of a batch that is a function of its number."""
    draws = torch.Generator().manual_seed(sample)
    shape = (case.batch, case.latent_frames, 16, case.height, 8)
    video, image, pose = (torch.randn(shape, generator=draws) for _ in range(3))
    if case.expert:
        frames = (case.latent_frames - 1) * 4 + 1
        pose = torch.randn((case.batch, 3, frames, case.height * 8, 64), generator=draws)
    noise = noise_for(video, 2 if case.base == "1.5" else None, draws)
    prompt = torch.randn((case.batch, case.text, TEXT_WIDTH), generator=draws)
    times = torch.randint(0, 1000, (case.batch,), generator=draws)
    abar = torch.linspace(0.999, 0.001, 1000, dtype=torch.float64)
    schedule = Schedule(abar.sqrt(), (1 - abar).sqrt())
    return training_loss(model, schedule, video, image, pose, prompt, times, noise).mean()


def share(model: nn.Module, case: Case, group: Any) -> nn.Module:  # noqa: ANN401 - a process group
    """The same model, its tokens shared."""
    transformer: Any = model.transformer if case.expert else model
    transformer.share_tokens(group)
    for block in transformer.transformer_blocks:
        block.attn1.processor.heads_first = case.heads_first
        if case.compiled:
            block.compile(backend=case.compiled, fullgraph=True)
    return model


def compare(case: Case, groups: int, group: Any) -> dict[str, float]:  # noqa: ANN401 - a process group
    """Loss and gradients of as many batches as there are groups, against one process that takes them all."""
    model = model_of(case)
    whole = [loss_of(model, case, sample) for sample in range(groups)]
    torch.stack(whole).mean().backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    shared = share(model_of(case), case, group)
    data_rank = dist.get_rank() // (dist.get_world_size() // groups)
    loss = loss_of(shared, case, data_rank)
    loss.backward()
    differences = {"loss": relative(loss, whole[data_rank], 1.0)}
    # Some gradients are zero but for rounding: a bias of all keys changes no softmax.
    floor = 1e-3 * max(float(gradient.abs().max()) for gradient in expected.values())
    got = {name: p.grad for name, p in shared.named_parameters() if p.grad is not None}
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        mean = gradient.clone()
        dist.all_reduce(mean)
        differences[name] = relative(mean / dist.get_world_size(), expected[name], floor)
    return differences


def relative(one: Tensor, other: Tensor, floor: float) -> float:
    """The largest difference over the largest value, or over `floor` where that is smaller."""
    one, other = one.detach().float(), other.detach().float()
    return float((one - other).abs().max() / other.abs().max().clamp(min=floor))


def rank_main(rank: int, size: int, out: Path) -> None:
    """All cases that so many ranks take."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group(
        "gloo", init_method=f"file://{out}/store{size}", rank=rank, world_size=size, timeout=PATIENCE
    )
    found = {name: compare(case, 1, dist.group.WORLD) for name, case in CASES.items()}
    if size == 2:  # tracing takes long, and is the same for more ranks
        found["compiled"] = compare(COMPILED, 1, dist.group.WORLD)
    if size == 4:
        pair, _ = dist.new_subgroups(2)
        found["two groups of two"] = compare(Case(), 2, pair)
        found["as many heads as ranks"] = compare(Case(heads=4), 1, dist.group.WORLD)
    everyone: list[Any] = [None] * size
    dist.all_gather_object(everyone, found)
    if rank == 0:
        worst = {n: {key: max(part[n][key] for part in everyone) for key in found[n]} for n in found}
        (out / f"{size}.json").write_text(json.dumps(worst))
    dist.destroy_process_group()


def fork(main: Callable[[int], None], size: int) -> None:
    """Runs `main` in so many forked processes; RuntimeError where one fails."""
    children = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                main(rank)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(pid)
    statuses = [os.waitpid(pid, 0)[1] for pid in children]
    if any(statuses):
        raise RuntimeError(f"ranks ended with {statuses}")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for ranks in map(int, sys.argv[2:]):
        fork(lambda rank, size=ranks: rank_main(rank, size, folder), ranks)
