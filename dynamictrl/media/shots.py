"""Where one shot ends and the next begins: PySceneDetect's adaptive detector with a second opinion, or TransNetV2.

Each detector is fed every picture of a video in order (`add`) and says at the end which spans are shots (`shots`).
Frames inside a gradual transition belong to none.

The second opinion: colour changes at a cut, and also where stage lights change or a flash fires. What does not survive
a cut is texture: each block of the picture before is looked for nearby in the picture after, brightness and contrast
set aside. Measured on ten real clips at 256x144, the worst tenth of the blocks still correlates by 0.43 or more from
frame to frame within a shot, and the best across any two clips by 0.18.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from dynamictrl.errors import CheckpointError
from dynamictrl.media.video_damage import Span

if TYPE_CHECKING:
    from scenedetect import FrameTimecode

CLOCK = 1000.0
"""PySceneDetect counts frames; giving it milliseconds keeps a variable frame rate's true times."""
BLOCK = 32
"""Pixels; the side of a block that is looked for."""
REACH = 12
"""Pixels; how far around its place a block is looked for: 5 % of a width of 256 from one frame to the next."""
PLAIN = 2.0
"""Standard deviation (0 to 255) of a block's texture below which it proves nothing."""
WORST = 10
"""Per cent of the blocks that may be lost: a fast hand leaves its block, a cut takes all of them."""
FLASH = 6
"""Frames that a flash may last; the pictures on both sides of it are then of one shot."""


class ShotDetector(Protocol):
    """Told every picture of one video in order; a new one for each video."""

    def add(self, time: float, frame_HWC: NDArray[np.uint8]) -> None:
        """The next picture, RGB, and its time in seconds."""
        ...

    def shots(self, end: float) -> list[Span]:
        """The shots in order, none overlapping, `end` being when the last picture ends."""
        ...


