"""One worker: renders leased jobs with its resident model, one at a time, and commits what came of them."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynamictrl.audio import keep_sound
from dynamictrl.errors import CheckpointError, DynamiCtrlError
from dynamictrl.video import write_video
from serving.backend import Backend
from serving.blobs import RESULTS, new_id
from serving.engine import Clip, Engine, Stopped
from serving.jobs import AnimationJob
from serving.model_source import locate
from serving.presence import BEAT_S, ServedModel
from serving.store import Verdict, Video

logger = logging.getLogger(__name__)

REPORT_S = 0.2
"""Seconds between two writes of progress; whether to stop is asked at every step."""
SHARES = {"preparing": (0, 10), "denoising": (10, 90), "decoding": (90, 97), "encoding": (97, 99)}
"""Where each stage's progress begins and ends, in per cent."""
SHEET_COLUMNS, SHEET_ROWS, SHEET_WIDTH = 4, 4, 160
"""A sprite sheet: up to 16 frames in rows, each this many pixels wide."""


class Worker:
    """A model in memory, and the jobs that come to it."""

    def __init__(self, backend: Backend):
        """Loads and warms the model; only then does the worker say that it is there."""
        service = backend.service
        self.backend = backend
        self.id = new_id("worker")
        source = locate(service.model, service.transformer)
        self.engine = Engine(
            source,
            service.pose_model,
            device=service.device,
            dtype=service.dtype,
            threads=service.threads,
            compatibility=service.compatibility,
            alignment=service.alignment,
        )
        self.engine.warm_up(service.defaults.width, service.defaults.height)
        self.model = ServedModel(source.name, source.version, source.mini)
        self._busy = threading.Lock()
        self._leaving = threading.Event()
        backend.presence.beat(self.id, self.model)
        threading.Thread(target=self._beat, name="presence", daemon=True).start()

    def render(self, video_id: str, token: int) -> str:
        """Renders one leased job to its end and returns a word for the log: completed, failed, cancelled or lost."""
        # A request whose caller has gone away cannot be interrupted from outside: the next one waits for its end.
        with self._busy:
            video = self.backend.store.get(video_id)
            if video is None or self.backend.store.verdict(video_id, token) is Verdict.LOST:
                return "lost"
            folder = self.backend.blobs.attempt(video_id, token)
            try:
                return self._render(video, token, folder)
            finally:
                self.backend.blobs.drop_attempts(video_id, self._result_of(video_id, token))

    def leave(self) -> None:
        """Says good-bye, so that nobody counts on this worker."""
        self._leaving.set()
        self.backend.presence.leave(self.id)

    def _render(self, video: Video, token: int, folder: Path) -> str:
        store, service = self.backend.store, self.backend.service
        progress = _Progress(self.backend, video.id, token)
        try:
            job = self._job(video)
            clip = self.engine.animate(job, progress.on_step, progress.should_stop)
            progress.write("encoding", SHARES["encoding"][0])
            write_results(folder, clip, job.sound_source)
        except Stopped:
            if progress.verdict is Verdict.CANCEL:
                return "cancelled" if store.cancelled(video.id, token) else "lost"
            shutil.rmtree(folder, ignore_errors=True)
            return progress.why
        except CheckpointError:
            logger.exception("job %s needs a pose model that cannot be loaded", video.id)
            message = "this service has no pose model; send a pose_video instead of a driving_video"
            store.fail(video.id, token, code="no_pose_model", message=message)
            return "failed"
        except DynamiCtrlError as problem:
            store.fail(video.id, token, code=problem.code, message=_without_paths(str(problem), self.backend))
            return "failed"
        except Exception:
            # The same job would fail the same way on another worker: it ends here, and the log has the reason.
            logger.exception("job %s failed", video.id)
            store.fail(video.id, token, code="internal_error", message="rendering failed; the service's log has why")
            return "failed"
        done = store.complete(
            video.id, token, model_version=clip.model_version, expires_at=time.time() + service.expires_after_s
        )
        return "completed" if done else "lost"

    def _job(self, video: Video) -> AnimationJob:
        media = {name: self.backend.blobs.medium(video.id, name) for name in video.inputs}
        return AnimationJob(
            settings=video.settings,
            image=media["input_reference"],
            driving_video=media.get("driving_video"),
            pose_video=media.get("pose_video"),
            mask=media.get("mask"),
        )

    def _result_of(self, video_id: str, token: int) -> int | None:
        """Which attempt's files stay: the committed one's, or none of this worker's."""
        video = self.backend.store.get(video_id)
        if video is None:
            self.backend.blobs.drop_video(video_id)
            return None
        # Somebody else holds the job now: his folder is his.
        return video.result_token or (video.lease_token if video.lease_token != token else None)

    def _beat(self) -> None:
        while not self._leaving.wait(BEAT_S):
            try:
                self.backend.presence.beat(self.id, self.model)
            except Exception:
                # The database may be away for a moment; the worker is not.
                logger.warning("no sign of life could be given", exc_info=True)


