"""What a step is told of: over two workers by hand, and in a whole run with everything that watches it."""

from __future__ import annotations

import gzip
import inspect
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from training.callbacks import Callback
from training.callbacks.metrics_file import MetricsFile, read_lines
from training.callbacks.progress import Progress, duration
from training.callbacks.sessions import Sessions
from training.config import Recipe, Run
from training.engine.parallel import Place
from training.engine.work import Work, peak_tflops
from training.planning.memory import Kept
from training.planning.shapes import forward_flop
from training.recipes import tiny_on_cpu
from training.run_folder import RunFolder
from training.samples.arrangement import timesteps
from training.summary.page import write_summary
from training.summary.record import RunRecord
from training.trainer import train
from training.watching.meter import bin_name, bin_of
from training.watching.trace import Kernel, Trace, kind_of, table_text

RANKS = Path(__file__).with_name("meter_ranks.py")


def metered(folder: Path) -> dict[str, dict[str, float]]:
    """What each of two workers says of two steps, as `SEQUENCE_PARALLEL-RANK`."""
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(RANKS)]
    workers = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment, cwd=RANKS.parents[3]) for rank in range(2)
    ]
    assert [worker.wait(timeout=600) for worker in workers] == [0, 0]
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_two_workers_count_their_samples_once_and_a_shared_clip_once(tmp_path: Path):
    found = metered(tmp_path)
    apart, shared = found["1-0"], found["2-0"]
    assert apart == found["1-1"]
    assert apart["loss"] == (1 + 3 + 1 + 7) / 4
    bins = {name: value for name, value in apart.items() if name.startswith("loss/")}
    assert bins == {"loss/t000-200": 2.0, "loss/t600-800": 1.0, "loss/t800-1000": 7.0}
    tokens = (16 + 3) + (32 + 3) + (32 + 3) + (48 + 3)
    assert apart["tokens_per_second"] * apart["step_seconds"] == pytest.approx(tokens)
    assert (apart["samples_seen"], apart["epoch"]) == (20, 2.5)
    assert (apart["grad_norm"], apart["clipped"]) == (2.0, 1.0)

    assert shared == found["2-1"]
    assert shared["loss"] == 2.0
    assert {name for name in shared if name.startswith("loss/")} == {"loss/t000-200"}
    assert shared["tokens_per_second"] * shared["step_seconds"] == pytest.approx((16 + 3) + (32 + 3))
    assert (shared["samples_seen"], shared["epoch"]) == (10, 1.25)


@pytest.mark.parametrize(("bins", "names"), [(2, ["loss/t000-500", "loss/t500-1000"]), (3, ["loss/t000-334"])])
def test_the_parts_of_the_schedule_are_named_by_the_timesteps_in_them(bins: int, names: list[str]):
    assert [bin_name(number, bins, 1000) for number in range(len(names))] == names
    for timestep in range(1000):
        low, high = bin_name(bin_of(timestep, bins, 1000), bins, 1000).removeprefix("loss/t").split("-")
        assert int(low) <= timestep < int(high)


def test_hardware_work_counts_what_the_blocks_really_compute_twice():
    sys.path.insert(0, str(RANKS.parent))
    from meter_ranks import CONFIG, batch_of

    batch = batch_of([1, 2], frames=3)
    forward = forward_flop(CONFIG, "padaln", 48, 3) / 1e12
    attention = 4 * 4 * 51**2 * 16 / 1e12

    none, some, whole = (Work.of(CONFIG, batch, kept) for kept in (Kept(4, 0, 0), Kept(1, 1, 2), Kept(0, 0, 4)))
    assert none.tokens == 2 * 51
    assert none.hardware_tflop == none.model_tflop == pytest.approx(2 * 3 * forward)
    assert whole.hardware_tflop == pytest.approx(2 * 4 * forward)
    assert some.hardware_tflop == pytest.approx(2 * (3 * forward + (2 * forward + forward - attention) / 4))
    adapter = Work.of(CONFIG, batch, Kept(4, 0, 0), adapter=True)
    assert adapter.model_tflop == pytest.approx(2 * (2 * forward + attention))
    assert (peak_tflops("NVIDIA H200"), peak_tflops("cpu")) == (989.4, None)


class StopAfter(Callback):
    """Ends a session as a kill would, and keeps the files it hears of."""

    def __init__(self, step: int):
        self._step = step
        self.files: list[Path] = []

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == self._step:
            raise KeyboardInterrupt

    def on_artifact(self, path: Path) -> None:
        self.files.append(path)


@dataclass
class Watched:
    """A run with everything on that was stopped and gone on with, and the same run with everything off."""

    run: Run
    plain: Run
    files: list[Path]
    collectives: Counter[str]
    """How often each file of ours had the workers exchange something in the first session's three steps."""


