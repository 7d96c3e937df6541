"""What training waits for its data: samples per second of the feed alone, the wait beside a step, and a start's scan.

    python -m tests.benchmarks.training_data --shape 5b --device cuda               # precomputed encodings
    python -m tests.benchmarks.training_data --shape 5b --device cuda --image-noise # and the true VAE's reference
    python -m tests.benchmarks.training_data --shape tiny                           # does it run at all
    python -m tests.benchmarks.training_data --shape tiny --index 20000             # the scan at 20,000 samples

Random encodings at the true shapes in shards (`training_pieces`), read through the trainer's own `Feed`; the model
is one layer, since only its config counts here. The wait is what `next()` takes on the training thread while a step of
`--step-seconds` goes on: on CUDA the device is kept busy by matrix products of that length, else the thread sleeps.
`slower` is how much longer the products take with the feed beside them. A few samples are read again and again, so they
come from the page cache: a disk must bring samples per second x MB a sample (printed) besides.
"""

from __future__ import annotations

import argparse
import json
import platform
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from dynamictrl.samples import shards
from tests.benchmarks.training_pieces import SHAPES, Shape, recipe_for, write_base, write_data
from training.config import Run
from training.engine import starting_weights
from training.engine.parallel import Place
from training.samples import shard_scan
from training.samples.batches import Batch
from training.samples.data import build_index
from training.samples.feed import Feed
from training.settings.clips import Clips

PRODUCT = 8192
"""Rows and columns of the matrices that keep the device busy."""


def main() -> None:
    args = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="training-data-", dir=args.work))
    if args.index:
        measure_index(folder / "index", args.index)
        return
    device = torch.device(args.device if args.device == "cpu" else "cuda:0")
    shape = _small_model(SHAPES[args.shape])
    base = write_base(folder / "base", shape, device)
    data = write_data(folder / "data", shape, base, args.samples)
    shard = next((data / "shards").glob("*.tar"))
    size = shard_scan.scan_shard(shard)[0].latents_bytes / 1e6
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(
        f"{args.shape} on {name}, {args.samples} samples of {size:.1f} MB of encodings, image noise {args.image_noise}"
    )
    recipe = recipe_for(shape, base, device=args.device)
    recipe = replace(
        recipe,
        clips=replace(recipe.clips, image_noise=args.image_noise, encodings="precomputed", windows_per_clip=1),
        optimization=replace(recipe.optimization, batch_size=args.accumulation),
    )
    print("threads  ahead  samples/s alone  wait ms/step  stall %  slower %")
    for threads in map(int, args.threads.split(",")):
        for ahead in map(int, args.ahead.split(",")):
            run = Run(name="benchmark", data=data, out=_new(folder / f"run-{threads}-{ahead}"), recipe=recipe)
            measure_feed(run, threads, ahead, device, args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="5b", choices=sorted(SHAPES))
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--samples", type=int, default=16, help="samples written; read again and again")
    parser.add_argument("--threads", default="0,1,2,4", help="loader threads to try")
    parser.add_argument("--ahead", default="0,2", help="micro-batches made ahead to try")
    parser.add_argument("--steps", type=int, default=12, help="steps measured, after three")
    parser.add_argument("--step-seconds", type=float, default=2.4)
    parser.add_argument("--accumulation", type=int, default=2, help="micro-batches of one clip a step")
    parser.add_argument("--image-noise", action="store_true", help="references are encoded anew; on CUDA by a true VAE")
    parser.add_argument("--index", type=int, default=0, help="measure a start at so many samples instead")
    parser.add_argument("--work", help="folder to write to")
    return parser.parse_args()


def _small_model(shape: Shape) -> Shape:
    return replace(shape, config=dict(shape.config) | {"num_layers": 1, "num_attention_heads": 2})


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def measure_feed(run: Run, threads: int, ahead: int, device: torch.device, args: argparse.Namespace) -> None:
    """Prints one line: the feed alone, then beside steps."""
    recipe = replace(run.recipe, clips=replace(run.recipe.clips, loader_threads=threads))
    alone = _seconds_alone(replace(run, recipe=recipe), ahead, device, args)
    step = _busy(device, args.step_seconds)
    without = mean(_timed(step) for _ in range(3))
    waits, steps = _beside_steps(replace(run, recipe=recipe), ahead, device, args, step)
    per_step = mean(waits) * args.accumulation
    whole = mean(steps) * args.accumulation + per_step
    print(
        f"{threads:>7}  {ahead:>5}  {1 / alone:>15.1f}  {1000 * per_step:>12.2f}  {100 * per_step / whole:>7.3f}  "
        f"{100 * (mean(steps) / without - 1):>8.2f}",
        flush=True,
    )


def _feed(run: Run, ahead: int, device: torch.device, noisy: bool) -> Feed:
    pipeline = starting_weights.load(run.recipe)
    if noisy and device.type == "cuda":
        from diffusers import AutoencoderKLCogVideoX

        vae = AutoencoderKLCogVideoX(scaling_factor=0.7).requires_grad_(False).eval()
        pipeline.vae = vae.to(dtype=torch.bfloat16)  # pyright: ignore[reportCallIssue]
    return Feed(run, Place(0, 1, device), pipeline, 1000, batches_ahead=ahead)