class AdaptiveShots:
    """PySceneDetect's AdaptiveDetector, its candidates checked by `continuity`."""

    def __init__(self, *, threshold: float, window: int, least_change: float, shortest: float, same_shot: float):
        """`same_shot`: continuity from which on a candidate is no cut; above 1 every candidate is one."""
        from scenedetect import AdaptiveDetector

        # The shortest shot is kept here: a candidate that is none must not hide the cut that follows it.
        self._detector = AdaptiveDetector(
            adaptive_threshold=threshold, window_width=window, min_content_val=least_change, min_scene_len=0
        )
        self._shortest, self._same_shot = shortest, same_shot
        self._shown: deque[tuple[int, NDArray[np.uint8]]] = deque(maxlen=2 * FLASH + window + 4)
        """Time in milliseconds and picture, of the last ones."""
        self._open: list[int] = []
        """Candidates, milliseconds, whose other side is not complete."""
        self._cuts: list[int] = []

    def add(self, time: float, frame_HWC: NDArray[np.uint8]) -> None:
        from scenedetect import FrameTimecode

        now = round(time * CLOCK)
        found: list[FrameTimecode] = self._detector.process_frame(FrameTimecode(now, fps=CLOCK), frame_HWC[:, :, ::-1])
        self._shown.append((now, frame_HWC))
        self._open += [cut.frame_num for cut in found]
        while self._open and sum(t >= self._open[0] for t, _ in self._shown) > FLASH:
            self._judge(self._open.pop(0))

    def shots(self, end: float) -> list[Span]:
        for candidate in self._open:
            self._judge(candidate)
        bounds = [0.0, *(cut / CLOCK for cut in self._cuts), end]
        return [Span(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]

    def _judge(self, candidate: int) -> None:
        last = self._cuts[-1] if self._cuts else 0
        if (candidate - last) / CLOCK >= self._shortest and not self._goes_on(candidate):
            self._cuts.append(candidate)

    def _goes_on(self, candidate: int) -> bool:
        """Whether some picture before and one after, a flash's length apart at most, show the same."""
        if self._same_shot > 1:
            return False
        before = [texture(frame) for t, frame in self._shown if t < candidate][: -FLASH - 1 : -1]
        after = [texture(frame) for t, frame in self._shown if t >= candidate][:FLASH]
        pairs = [(0, 0), *((0, j) for j in range(1, FLASH)), *((i, 0) for i in range(1, FLASH))]
        return any(
            continuity(before[i], after[j]) >= self._same_shot for i, j in pairs if i < len(before) and j < len(after)
        )


def texture(frame_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[H, W, 3] RGB -> [H, W]: brightness without its slow changes, as lights and shadows make them."""
    import cv2

    grey_HW = cv2.cvtColor(frame_HWC, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.asarray(grey_HW - cv2.GaussianBlur(grey_HW, (0, 0), 6), np.float32)


def continuity(before_HW: NDArray[np.float32], after_HW: NDArray[np.float32]) -> float:
    """How much of one picture's texture is found nearby in another, 0 to 1: the correlation of the worst tenth of the
    textured blocks, each at its best place. 0 where there is no texture to compare.
    """
    import cv2

    height, width = before_HW.shape
    wide = cv2.copyMakeBorder(after_HW, REACH, REACH, REACH, REACH, cv2.BORDER_REFLECT)
    found: list[float] = []
    for y in range(0, height - BLOCK + 1, BLOCK):
        for x in range(0, width - BLOCK + 1, BLOCK):
            block = before_HW[y : y + BLOCK, x : x + BLOCK]
            if block.std() >= PLAIN:
                around = wide[y : y + BLOCK + 2 * REACH, x : x + BLOCK + 2 * REACH]
                found.append(float(cv2.matchTemplate(around, block, cv2.TM_CCOEFF_NORMED).max()))
    return max(0.0, float(np.percentile(found, WORST))) if found else 0.0


class TransNetShots:
    """TransNetV2 (arXiv 2008.04838) as ONNX: finds hard cuts and gradual transitions.

    The network sees 100 frames of 48x27 pixels at once, of which the middle 50 are believed: its authors' own way.
    """

    WINDOW, STEP, MARGIN = 100, 50, 25
    HEIGHT, WIDTH = 27, 48

    def __init__(self, network: TransNet, *, threshold: float, shortest: float):
        """`threshold`: probability from which on a frame belongs to a transition."""
        self._network, self._threshold, self._shortest = network, threshold, shortest
        self._times: list[float] = []
        self._frames: list[NDArray[np.uint8]] = []
        self._chances: list[NDArray[np.float32]] = []

    def add(self, time: float, frame_HWC: NDArray[np.uint8]) -> None:
        import cv2

        small = cv2.resize(frame_HWC, (self.WIDTH, self.HEIGHT), interpolation=cv2.INTER_AREA)
        self._times.append(time)
        self._frames += [np.asarray(small, np.uint8)] * (self.MARGIN + 1 if not self._frames else 1)
        self._look()

    def _look(self) -> None:
        while len(self._frames) >= self.WINDOW:
            chances = self._network(np.stack(self._frames[: self.WINDOW]))
            self._chances.append(chances[self.MARGIN : self.MARGIN + self.STEP])
            del self._frames[: self.STEP]

    def shots(self, end: float) -> list[Span]:
        missing = len(self._times) - sum(len(c) for c in self._chances)
        while missing > 0:
            self._frames += [self._frames[-1]] * (self.WINDOW - len(self._frames))
            self._look()
            missing -= self.STEP
        chances = np.concatenate(self._chances)[: len(self._times)] if self._times else np.zeros(0)
        return self._between(chances > self._threshold, end)

    def _between(self, moving_F: NDArray[np.bool_], end: float) -> list[Span]:
        """A shot ends with the first frame of a transition and begins behind its last one."""
        starts_ends: list[Span] = []
        began = 0.0
        for index in range(1, len(moving_F)):
            if moving_F[index - 1] and not moving_F[index]:
                began = self._times[index]
            elif index + 1 < len(moving_F) and moving_F[index] and not moving_F[index - 1]:
                starts_ends.append(Span(began, self._times[index + 1]))
        starts_ends.append(Span(began, end))
        return [shot for shot in starts_ends if shot.seconds >= self._shortest] or [Span(0.0, end)]


class TransNet:
    """A TransNetV2 ONNX file on the CPU. Raises CheckpointError where the file is another network.

    Exports differ: pictures as uint8 or float32, answers as logits or probabilities; all are taken.
    """

    def __init__(self, path: Path):
        import onnxruntime

        if not path.is_file():
            raise CheckpointError(
                f"{path} is no file; give TransNetV2 as ONNX (input [1, 100, 27, 48, 3])", code="weights_missing"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        (picture,) = self._session.get_inputs()
        if list(picture.shape[1:]) != [TransNetShots.WINDOW, TransNetShots.HEIGHT, TransNetShots.WIDTH, 3]:
            raise CheckpointError(
                f"{path} takes pictures of shape {picture.shape}; TransNetV2 takes [1, 100, 27, 48, 3]",
                code="other_model",
            )
        self._name, self._dtype = picture.name, np.uint8 if "uint8" in picture.type else np.float32

    def __call__(self, frames_FHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """[100, 27, 48, 3] RGB -> [100], the chance that a frame is part of a transition."""
        answers = self._session.run(None, {self._name: frames_FHWC[None].astype(self._dtype)})
        chances = [_chances(np.asarray(answer, np.float32).reshape(-1)) for answer in answers]
        return np.max(np.stack(chances), axis=0)


def _chances(answer_F: NDArray[np.float32]) -> NDArray[np.float32]:
    # A probability is never negative; a logit is, wherever nothing happens.
    logits = answer_F.min() < 0 or answer_F.max() > 1
    return np.asarray(1 / (1 + np.exp(-answer_F.clip(-60, 60))) if logits else answer_F, np.float32)
