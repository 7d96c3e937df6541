"""The filters as stages: what each refuses and why, on clips made for it and on marionettes."""

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from dynamictrl.errors import ConfigError
from dynamictrl.media.video import read_video
from dynamictrl.mini.marionettes import MarionetteScene
from dynamictrl.poses.pose import FACE, LEFT_HAND, RIGHT_HAND, PoseSequence
from pipelines.clip import Clip
from pipelines.files import storage
from pipelines.limits import LimitStage
from pipelines.recipes import curate_mini
from pipelines.stage import Stage, run_local
from pipelines.stages.blur_faces import BlurFaces
from pipelines.stages.keep_exposed import KeepExposed
from pipelines.stages.keep_framed import KeepFramed
from pipelines.stages.keep_live import KeepLive
from pipelines.stages.keep_person import KeepPerson
from pipelines.stages.keep_sharp import KeepSharp
from pipelines.stages.keep_steady import KeepSteady
from pipelines.stages.keep_tracked import KeepTracked
from pipelines.stages.keep_uncut import KeepUncut
from pipelines.stages.keep_unlettered import KeepUnlettered
from pipelines.stages.keep_unmarked import KeepUnmarked
from pipelines.stages.keep_visible import KeepVisible
from pipelines.stages.keep_whole import KeepWhole
from pipelines.stages.measure_motion import MeasureMotion
from pipelines.stages.measure_picture import MeasurePicture
from tests.unit.pipelines.conftest import still_person

Make = Callable[..., Clip]
Frames = NDArray[np.uint8]

PICTURE: list[Stage] = [
    MeasurePicture(),
    KeepExposed(),
    KeepLive(),
    KeepSharp(blurriest=48),
    KeepFramed(),
    KeepUnlettered(),
]
PEOPLE: list[Stage] = [KeepPerson(), KeepWhole(), KeepVisible(), KeepTracked()]
MOTION: list[Stage] = [KeepUncut(), MeasureMotion(), KeepSteady(), KeepUnmarked()]


@pytest.fixture(scope="module")
def dancer():  # noqa: ANN201
    return MarionetteScene(1, 2, 3, persons=1, action="dance", place="park").render(30, 192, 128, 12)


def with_pose(clip: Clip, pose: PoseSequence) -> Clip:
    storage.write_bytes(clip.file("pose.npz"), pose.to_npz())
    return clip.with_file("pose.npz")


def test_a_marionette_passes_every_filter_and_has_all_its_scores(cut_clip: Make, dancer: Any):
    clip = with_pose(cut_clip(dancer.frames), dancer.pose)
    (kept,) = run_local([*PICTURE, *PEOPLE, *MOTION], [clip])
    assert (kept.rejected, kept.message) == ("", "")
    limited = {score for stage in (*PICTURE, *PEOPLE, *MOTION) for score in getattr(stage, "limits", {})}
    assert limited <= set(kept.scores)


def split(frames: Frames) -> Frames:
    """Two lively pictures side by side, a white line between them."""
    blocks = np.random.default_rng(1).integers(0, 255, (24, 8, 3)).astype(np.uint8)
    whole = np.stack([np.roll(cv2.resize(blocks, (128, 192), interpolation=0), 3 * i, axis=0) for i in range(24)])
    whole[:, :, 63:65] = 255
    return whole


def written_over(frames: Frames) -> Frames:
    shown = np.stack([cv2.resize(frame, (256, 384), interpolation=cv2.INTER_CUBIC) for frame in frames])
    for frame in shown:
        for y in range(60, 380, 45):
            for colour, width in (((0, 0, 0), 5), ((255, 255, 255), 2)):
                cv2.putText(frame, "follow for more", (8, y), cv2.FONT_HERSHEY_SIMPLEX, 0.9, colour, width, cv2.LINE_AA)
    return shown


def with_bars(frames: Frames) -> Frames:
    shown = frames.copy()
    shown[:, :50] = shown[:, -50:] = 0
    return shown


