"""One worker: renders leased jobs with its resident model, one at a time, and commits what came of them."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dynamictrl.errors import CheckpointError, DynamiCtrlError, StoreError
from dynamictrl.media.audio import Sound
from serving.backend import Backend
from serving.jobs.database import videos
from serving.jobs.job import CLIP_BEFORE, AnimationJob
from serving.jobs.leasing import LATE_S
from serving.jobs.patience import get_through
from serving.jobs.presence import BEAT_S, ServedModel
from serving.jobs.store import Verdict, Video
from serving.media.media_guard import MediaGuard
from serving.rendering.engine import Clip, EngineLost, Stopped
from serving.rendering.starting import engine_for, warm_model
from serving.rendering.stitching import after_clip_before
from serving.results.blobs import new_id
from serving.results.finishing import Finisher
from serving.results.manifest import Rendering as Rendered
from serving.rollout.following import Following
from serving.rollout.lead import Smoke
from serving.rollout.store import Rollouts
from serving.tenants.keyring import Keyring
from serving.watching.attempts import Rendering, rendering

logger = logging.getLogger(__name__)

REPORT_S = 0.2
"""Seconds between two writes of progress; whether to stop is asked at every step."""
STORAGE_WAIT_S = 10.0
"""Seconds after which a job is tried again whose inputs or results could not be reached."""
SHARES = {"preparing": (0, 10), "denoising": (10, 90), "decoding": (90, 97), "encoding": (97, 99)}
"""Where each stage's progress begins and ends, in per cent."""