@pytest.fixture(scope="module")
def watched(tiny_model: Path, small_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    root, small = tmp_path_factory.mktemp("watched"), tiny_on_cpu()
    base = replace(small, model=replace(small.model, base=str(tiny_model)))
    on = replace(base.watch, skip_spikes=True, spike_factor=1e6, spike_window=2, profile_step=2)
    off = replace(base.watch, spike_factor=0.0, timestep_bins=1)
    run, plain = (run_of(base, watch, small_dataset, root / name) for name, watch in (("on", on), ("off", off)))
    stop = StopAfter(3)
    with pytest.MonkeyPatch.context() as patch:
        counted = count_collectives(patch)
        with pytest.raises(KeyboardInterrupt):
            train(run, [*recorded(run), stop])
        collectives = Counter(counted)
    train(run, recorded(run))
    train(plain, recorded(plain))
    return Watched(run, plain, stop.files, collectives)


def run_of(recipe: Recipe, watch: Any, data: Path, out: Path) -> Run:  # noqa: ANN401
    out.mkdir()
    run = Run(name="tiny-on-cpu", data=data, out=out, recipe=replace(recipe, watch=watch))
    RunFolder(out).claim(run, "0")
    return run


def recorded(run: Run) -> list[Callback]:
    path = RunFolder(run.out).metrics
    return [Sessions(run.out / "sessions.jsonl", path), MetricsFile(path)]


def count_collectives(patch: pytest.MonkeyPatch) -> Counter[str]:
    counted: Counter[str] = Counter()
    for name in ("all_gather_into_tensor", "all_reduce", "all_gather_object", "broadcast", "all_gather"):
        original = getattr(dist, name)

        def counting(*arguments: Any, _original: Any = original, **options: Any) -> Any:  # noqa: ANN401
            caller = Path(inspect.stack()[1].filename)
            counted[f"{caller.parent.name}/{caller.name}"] += 1
            return _original(*arguments, **options)

        patch.setattr(dist, name, counting)
    return counted


def test_watching_changes_no_bit_of_a_healthy_run_stopped_or_not(watched: Watched):
    weights = [
        load_file(run.out / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
        for run in (watched.run, watched.plain)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    lines = [read_lines(run.out / "metrics.jsonl") for run in (watched.run, watched.plain)]
    for name in ("step", "loss", "grad_norm", "learning_rate", "samples_seen"):
        assert [line[name] for line in lines[0]] == [line[name] for line in lines[1]]


def test_losses_by_timestep_are_those_of_the_step_and_parts_without_a_sample_are_absent(watched: Watched):
    recipe = watched.run.recipe
    for line in read_lines(watched.run.out / "metrics.jsonl"):
        size = recipe.optimization.batch_size
        times = timesteps(recipe.seed, int(line["step"]) - 1, size, recipe.optimization.stratified_timesteps, 1000)
        counts = Counter(bin_name(bin_of(int(t), 5, 1000), 5, 1000) for t in times)
        found = {name: value for name, value in line.items() if name.startswith("loss/")}
        assert found.keys() == counts.keys()
        assert sum(found[name] * counts[name] for name in counts) / size == pytest.approx(line["loss"])


def test_a_step_takes_one_collective_of_ours(watched: Watched):
    assert watched.collectives["watching/meter.py"] == 3
    assert watched.collectives["watching/guard.py"] == 0


def test_the_times_of_the_phases_make_up_the_step(watched: Watched):
    for line in read_lines(watched.run.out / "metrics.jsonl"):
        parts = [line[f"{name}_seconds"] for name in ("data", "forward", "backward", "optimizer")]
        assert all(part > 0 for part in parts)
        assert sum(parts) <= line["step_seconds"]


def test_a_traced_step_leaves_a_chrome_trace_and_a_table_by_kind(watched: Watched):
    assert [path.name for path in watched.files] == ["step-00000002.txt", "step-00000002.json.gz"]
    table = watched.files[0].read_text()
    assert "CPU time of 2 steps" in table
    assert "GEMM" in table
    assert "attention" in table
    with gzip.open(watched.files[1]) as stream:
        assert json.load(stream)["traceEvents"]


def test_the_page_of_that_run_tells_of_its_restart(watched: Watched):
    record = RunRecord.read(watched.run.out)

    assert record.state == "finished"
    assert [(s.first, s.last, s.repeated) for s in record.sessions] == [(0, 3, 0), (2, 4, 1)]
    assert record.checkpoints[-1] == 4
    page = write_summary(watched.run.out).read_text()
    assert "model card" in page
    assert "A typical step" in page


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128", "attention"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("nvjet_hsh_256x128_64x4_2x1_v_bz_coopA_NNT", "GEMM"),
        ("aten::addmm", "GEMM"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "GEMM"),
        ("triton_poi_fused_add_mul_3", "elementwise"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add>", "elementwise"),
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL", "communication"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("my_kernel", "other"),
    ],
)
def test_kernels_are_told_apart_by_their_names(name: str, kind: str):
    assert kind_of(name) == kind


def test_the_table_sums_kernels_of_a_kind_per_step():
    kernels = [Kernel("aten::mm", 30.0, 6), Kernel("aten::addmm", 10.0, 2), Kernel("aten::mul", 10.0, 4)]
    lines = table_text(kernels, 2, "GPU").splitlines()
    assert lines[0] == "GPU time of 2 steps, 25.0 ms a step"
    assert lines[3].split() == ["20.000", "80.0%", "4", "GEMM"]


def test_a_trace_that_finds_no_place_costs_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "profile").write_text("a file where the folder should be")
    trace = Trace(1, Place(0, 1, torch.device("cpu")), tmp_path, [])
    for step in (1, 2):
        trace.before(step)
        trace.after(step, 3)

    assert "the trace up to step 2 could not be written" in caplog.text


def test_progress_says_what_is_left_by_the_median_of_the_last_steps():
    shown = Progress(steps=1000, log_every=1)
    metrics = {"loss": 0.5, "grad_norm": 1.0, "tokens_per_second": 10.0, "mfu": 0.42}
    for step, seconds in ((1, 60.0), (2, 2.0), (3, 2.0)):
        shown.on_step(step, metrics | {"step_seconds": seconds})
    line = shown.line(4, metrics | {"step_seconds": 2.0})

    assert "MFU 42.0 %" in line
    assert line.endswith("33 min left")
    assert [duration(s) for s in (45, 7200, 400_000)] == ["45 s", "2 h 0 min", "4 d 15 h"]