def blacked_out(frames: Frames) -> Frames:
    shown = frames.copy()
    shown[: len(shown) // 3] = 0
    return shown


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f * 0.08).astype(np.uint8), "too_dark"),
        (lambda f: (245 + f * 0.03).astype(np.uint8), "too_bright"),
        (lambda f: (120 + f * 0.1).astype(np.uint8), "low_contrast"),
        (lambda f: np.where(f > 110, 255, 0).astype(np.uint8), "burnt_out"),
        (blacked_out, "black"),
        (lambda f: np.repeat(f[:1], len(f), axis=0), "frozen"),
        (lambda f: f[np.arange(len(f)) // 6 * 6 % len(f)], "slide_show"),
        (lambda f: np.stack([cv2.GaussianBlur(x, (0, 0), 4) for x in f]), "blurred"),
        (with_bars, "letterboxed"),
        (split, "split_screen"),
        (written_over, "text_overlay"),
    ],
)
def test_a_spoilt_picture_is_refused_for_its_own_reason(
    spoil: Callable[[Frames], Frames], reason: str, cut_clip: Make, dancer: Any
):
    (clip,) = run_local(PICTURE, [cut_clip(spoil(dancer.frames))])
    assert clip.rejected == reason, f"{clip.message} {clip.scores}"
    assert re.search(r"at (least|most)", clip.message)


def test_a_filter_without_its_measure_names_the_stage_that_is_missing(cut_clip: Make):
    with pytest.raises(ConfigError, match="keep_sharp needs the score 'sharpness'.*measure_picture"):
        run_local([KeepSharp()], [cut_clip()])


def headless(pose: PoseSequence) -> PoseSequence:
    points = pose.keypoints.copy()
    points[:, :, :2, 1] = 0.0
    return replace(pose, keypoints=points)


def hidden(pose: PoseSequence, *joints: slice) -> PoseSequence:
    scores = pose.scores.copy()
    for part in joints:
        scores[..., part] = 0
    return replace(pose, scores=scores)


def trembling(pose: PoseSequence) -> PoseSequence:
    noise = np.random.default_rng(0).normal(0, 0.04, pose.keypoints.shape)
    return replace(pose, keypoints=(pose.keypoints + noise).astype(np.float32))


def equals(pose: PoseSequence) -> PoseSequence:
    parts = [np.concatenate([getattr(pose, n)] * 4, axis=1) for n in ("keypoints", "scores", "boxes")]
    return PoseSequence(*parts, np.arange(1, 5, dtype=np.int32))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (headless, "head_cut_off"),
        (lambda pose: hidden(pose, FACE), "face_hidden"),
        (lambda pose: hidden(pose, LEFT_HAND, RIGHT_HAND), "hands_hidden"),
        (trembling, "pose_jitter"),
        (equals, "person_not_main"),
        (lambda pose: pose, ""),
    ],
)
def test_a_person_not_seen_well_is_refused_for_its_own_reason(
    change: Callable[[PoseSequence], PoseSequence], reason: str, cut_clip: Make
):
    (clip,) = run_local(PEOPLE, [with_pose(cut_clip(), change(still_person(24)))])
    assert clip.rejected == reason, clip.message


def test_whole_bodies_only_can_be_asked_for(cut_clip: Make):
    close = MarionetteScene(1, 2, 3, persons=1, action="talk", close_up=True).render(24, 96, 128, 12, supersampling=1)
    clip = with_pose(cut_clip(close.frames), close.pose)
    assert run_local([*PEOPLE[:2]], [clip])[0].rejected != "body_cut_off"
    assert run_local([KeepPerson(), KeepWhole(most_head=1.0, most_body=0.2)], [clip])[0].rejected == "body_cut_off"


def test_a_cut_that_the_splitter_missed_is_refused_and_a_flash_is_not(cut_clip: Make, dancer: Any):
    other = MarionetteScene(11, 12, 13, persons=1, action="kick", place="street").render(15, 192, 128, 12)
    pose = PoseSequence(
        *(
            np.concatenate([getattr(dancer.pose, n)[:15], getattr(other.pose, n)])
            for n in ("keypoints", "scores", "boxes")
        ),
        dancer.pose.track_ids,
    )
    cut = with_pose(cut_clip(np.concatenate([dancer.frames[:15], other.frames])), pose)
    flash = dancer.frames.copy()
    flash[15] = 255
    whole = with_pose(cut_clip(flash, source_sha256="cd" * 32), dancer.pose)
    refused, kept = run_local([MeasurePicture(), KeepUncut()], [cut, whole])
    assert (refused.rejected, kept.rejected) == ("cut_inside", "")
    assert refused.scores["picture_jump_at"] == pytest.approx(15 / 12, abs=0.1)


