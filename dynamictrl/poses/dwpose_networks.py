"""DWPose's two models as onnxruntime runs them: one by one as published, or in batches of bytes for a GPU.

| | as published (`Detector`, `PoseModel`) | in batches (`BatchedDetector`, `BatchedPoseModel`) |
|---|---|---|
| detector | one frame, float32 | `Acceleration.frames` frames, uint8 |
| pose | 8 crops, float32, normalised | `Acceleration.crops` crops, uint8, normalised in the graph |
| answers | all 85 numbers a cell, both heat maps | 6 numbers a cell, the peaks of the heat maps |
| bits | the same on any CPU with one thread | rounding differs with the batch |

A last batch is filled up with black, so that shapes stay as they were: each new shape costs a search of kernels. Plain
`run` calls serve: with bytes going up and peaks coming down, and two batches under way, there is nothing for bound
device memory to save; CUDA graphs would, for small batches alone, and want files without any CPU operation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynamictrl.errors import CheckpointError, ConfigError
from dynamictrl.poses.dwpose_pictures import (
    BOX_CHANNELS,
    CROP_HEIGHT,
    CROP_WIDTH,
    DETECTOR_SIDE,
    MEAN,
    STD,
    Array,
    Image,
    crop_bytes,
    crop_person,
    decode_peaks,
    decode_simcc,
    letterbox,
    letterbox_bytes,
    person_boxes,
    sighting,
)
from dynamictrl.poses.onnx_edit import OnnxGraph
from dynamictrl.poses.pose_tracking import Sighting

if TYPE_CHECKING:
    import onnxruntime

logger = logging.getLogger(__name__)

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_SAME = 0.2
"""What rounding may do, as a share of what two pictures differ by. GPUs convolve in TF32, which keeps ten bits."""


@dataclass(frozen=True)
class Acceleration:
    """How a GPU is kept busy. Changes how fast and, but for rounding, not what."""

    frames: int = 16
    """A run of the detector."""
    crops: int = 32
    """A run of the pose model."""
    at_once: int = 2
    """Runs of each model under way: one computes while another's pictures go up."""
    threads: int = 6
    """That shrink and cut pictures."""
    search: Literal["HEURISTIC", "EXHAUSTIVE", "DEFAULT"] = "HEURISTIC"
    """How cuDNN's kernels are chosen. EXHAUSTIVE tries them all: 9 s more at the start, no faster on an H200."""
    channels_last: bool = False
    """Lay pictures out as tensor cores like them: 6 % faster on an H200, 20 s more at the start."""

    tf32: bool = True
    """Convolve with ten bits, as onnxruntime does by itself: joints whose place is a toss-up may lie elsewhere."""

    def options(self) -> dict[str, str]:
        """As onnxruntime's CUDA provider takes them."""
        flags = {"prefer_nhwc": self.channels_last, "use_tf32": self.tf32}
        return {"cudnn_conv_algo_search": self.search, **{name: str(int(flag)) for name, flag in flags.items()}}


def check_provider(provider: str) -> None:
    """Raises ConfigError where onnxruntime cannot run on the device asked for; nothing falls back in silence."""
    import onnxruntime

    if provider not in _PROVIDERS:
        raise ConfigError(f"provider is {provider!r}; it must be one of {sorted(_PROVIDERS)}", param="provider")
    there = onnxruntime.get_available_providers()
    if _PROVIDERS[provider] not in there:
        raise ConfigError(
            f"provider is {provider!r}, but this onnxruntime offers {there}. Install onnxruntime-gpu on a machine with "
            f"CUDA, or choose provider='cpu'.",
            code="provider_missing",
            param="provider",
        )


