"""What a worker is fed: the micro-batches of each optimizer step, made ready while the device works.

Files are read and poses drawn by the loader's threads. On CUDA a thread of its own makes the next micro-batches, on a
stream of its own: it parses, draws, copies, and runs the frozen models where something is still to be encoded. On the
CPU that is done between the steps, where it takes no core from them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import chain, count, islice

import torch

from dynamictrl.animation import DynamiCtrlPipeline
from dynamictrl.conditioning import PromptEncoder
from dynamictrl.lookahead import Prefetched
from training.config import Run
from training.engine.parallel import Place
from training.run_folder import RunFolder
from training.samples.arrangement import micro_batches, timesteps
from training.samples.batches import Batch, Collator
from training.samples.buckets import block_flop
from training.samples.data import Index, index_of
from training.samples.frozen_models import FrozenModels, image_scale
from training.samples.loader import Loader
from training.samples.order import Draw, Order
from training.samples.skipped_samples import SkippedSamples

logger = logging.getLogger(__name__)

Made = tuple[Batch, torch.cuda.Event | None]
"""A micro-batch and, on CUDA, the moment from which it is whole."""


class Feed:
    """The micro-batches of one worker; a pure function of (run, data, step) but for the time it takes."""

    def __init__(
        self,
        run: Run,
        place: Place,
        pipeline: DynamiCtrlPipeline,
        num_timesteps: int,
        *,
        batches_ahead: int | None = None,
    ):
        """`pipeline` brings the frozen models; `num_timesteps` is the schedule's length.

        `batches_ahead` are made by a thread before their turn; unless said, the recipe's on CUDA, none on the CPU.
        """
        recipe, config = run.recipe, pipeline.transformer.config
        self.index = index_of(run)
        if place.is_first:
            self.index.keep(run.out)
        self._recipe, self._place, self._num_timesteps = recipe, place, num_timesteps
        frozen = _frozen_models(pipeline, place, self.index)
        costs = {bucket: block_flop(bucket, config) for bucket in recipe.clips.sizes}
        self.order = Order(recipe.seed, recipe.clips, self.index.entries, recipe.optimization.batch_size, costs)
        shared = RunFolder(run.out).encodings if recipe.clips.share_encodings else None
        skipped = SkippedSamples(run.out, recipe.clips.max_bad_samples)
        self._loader = Loader(self.order, frozen, recipe.clips, shared, skipped)
        self._collate = Collator(frozen, recipe.clips, config["patch_size_t"], place.device)
        wished = recipe.clips.batches_ahead if place.device.type == "cuda" else 0
        self._depth = min(wished if batches_ahead is None else batches_ahead, len(self._positions(0)))
        self._steps_ahead = range(0)
        self._ahead: Prefetched[Made] | None = None
        self._waiting: Iterator[Made] = iter(())

    def batches(self, step: int) -> Iterator[Batch]:
        """This worker's micro-batches of the optimizer step `step`, counted from 0."""
        if not self._depth:
            yield from (batch for batch, _ in self._made(step))
            return
        if not self._steps_ahead or step != self._steps_ahead[0]:
            self._start_ahead(step)
        self._steps_ahead = self._steps_ahead[1:]
        for batch, ready in islice(self._waiting, len(self._positions(step))):
            if ready is not None:
                _take_over(batch, ready, self._place.device)
            yield batch

    def shown(self, step: int) -> list[Draw]:
        """What this worker's samples of the optimizer step `step` are, in the order of `batches`.

        Of a sample that could not be read it names the first choice, not what stood in for it.
        """
        return [self.order.draw(position) for position in chain.from_iterable(self._positions(step))]

    def close(self) -> None:
        """Stops reading and making ahead."""
        if self._ahead is not None:
            self._ahead.close()
        self._loader.close()

    def _start_ahead(self, step: int) -> None:
        if self._ahead is not None:
            self._ahead.close()
        self._steps_ahead = range(step, max(step + 1, self._recipe.optimization.steps))
        self._ahead = Prefetched(self._made_on_own_stream(self._steps_ahead), self._depth)
        self._waiting = iter(self._ahead)

    def _made_on_own_stream(self, steps: range) -> Iterator[Made]:
        """Run by the thread that makes micro-batches."""
        device = self._place.device
        if device.type != "cuda":
            yield from chain.from_iterable(map(self._made, steps))
            return
        torch.cuda.set_device(device)
        with torch.cuda.stream(torch.cuda.Stream(device)):
            for batch, _ in chain.from_iterable(map(self._made, steps)):
                ready = torch.cuda.Event()
                ready.record()
                yield batch, ready

    def _made(self, step: int) -> Iterator[Made]:
        """The micro-batches of a step, made here and now; the files of the ones after are read meanwhile."""
        optimization, size = self._recipe.optimization, self._recipe.optimization.batch_size
        times = timesteps(self._recipe.seed, step, size, optimization.stratified_timesteps, self._num_timesteps)
        for turn, positions in enumerate(self._positions(step)):
            coming = islice(chain.from_iterable(map(self._positions, count(step))), turn, None)
            self._loader.prefetch(islice(chain.from_iterable(coming), self._files_ahead))
            samples = list(self._loader.load(positions))
            yield self._collate(samples, [int(times[position - step * size]) for position in positions]), None

    @property
    def _files_ahead(self) -> int:
        """Samples read before their turn: two rounds of the threads, a micro-batch at least."""
        return max(2 * self._recipe.clips.loader_threads, self._recipe.optimization.micro_batch_size)

    def _positions(self, step: int) -> list[range]:
        optimization, place = self._recipe.optimization, self._place
        return micro_batches(
            step, optimization.batch_size, optimization.micro_batch_size, place.data_rank, place.data_size
        )


def _take_over(batch: Batch, ready: torch.cuda.Event, device: torch.device) -> None:
    """Lets this thread's stream use what another stream has made, and keeps its memory until then."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(ready)
    for tensor in batch.tensors():
        tensor.record_stream(stream)


def _frozen_models(pipeline: DynamiCtrlPipeline, place: Place, index: Index) -> FrozenModels:
    length = pipeline.transformer.config["max_text_seq_length"]
    prompts = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder.to(place.device), length)
    if index.all_encoded:
        # Of the text encoder only the empty prompt is needed, and it is as large as the transformer.
        _ = prompts.empty
        pipeline.text_encoder.to("cpu")
    else:
        logger.info("clips are encoded on the way: %s", _missing(index))
    vae = pipeline.vae.to(place.device)
    scale = image_scale(vae, pipeline.config["image_latent_rule"])
    return FrozenModels(vae, prompts, scale, encodes_pose=pipeline.pose_encoder is None)


def _missing(index: Index) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in index.unused_encodings.items())
    return reasons or "no encodings are used"