def filmed(pose: PoseSequence, shift: NDArray[np.float64]) -> tuple[Frames, PoseSequence]:
    """A wall and a person before it, who is carried along with the camera's shift (shares of the picture)."""
    wide = cv2.resize(np.random.default_rng(3).integers(0, 255, (40, 40)).astype(np.uint8), (384, 288))
    frames = []
    for x, y in shift * (128, 96):
        move = np.array([[1, 0, x - 128], [0, 1, y - 96]], np.float64)
        frames.append(cv2.warpAffine(wide, move, (128, 96)))
    points = pose.keypoints + shift[:, None, None].astype(np.float32)
    return np.repeat(np.stack(frames)[..., None], 3, axis=-1), replace(pose, keypoints=points)


@pytest.mark.parametrize(
    ("shift", "swing", "reason"),
    [
        (np.zeros((24, 2)), 0.0, "no_motion"),
        (np.zeros((24, 2)), 0.1, ""),
        (np.random.default_rng(0).normal(0, 0.05, (24, 2)), 0.1, "camera_shake"),
        (np.linspace(0, 1, 24)[:, None] * (0.9, 0.9), 0.1, "camera_motion"),
        (np.linspace(0, 0.4, 24)[:, None] * (1, 0), 0.018, "camera_motion"),
    ],
    ids=["still", "moves", "shakes", "races", "mostly camera"],
)
def test_the_bodys_motion_is_weighed_against_the_cameras(
    shift: NDArray[np.float64], swing: float, reason: str, cut_clip: Make
):
    frames, pose = filmed(still_person(24), shift)
    # All limbs go to and fro once in the clip.
    pose.keypoints[:, 0, [3, 4, 6, 7], 0] += swing * 0.75 * np.sin(np.linspace(0, 2 * np.pi, 24))[:, None]
    (clip,) = run_local([MeasureMotion(), KeepSteady()], [with_pose(cut_clip(frames), pose)])
    assert clip.rejected == reason, f"{clip.message} {clip.scores}"


def test_a_watermark_under_a_moving_camera_is_refused(cut_clip: Make):
    frames, pose = filmed(still_person(24), np.linspace(0, 0.4, 24)[:, None] * (1, 0))
    dots = np.random.default_rng(0).integers(0, 2, (12, 24)).astype(np.uint8) * 255
    frames[:, :36, :72] = cv2.resize(dots, (72, 36), interpolation=cv2.INTER_NEAREST)[..., None]
    (clip,) = run_local([MeasureMotion(), KeepUnmarked()], [with_pose(cut_clip(frames), pose)])
    assert clip.rejected == "watermark", clip.scores


def test_blurred_faces_are_a_file_of_their_own_with_the_clips_frames_and_rate(cut_clip: Make, dancer: Any):
    clip = with_pose(cut_clip(dancer.frames), dancer.pose)
    (done,) = run_local([BlurFaces(enabled=True)], [clip])
    plain, blurred = read_video(done.file("mp4")), read_video(done.file("blurred.mp4"))
    assert "blurred.mp4" in done.files
    assert (blurred.frames.shape, blurred.fps) == (plain.frames.shape, plain.fps)
    assert done.scores["faces_blurred"] == 30
    x, y = (dancer.pose.keypoints[5, 0, FACE].mean(axis=0) * (128, 192)).astype(int)
    faces = [video.frames[5, y - 6 : y + 6, x - 6 : x + 6].astype(int) for video in (plain, blurred)]
    detail, left = (np.abs(np.diff(face, n=2, axis=1)).mean() for face in faces)
    assert left < 0.25 * detail


def test_a_clip_with_a_face_that_cannot_be_located_is_refused(cut_clip: Make):
    pose = hidden(still_person(24), slice(0, 8), slice(14, 134))
    (clip,) = run_local([BlurFaces(enabled=True)], [with_pose(cut_clip(), pose)])
    assert clip.rejected == "face_unblurred"
    assert not BlurFaces().active


@pytest.mark.parametrize(
    "stage", [s for s in curate_mini().stages("clip") if isinstance(s, LimitStage)], ids=lambda s: s.name
)
def test_every_reason_is_in_the_filters_docstring_with_how_its_default_was_chosen(stage: LimitStage):
    text = inspect.getdoc(type(stage)) or ""
    for rule in stage.rules:
        assert f"`{rule.reason}`" in text
    assert "Default" in text