class _Progress:
    """Carries an engine's steps to the store, and the store's verdict back."""

    def __init__(self, backend: Backend, video_id: str, token: int, clock: Callable[[], float] = time.monotonic):
        self.verdict = Verdict.GO_ON
        self.why = "lost"
        self._store, self._video_id, self._token, self._clock = backend.store, video_id, token, clock
        self._deadline = clock() + backend.service.longest_job_s
        self._limit = backend.service.longest_job_s
        self._stage, self._written = "", 0.0

    def on_step(self, stage: str, done: int, total: int) -> None:
        start, end = SHARES[stage]
        if stage != self._stage or self._clock() - self._written >= REPORT_S:
            self.write(stage, start + int((end - start) * done / total) if stage == "denoising" else start)

    def write(self, stage: str, progress: int) -> None:
        self._stage, self._written = stage, self._clock()
        self.verdict = self._store.report(self._video_id, self._token, stage=stage, progress=progress)

    def should_stop(self) -> bool:
        if self._clock() > self._deadline:
            self._store.fail(
                self._video_id, self._token, code="job_too_long",
                message=f"the job took longer than {self._limit:g} s; ask for fewer frames, steps or pixels"
            )  # fmt: skip
            self.why = "failed"
            return True
        self.verdict = self._store.verdict(self._video_id, self._token)
        return self.verdict is not Verdict.GO_ON


def write_results(folder: Path, clip: Clip, sound_source: Path | None = None) -> None:
    """The clip, with the sound of the video it was rendered from where one is named, its thumbnail and its sheet."""
    folder.mkdir(parents=True, exist_ok=True)
    write_video(folder / RESULTS["video"][0], clip.frames, clip.fps)
    if sound_source is not None:
        keep_sound(sound_source, folder / RESULTS["video"][0], seconds=len(clip.frames) / clip.fps)
    Image.fromarray(clip.frames[len(clip.frames) // 2]).save(folder / RESULTS["thumbnail"][0], "WEBP")
    sprite_sheet(clip.frames).save(folder / RESULTS["spritesheet"][0], "JPEG", quality=85)


def sprite_sheet(frames: NDArray[np.uint8]) -> Image.Image:
    """Up to 16 frames, evenly spread over the clip, in rows from the top left."""
    count = min(len(frames), SHEET_COLUMNS * SHEET_ROWS)
    height, width = frames.shape[1:3]
    cell = (SHEET_WIDTH, max(1, round(SHEET_WIDTH * height / width)))
    rows = -(-count // SHEET_COLUMNS)
    sheet = Image.new("RGB", (cell[0] * SHEET_COLUMNS, cell[1] * rows))
    for place, index in enumerate(np.linspace(0, len(frames) - 1, count).round().astype(int)):
        picture = Image.fromarray(frames[index]).resize(cell)
        sheet.paste(picture, (place % SHEET_COLUMNS * cell[0], place // SHEET_COLUMNS * cell[1]))
    return sheet


def _without_paths(message: str, backend: Backend) -> str:
    """An error message without the data folder's name in it: clients see no path of the server."""
    return message.replace(f"{backend.blobs.root}/", "")