def _seconds_alone(run: Run, ahead: int, device: torch.device, args: argparse.Namespace) -> float:
    """Seconds a sample where nothing else happens."""
    feed = _feed(run, ahead, device, args.image_noise)
    batches = _endless(feed)
    for _ in range(3 * args.accumulation):
        next(batches)
    count = args.steps * args.accumulation
    seconds = _timed(lambda: ([next(batches) for _ in range(count)], _wait(device)))
    feed.close()
    return seconds / count


def _beside_steps(
    run: Run, ahead: int, device: torch.device, args: argparse.Namespace, step: Callable[[], None]
) -> tuple[list[float], list[float]]:
    """Of each micro-batch: seconds that the training thread waited for it, and that the step's share took."""
    feed = _feed(run, ahead, device, args.image_noise)
    batches = _endless(feed)
    waits, steps = [], []
    for number in range((args.steps + 3) * args.accumulation):
        waited = _timed(lambda: (next(batches), _wait_for_own(device)))
        took = _timed(step)
        if number >= 3 * args.accumulation:
            waits.append(waited)
            steps.append(took)
    feed.close()
    return waits, steps


def _endless(feed: Feed) -> Iterator[Batch]:
    step = 0
    while True:
        yield from feed.batches(step)
        step += 1


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _wait_for_own(device: torch.device) -> None:
    """Until the training stream may use the batch; what is made ahead goes on beside."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _busy(device: torch.device, seconds: float) -> Callable[[], None]:
    """Work that takes so long: matrix products on the device, or sleep."""
    if device.type == "cpu":
        return lambda: time.sleep(seconds)
    one = torch.randn(PRODUCT, PRODUCT, device=device, dtype=torch.bfloat16)

    def products(count: int) -> None:
        for _ in range(count):
            torch.matmul(one, one)
        torch.cuda.current_stream(device).synchronize()

    products(50)
    each = _timed(lambda: products(200)) / 200
    return lambda: products(max(1, round(seconds / each)))


def measure_index(folder: Path, count: int) -> None:
    """Prints what a start takes: the scan by tarfile, ours, and with a run's kept scan."""
    _write_small_samples(folder, count)
    dataset, kept = shards.open_dataset(folder), folder / shard_scan.KEPT
    print(f"{count:,} samples in {len(dataset.shards)} shards, in the page cache")
    print(f"by tarfile, one shard after another  {_timed(lambda: list(map(_tarfile_scan, dataset.shards))):8.2f} s")
    print(f"headers alone                        {_timed(lambda: shard_scan.scan(dataset)):8.2f} s")
    scanned = shard_scan.scan(dataset)
    print(f"keeping it                           {_timed(lambda: shard_scan.keep(scanned, kept)):8.2f} s")
    print(f"kept                                 {_timed(lambda: shard_scan.scan(dataset, kept)):8.2f} s")
    one, four = Clips(), Clips(buckets=("37x1360x768", "25x1360x768", "37x768x1360", "25x768x1360"))
    for name, clips in (("one size", one), ("four buckets", four)):
        seconds = _timed(lambda clips=clips: build_index(folder, clips, row=32, kept=kept))
        print(f"whole index from what is kept, {name:<14}{seconds:.2f} s")


def _write_small_samples(folder: Path, count: int) -> None:
    """Samples with descriptions as long as curation's, and hardly any pictures."""
    mask = shards.pack_mask(np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4), np.uint8))
    info = {"schema_version": shards.SCHEMA_VERSION, "fps": 24.0, "frames": 120, "source": "x" * 200}
    info["scores"] = {f"score_{n}": 0.5 for n in range(40)}
    described = json.dumps({"window": {"start": 0}, "vae_sha256": "a" * 64, "text_encoder_sha256": "b" * 64})
    head = json.dumps({"__metadata__": {"encoded_by": described}}).encode()
    common = {
        "mp4": bytes(20_000),
        "pose.npz": bytes(3_000),
        "mask.npz": mask,
        "txt": b"caption " * 20,
        shards.LATENTS: len(head).to_bytes(8, "little") + head + bytes(3_000),
    }

    def sample(number: int) -> shards.Sample:
        size = {"height": 1080, "width": 1920} if number % 2 else {"height": 1920, "width": 1080}
        return shards.Sample(f"{number:032x}", common | {"json": json.dumps(info | size).encode()})

    for number, first in enumerate(range(0, count, 1000)):
        path = folder / "shards" / shards.SHARD_NAME.format(number)
        shards.write_shard(path, map(sample, range(first, min(first + 1000, count))))
    shards.write_json(folder / "dataset.json", {"schema_version": shards.SCHEMA_VERSION})


def _tarfile_scan(shard: Path) -> None:
    """The first release's way."""
    with tarfile.open(shard) as tar:
        for header in tar:
            extension = header.name.partition(".")[2]
            content = tar.extractfile(header) if extension in ("json", shards.LATENTS) else None
            if content is not None:
                content.read(65536)


if __name__ == "__main__":
    main()