def open_session(
    path: Path,
    provider: str,
    num_threads: int | None,
    *,
    model: bytes | None = None,
    options: Mapping[str, str] | None = None,
) -> onnxruntime.InferenceSession:
    """An onnxruntime session that runs on the provider asked for, or ConfigError.

    `model` is what to run where it is not the file as it lies; `options` are the CUDA provider's.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if provider == "cuda":
        load_cuda_libraries()
    if num_threads is not None:
        settings.intra_op_num_threads = num_threads
    wanted = _PROVIDERS[provider]
    chosen = (wanted, dict(options)) if options and provider == "cuda" else wanted
    session = onnxruntime.InferenceSession(model or str(path), settings, providers=[chosen])
    if session.get_providers()[0] != wanted:
        raise ConfigError(
            f"{path.name} was to run on {wanted}, but onnxruntime chose {session.get_providers()}; check the CUDA and "
            f"cuDNN libraries, or choose provider='cpu'.",
            code="provider_missing",
            param="provider",
        )
    return session


def load_cuda_libraries() -> None:
    """Loads CUDA and cuDNN from the wheels that come with torch, wherever they are, or from the system.

    onnxruntime looks beside itself alone, but Python packages may lie in several folders.
    """
    import onnxruntime

    spec = find_spec("nvidia")
    roots = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    folders = [str(folder) for root in roots for folder in sorted(Path(root).glob("*/lib"))]
    # It prints what it does not find; the session says whether anything was missed.
    with redirect_stdout(StringIO()):
        for folder in folders or [None]:
            onnxruntime.preload_dlls(directory=folder)


class Frame(NamedTuple):
    """A frame on its way to the detector."""

    pixels: Image
    """[H, W, 3], as it came."""
    picture: NDArray[Any]
    ratio: float
    """Size of the picture over that of the frame."""


class Crop(NamedTuple):
    """One person of one frame on the way to the pose model."""

    box: Array
    picture: NDArray[Any]
    place: Array
    """[2, 2]: centre and size in the frame."""


class Detector:
    """Finds persons in one frame at a time."""

    batch_size = 1

    def __init__(self, path: Path, provider: str, num_threads: int | None):
        self._session = open_session(path, provider, num_threads)
        self._input = self._session.get_inputs()[0].name

    def prepare(self, pixels: Image) -> Frame:
        return Frame(pixels, *letterbox(pixels))

    def run(self, frames: Sequence[Frame]) -> list[tuple[Array, Array]]:
        """Boxes and scores of each frame's persons, as `person_boxes` has them."""
        answers = [self._session.run(None, {self._input: frame.picture})[0] for frame in frames]
        return [person_boxes(np.asarray(a)[0], frame.ratio) for a, frame in zip(answers, frames, strict=True)]


class PoseModel:
    """Places the joints of some persons at a time."""

    def __init__(self, path: Path, provider: str, num_threads: int | None, batch_size: int):
        self._session = open_session(path, provider, num_threads)
        self._input = self._session.get_inputs()[0].name
        fixed = self._session.get_inputs()[0].shape[0]
        self.batch_size = fixed if isinstance(fixed, int) else batch_size

    def prepare(self, pixels: Image, box: Array) -> Crop:
        return Crop(box, *crop_person(pixels, box))

    def run(self, crops: Sequence[Crop]) -> list[Sighting]:
        pictures = np.stack([crop.picture for crop in crops])
        simcc_x, simcc_y = self._session.run(None, {self._input: pictures})
        return sightings(crops, *decode_simcc(np.asarray(simcc_x), np.asarray(simcc_y)))


def sightings(crops: Sequence[Crop], points: Array, scores: Array) -> list[Sighting]:
    """One for each crop; `points` and `scores` may hold more than there are crops."""
    return [sighting(c.box, c.place, p, s) for c, p, s in zip(crops, points, scores, strict=False)]


