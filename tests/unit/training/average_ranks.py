"""Run by test_ema.py: the average of a tiny model in an engine, on one worker and on two that share it.

`python average_ranks.py RANK STORE` is one of two workers; STORE is a file by which they find each other.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from training.checkpoints.ema import UPDATES, MovingAverage
from training.engine import parallel
from training.recipes import tiny_on_cpu

CASES = ((2, "bf16"), (3, "fp32"), (1, "bf16"))
PATIENCE = timedelta(seconds=240)


def engine_of(stage: int, precision: str, rank: int = 0, size: int = 1) -> Any:  # noqa: ANN401 - DeepSpeed's
    """A tiny model with a frozen layer and sizes that do not divide among workers, in an engine of a ZeRO stage."""
    small = tiny_on_cpu()
    recipe = replace(
        small,
        optimization=replace(small.optimization, batch_size=size, learning_rate=0.1),
        workers=replace(small.workers, zero_stage=stage, precision=precision),
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 1))
    model[1].requires_grad_(False)
    model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    return parallel.make_engine(model, recipe, parallel.Place(rank, size, torch.device("cpu")))


def step(engine: Any, number: int) -> None:  # noqa: ANN401
    """One optimizer step on the same made-up batch for every worker."""
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(4, 5, generator=generator).to(next(engine.module.parameters()).dtype)
    engine.backward(engine(inputs).float().square().mean())
    engine.step()


def masters(engine: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
    """The whole float32 weights, as DeepSpeed itself puts them together."""
    from deepspeed.utils import safe_get_full_fp32_param

    learns = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    return {name: safe_get_full_fp32_param(parameter).clone() for name, parameter in learns}  # pyright: ignore


def check_average(stage: int, precision: str, rank: int = 0, size: int = 1) -> None:
    """Five steps against the formula on whole weights; then what is gathered, and that training went on untouched."""
    engine = engine_of(stage, precision, rank, size)
    average = MovingAverage(engine, 0.4)
    expected = masters(engine)
    for number in range(5):
        step(engine, number)
        average.update()
        decay = min(0.4, (1 + number) / (10 + number))
        for name, value in masters(engine).items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    held = average.fragments()
    assert float(held.pop(UPDATES)[1]) == 5
    for name, (start, values) in held.items():
        torch.testing.assert_close(values, expected[name].view(-1)[start : start + len(values)])
    before = masters(engine)
    whole = average.gather()
    assert all(torch.equal(value, masters(engine)[name]) for name, value in before.items())
    if rank > 0:
        assert whole is None
        return
    assert whole is not None
    assert set(whole) == {f"{layer}.{part}" for layer in range(3) for part in ("weight", "bias")}
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.testing.assert_close(whole["0.weight"], expected["0.weight"].to(kind))
    assert whole["1.weight"].dtype == kind
    assert not torch.allclose(expected["0.weight"], before["0.weight"], atol=1e-3)


def main(rank: int, store: str) -> None:
    """Every case, as one of two workers."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=PATIENCE)
    for stage, precision in CASES:
        check_average(stage, precision, rank, 2)
    dist.destroy_process_group()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(PATIENCE.total_seconds(), exit=True)
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0")
    main(int(sys.argv[1]), sys.argv[2])