class Worker:
    """A model in memory, and the jobs that come to it."""

    def __init__(self, backend: Backend):
        """Loads and warms the model; only then does the worker say that it is there."""
        service = backend.service
        self.backend = backend
        self.id = new_id("worker")
        self.finisher = Finisher(service, backend.blobs.root)
        self.decoder = MediaGuard(service.limits, service.pose_model, probers=1)
        self.decoder.warm()
        try:
            self.engine = engine_for(service, self.decoder)
        except BaseException:
            self.decoder.close()
            raise
        self.following = self._follow(backend.rollouts) if backend.rollouts is not None else None
        self._busy = threading.Lock()
        self._at_work: tuple[str, int] | None = None
        self._began = 0.0
        self._leaving = threading.Event()
        backend.presence.beat(self.id, *self.models)
        threading.Thread(target=self._beat, name="presence", daemon=True).start()
        if self.following is not None:
            threading.Thread(target=self._catch_up, name="following", daemon=True).start()

    def render(self, video_id: str, token: int) -> str:
        """Renders one leased job to its end and returns a word for the log: completed, failed, cancelled or lost."""
        # A request whose caller has gone away cannot be interrupted from outside: the next one waits for its end.
        with self._busy:
            video = get_through(lambda: self.backend.store.get(video_id))
            if video is None or self.backend.store.verdict(video_id, token) is Verdict.LOST:
                return "lost"
            self._began, self._at_work = time.monotonic(), (video_id, token)
            folder = self.backend.blobs.attempt(video_id, token)
            with rendering(video, token) as seen:
                try:
                    return self._render(video, token, folder, seen)
                finally:
                    self._at_work = None
                    self._tidy(video_id, token)

    def try_out(self, version: str) -> Smoke:
        """Loads another version of the followed model and renders a smoke clip with it, between two jobs."""
        assert self.following is not None
        with self._busy:
            return self.following.try_out(version)

    def _follow(self, rollouts: Rollouts) -> Following:
        service, engine = self.backend.service, self.engine
        return Following(rollouts, service, engine, lambda name: warm_model(service, engine, name))

    def _tidy(self, video_id: str, token: int) -> None:
        try:
            self.backend.blobs.drop_attempts(video_id, self._result_of(video_id, token))
        except StoreError as problem:
            logger.warning("what job %s left behind stays until the job is removed: %s", video_id, problem)

    @property
    def models(self) -> list[ServedModel]:
        """What it serves, the default model first."""
        residents = self.engine.residents
        if self.following is None:
            sources = [residents.source(name) for name in residents.names]
        else:
            # Of the followed model clients see the version that serves, whatever else is in memory.
            sources = [self.following.shown(), *self.following.others()]
        return [ServedModel(source.name, source.version, source.mini) for source in sources]

    @property
    def model(self) -> ServedModel:
        """The model that renders jobs which name none."""
        return self.models[0]

    def check_health(self) -> None:
        """EngineLost where the engine renders no more: this worker must be replaced.

        A step that never ends asks nobody whether to stop. Its job's lease is long gone to another worker by then.
        """
        if not self.engine.is_healthy:
            raise EngineLost("a part of this worker's engine is gone")
        if self._at_work is not None and time.monotonic() - self._began > self._longest_s:
            raise EngineLost(f"a job has been on this worker's engine for more than {self._longest_s:g} s")

    def leave(self) -> None:
        """Says good-bye, so that nobody counts on this worker, and ends the processes that render with it."""
        self._leaving.set()
        self.backend.presence.leave(self.id)
        self.engine.close()
        self.decoder.close()

    def _render(self, video: Video, token: int, folder: Path, seen: Rendering) -> str:
        store = self.backend.store
        progress = _Progress(self.backend, video.id, token)
        try:
            job = self._job(video)
            clip = self.engine.animate(job, progress.on_step, progress.should_stop)
            seen.stages(clip.stage_seconds)
            progress.write("encoding", SHARES["encoding"][0])
            with seen.stage("write"):
                rendered = self._rendered(video, clip)
                clip = after_clip_before(job, clip, self.decoder)
                finished = self.finisher.finish(folder, clip.frames, clip.fps, self._sound(job, clip), rendered)
                seen.stages(finished.seconds)
                size = self.backend.blobs.publish(video.id, token)
        except Stopped:
            if progress.verdict is Verdict.CANCEL:
                return "cancelled" if store.cancelled(video.id, token) else "lost"
            shutil.rmtree(folder, ignore_errors=True)
            return progress.why
        except EngineLost:
            # No fault of the job's: the dispatcher hears of a lost worker and gives the job to another.
            self.leave()
            raise
        except StoreError as problem:
            # The storage is away, which is no fault of the job: it waits in the queue for better times.
            logger.warning("job %s goes back to the queue: %s", video.id, problem)
            return "put off" if store.release(video.id, token, refund=True, wait_s=STORAGE_WAIT_S) else "lost"
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
        with seen.stage("commit"):
            done = store.complete(
                video.id,
                token,
                model_version=clip.model_version,
                expires_at=time.time() + self._kept_s(video),
                manifest=finished.manifest,
                stored_bytes=videos.c.stored_bytes + size,
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
            clip_before=media.get(CLIP_BEFORE),
            model=self.following.name_for(video) if self.following else video.model,
        )

    def _kept_s(self, video: Video) -> float:
        service = self.backend.service
        quotas = get_through(lambda: Keyring(self.backend.store.engine, quotas=service.quotas).quotas(video.tenant))
        return quotas.keep_clips_s or service.expires_after_s

    def _rendered(self, video: Video, clip: Clip) -> Rendered:
        return Rendered(
            video_id=video.id,
            model=video.model if self.following else clip.made_with["model"],
            model_version=clip.model_version,
            is_mini=self.engine.residents.source(clip.made_with["model"]).mini,
            settings=video.settings,
            inputs=video.inputs,
            engine=clip.made_with,
            frames=clip.frames,
        )

    def _sound(self, job: AnimationJob, clip: Clip) -> Sound | None:
        if job.sound_source is None:
            return None
        return self.decoder.sound(job.sound_source, seconds=len(clip.frames) / clip.fps)

    def _result_of(self, video_id: str, token: int) -> int | None:
        """Which attempt's files stay: the committed one's, or none of this worker's."""
        video = get_through(lambda: self.backend.store.get(video_id))
        if video is None:
            self.backend.blobs.drop_video(video_id)
            return None
        # Somebody else holds the job now: his folder is his.
        return video.result_token or (video.lease_token if video.lease_token != token else None)

    def _catch_up(self) -> None:
        """Brings the engine onto the versions that are wanted, whenever no job is on it."""
        assert self.following is not None
        while not self._leaving.wait(BEAT_S):
            if not self._busy.acquire(blocking=False):
                continue
            try:
                self.following.catch_up()
            except Exception:
                logger.warning("which version is wanted could not be asked", exc_info=True)
            finally:
                self._busy.release()

    def _beat(self) -> None:
        while not self._leaving.wait(BEAT_S):
            try:
                self.backend.presence.beat(self.id, *self.models)
                self._keep_job()
            except Exception:
                # The database may be away for a moment; the worker is not.
                logger.warning("no sign of life could be given", exc_info=True)

    def _keep_job(self) -> None:
        """Keeps the lease of the job at work, as its dispatcher does: one of the two may die, and the job goes on."""
        if (job := self._at_work) is not None:
            self.backend.store.renew(*job, max(self.backend.service.lease_s, 2 * BEAT_S), longest_s=self._longest_s)

    @property
    def _longest_s(self) -> float:
        """Seconds after which a job that is still at work hangs."""
        return self.backend.service.longest_job_s + LATE_S


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
            if stage == "denoising":
                self.write(stage, start + int((end - start) * done / total), step=done, steps=total)
            else:
                self.write(stage, start)

    def write(self, stage: str, progress: int, *, step: int | None = None, steps: int | None = None) -> None:
        self._stage, self._written = stage, self._clock()
        self.verdict = self._store.report(
            self._video_id, self._token, stage=stage, progress=progress, step=step, steps=steps
        )

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


def _without_paths(message: str, backend: Backend) -> str:
    """An error message without the data folder's name in it: clients see no path of the server."""
    return message.replace(f"{backend.blobs.root}/", "")