class Batched:
    """A model file changed to take batches of uint8 [N, H, W, 3] and to answer briefly.

    `change` is what is done to the graph; it is undone in nothing but speed. A file made for a fixed batch is freed of
    it; where the result does not hold up, it runs as it was made, and `note` says so.
    """

    note = ""

    def __init__(
        self,
        path: Path,
        provider: str,
        num_threads: int | None,
        size: tuple[int, int],
        batch_size: int,
        change: Callable[[OnnxGraph], None],
        options: Mapping[str, str],
    ):
        self._size = size
        self.batch_size = batch_size
        self._buffers: SimpleQueue[Image] = SimpleQueue()
        """Used again: memory fresh from the system costs more to touch than to fill."""

        def opened(free: bool) -> onnxruntime.InferenceSession:
            graph = OnnxGraph.parse(path.read_bytes())
            if free and graph.batch() is not None:
                graph.free_batch()
            change(graph)
            return open_session(path, provider, num_threads, model=graph.to_bytes(), options=options)

        try:
            self._session = opened(free=True)
            self._check()
        except (ConfigError, CheckpointError):
            raise
        except Exception as problem:  # noqa: BLE001 - whatever onnxruntime has against it
            self.note = f"{path.name} has a fixed batch and cannot be freed of it ({str(problem)[:200]})"
            logger.warning("%s; it runs as it is, which is slower", self.note)
            self.batch_size = OnnxGraph.parse(path.read_bytes()).batch() or 1
            self._buffers = SimpleQueue()
            self._session = opened(free=False)

    def _check(self) -> None:
        """Each picture of a batch gets the answer that it gets alone. Also warms up what a first run is slow at."""
        import onnxruntime

        quiet = onnxruntime.RunOptions()
        quiet.log_severity_level = 4
        noise = np.random.default_rng(0).integers(0, 256, (*self._size, 3), np.uint8)
        pictures = [noise, np.zeros_like(noise)][: self.batch_size]
        together = self.run(pictures, quiet)[0]
        alone = [np.asarray(self._session.run(None, {"pixels": p[None]}, quiet)[0])[0] for p in pictures]
        different = np.linalg.norm(alone[0] - alone[-1])
        for index, answer in enumerate(alone):
            wrong = np.linalg.norm(together[index] - answer)
            if len(alone) > 1 and not wrong <= _SAME * different:
                raise ValueError(f"picture {index} of a batch is answered otherwise than alone")

    def run(self, pictures: Sequence[Image], options: onnxruntime.RunOptions | None = None) -> list[NDArray[Any]]:
        """The outputs of a full batch; those behind the pictures given are of black ones."""
        try:
            batch = self._buffers.get_nowait()
        except Empty:
            batch = np.zeros((self.batch_size, *self._size, 3), np.uint8)
        for place, picture in zip(batch, pictures, strict=False):
            place[:] = picture
        batch[len(pictures) :] = 0
        try:
            return [np.asarray(output) for output in self._session.run(None, {"pixels": batch}, options)]
        finally:
            self._buffers.put(batch)


def open_detector(
    path: Path, provider: str, num_threads: int | None, how: Acceleration | None
) -> Detector | BatchedDetector:
    """In batches where that is asked for and the file's graph can be changed."""
    if how is not None:
        try:
            return BatchedDetector(path, provider, num_threads, how)
        except CheckpointError as problem:
            logger.warning("%s runs as published, which is slower: %s", path.name, problem)
    return Detector(path, provider, num_threads)


def open_pose_model(
    path: Path, provider: str, num_threads: int | None, how: Acceleration | None, batch_size: int
) -> PoseModel | BatchedPoseModel:
    """As `open_detector`; `batch_size` is for one as published."""
    if how is not None:
        try:
            return BatchedPoseModel(path, provider, num_threads, how)
        except CheckpointError as problem:
            logger.warning("%s runs as published, which is slower: %s", path.name, problem)
    return PoseModel(path, provider, num_threads, batch_size)


class BatchedDetector:
    """Finds persons in many frames at a time."""

    def __init__(self, path: Path, provider: str, num_threads: int | None, how: Acceleration):
        def change(graph: OnnxGraph) -> None:
            graph.feed_bytes(DETECTOR_SIDE, DETECTOR_SIDE)
            graph.keep_channels(BOX_CHANNELS)

        side = (DETECTOR_SIDE, DETECTOR_SIDE)
        self._network = Batched(path, provider, num_threads, side, how.frames, change, how.options())
        self.batch_size, self.note = self._network.batch_size, self._network.note

    def prepare(self, pixels: Image) -> Frame:
        return Frame(pixels, *letterbox_bytes(pixels))

    def run(self, frames: Sequence[Frame]) -> list[tuple[Array, Array]]:
        (raw,) = self._network.run([frame.picture for frame in frames])
        return [person_boxes(one, frame.ratio) for one, frame in zip(raw, frames, strict=False)]


class BatchedPoseModel:
    """Places the joints of many persons at a time."""

    def __init__(self, path: Path, provider: str, num_threads: int | None, how: Acceleration):
        def change(graph: OnnxGraph) -> None:
            graph.feed_bytes(CROP_HEIGHT, CROP_WIDTH, MEAN.tolist(), STD.tolist())
            graph.keep_peaks()

        size = (CROP_HEIGHT, CROP_WIDTH)
        self._network = Batched(path, provider, num_threads, size, how.crops, change, how.options())
        self.batch_size, self.note = self._network.batch_size, self._network.note

    def prepare(self, pixels: Image, box: Array) -> Crop:
        return Crop(box, *crop_bytes(pixels, box))

    def run(self, crops: Sequence[Crop]) -> list[Sighting]:
        peak_x, place_x, peak_y, place_y = self._network.run([crop.picture for crop in crops])
        places = np.concatenate([place_x, place_y], axis=-1)
        return sightings(crops, *decode_peaks(places, np.minimum(peak_x, peak_y)[..., 0]))
