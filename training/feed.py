"""What a worker is fed: the micro-batches of each optimizer step, read ahead while the device works."""

from __future__ import annotations

from collections.abc import Iterator

from dynamictrl.animation import DynamiCtrlPipeline
from dynamictrl.conditioning import PromptEncoder
from dynamictrl.encodings import EncodedBy, folder_hash
from dynamictrl.weights import resolve
from training.batches import Batch, Collator, FrozenModels, Loader, image_scale
from training.checkpoint import RunFolder
from training.config import Run
from training.data import Draw, Index, Order, build_index, positions, timesteps
from training.parallel import Place


def index_of(run: Run) -> Index:
    """The clips that a run trains on, with precomputed encodings where they are of its own base and sizes."""
    index = build_index(run.data, run.recipe.clips)
    if not index.has_encodings or run.recipe.model.pose_encoding == "expert":
        return index  # encodings hold the VAE's view of the poses, which an expert encoder has no use for
    base, clips = resolve(run.recipe.model.base), run.recipe.clips
    encoded_by = EncodedBy(
        Order(run.recipe.seed, clips, index.entries).window(0),
        folder_hash(base / "vae"),
        folder_hash(base / "text_encoder"),
        clips.masked_reference,
    )
    return build_index(run.data, clips, encoded_by)


class Feed:
    """The micro-batches of one worker; a pure function of (run, data, step) but for the time it takes."""

    def __init__(self, run: Run, place: Place, pipeline: DynamiCtrlPipeline, num_timesteps: int):
        """`pipeline` brings the frozen models; `num_timesteps` is the schedule's length."""
        recipe, config = run.recipe, pipeline.transformer.config
        self.index = index_of(run)
        self._recipe, self._place, self._num_timesteps = recipe, place, num_timesteps
        frozen = _frozen_models(pipeline, place)
        shared = RunFolder(run.out).encodings if recipe.clips.share_encodings else None
        self._order = Order(recipe.seed, recipe.clips, self.index.entries)
        self._loader = Loader(self._order, frozen, recipe.clips, shared)
        self._collate = Collator(frozen, recipe.clips, config["patch_size_t"], place.device)

    def batches(self, step: int) -> Iterator[Batch]:
        """This worker's micro-batches of the optimizer step `step`, counted from 0."""
        optimization, place = self._recipe.optimization, self._place
        size, micro = optimization.batch_size, optimization.micro_batch_size
        times = timesteps(self._recipe.seed, step, size, optimization.stratified_timesteps, self._num_timesteps)
        mine = positions(step, size, place.data_rank, place.data_size)
        self._loader.prefetch(positions(step + 1, size, place.data_rank, place.data_size))
        for first in range(0, len(mine), micro):
            taken = mine[first : first + micro]
            samples = list(self._loader.load(taken))
            yield self._collate(samples, [int(times[position - step * size]) for position in taken])

    def shown(self, step: int) -> list[Draw]:
        """What this worker's samples of the optimizer step `step` are, in the order of `batches`."""
        mine = positions(step, self._recipe.optimization.batch_size, self._place.data_rank, self._place.data_size)
        return [self._order.draw(position) for position in mine]

    def close(self) -> None:
        """Stops reading ahead."""
        self._loader.close()


def _frozen_models(pipeline: DynamiCtrlPipeline, place: Place) -> FrozenModels:
    length = pipeline.transformer.config["max_text_seq_length"]
    prompts = PromptEncoder(pipeline.tokenizer, pipeline.text_encoder.to(place.device), length)
    vae = pipeline.vae.to(place.device)
    scale = image_scale(vae, pipeline.config["image_latent_rule"])
    return FrozenModels(vae, prompts, scale, encodes_pose=pipeline.pose_encoder is None)
