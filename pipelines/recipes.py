"""The named pipelines. To add a filter: its file in `stages/`, its field in `Curation` below, its test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dynamictrl.errors import ConfigError
from pipelines.pipeline import Pipeline
from pipelines.stages.blur_faces import BlurFaces
from pipelines.stages.caption import Caption
from pipelines.stages.cut_clips import CutClips
from pipelines.stages.drop_duplicates import DropDuplicates
from pipelines.stages.drop_leaks import DropLeaks
from pipelines.stages.encode_latents import EncodeLatents
from pipelines.stages.estimate_pose import EstimatePose
from pipelines.stages.fetch import Fetch
from pipelines.stages.find_samples import FindSamples
from pipelines.stages.find_videos import FindVideos
from pipelines.stages.fingerprint import Fingerprint
from pipelines.stages.keep_beautiful import KeepBeautiful
from pipelines.stages.keep_duration import KeepDuration
from pipelines.stages.keep_exposed import KeepExposed
from pipelines.stages.keep_framed import KeepFramed
from pipelines.stages.keep_live import KeepLive
from pipelines.stages.keep_person import KeepPerson
from pipelines.stages.keep_safe import KeepSafe
from pipelines.stages.keep_sharp import KeepSharp
from pipelines.stages.keep_size import KeepSize
from pipelines.stages.keep_steady import KeepSteady
from pipelines.stages.keep_tracked import KeepTracked
from pipelines.stages.keep_uncut import KeepUncut
from pipelines.stages.keep_unlettered import KeepUnlettered
from pipelines.stages.keep_unmarked import KeepUnmarked
from pipelines.stages.keep_visible import KeepVisible
from pipelines.stages.keep_whole import KeepWhole
from pipelines.stages.measure_motion import MeasureMotion
from pipelines.stages.measure_picture import MeasurePicture
from pipelines.stages.probe import Probe
from pipelines.stages.read_samples import ReadSamples
from pipelines.stages.require_licence import RequireLicence
from pipelines.stages.split_shots import SplitShots
from pipelines.stages.track_masks import SKELETON_SEEDED, TrackMasks
from pipelines.stages.write_shards import WriteShards


@dataclass(frozen=True, kw_only=True)
class Curation(Pipeline):
    """Raw videos to shards. The order of the fields is the order of the work."""

    find: FindVideos = field(default_factory=FindVideos)
    licence: RequireLicence = field(default_factory=RequireLicence)
    fetch: Fetch = field(default_factory=Fetch)
    probe: Probe = field(default_factory=Probe)
    size: KeepSize = field(default_factory=KeepSize)
    shots: SplitShots = field(default_factory=SplitShots)
    duration: KeepDuration = field(default_factory=KeepDuration)
    cut: CutClips = field(default_factory=CutClips)
    picture: MeasurePicture = field(default_factory=MeasurePicture)
    light: KeepExposed = field(default_factory=KeepExposed)
    life: KeepLive = field(default_factory=KeepLive)
    sharpness: KeepSharp = field(default_factory=KeepSharp)
    framing: KeepFramed = field(default_factory=KeepFramed)
    lettering: KeepUnlettered = field(default_factory=KeepUnlettered)
    fingerprint: Fingerprint = field(default_factory=Fingerprint)
    leaks: DropLeaks = field(default_factory=DropLeaks)
    duplicates: DropDuplicates = field(default_factory=DropDuplicates)
    beauty: KeepBeautiful = field(default_factory=KeepBeautiful)
    safety: KeepSafe = field(default_factory=KeepSafe)
    pose: EstimatePose = field(default_factory=EstimatePose)
    person: KeepPerson = field(default_factory=KeepPerson)
    whole: KeepWhole = field(default_factory=KeepWhole)
    visible: KeepVisible = field(default_factory=KeepVisible)
    tracked: KeepTracked = field(default_factory=KeepTracked)
    uncut: KeepUncut = field(default_factory=KeepUncut)
    motion: MeasureMotion = field(default_factory=MeasureMotion)
    steady: KeepSteady = field(default_factory=KeepSteady)
    marks: KeepUnmarked = field(default_factory=KeepUnmarked)
    faces: BlurFaces = field(default_factory=BlurFaces)
    masks: TrackMasks = field(default_factory=TrackMasks)
    caption: Caption = field(default_factory=Caption)
    latents: EncodeLatents = field(default_factory=lambda: EncodeLatents(model=""))
    shards: WriteShards = field(default_factory=WriteShards)

    def __post_init__(self):
        super().__post_init__()
        if self.cut.longest < 2 * self.duration.shortest:
            raise ConfigError(
                f"cut.longest is {self.cut.longest} s; it must be at least twice duration.shortest "
                f"({self.duration.shortest} s), or a shot cut in two gives clips that are too short",
                param="cut.longest",
            )


@dataclass(frozen=True, kw_only=True)
class Encoding(Pipeline):
    """A curated data set to the same with latents in it; here `videos` names data set folders."""

    find: FindSamples = field(default_factory=FindSamples)
    read: ReadSamples = field(default_factory=ReadSamples)
    latents: EncodeLatents = field(default_factory=EncodeLatents)
    shards: WriteShards = field(default_factory=WriteShards)


def curate() -> Curation:
    """Web videos to a training set, with the real models on GPUs: DWPose, SAM 2.1, Qwen2-VL."""
    return Curation()


def curate_mini() -> Curation:
    """The same way on the CPU with the project's small models: what the demo and the tests run.

    Masks are seeded by the skeleton, which needs no weights.
    """
    return Curation(
        time_limit=300.0,
        memory_gib=8.0,
        size=KeepSize(smallest=64),
        # The mini models see 25 frames at 12 frames per second, in portrait.
        duration=KeepDuration(shortest=2.1),
        cut=CutClips(longest=5.0, fps=12.0, width=128, height=192),
        sharpness=KeepSharp(blurriest=48.0),
        pose=EstimatePose(model="mini/dwpose", device="cpu"),
        person=KeepPerson(least_presence=0.7, least_height=0.2, least_body=0.4),
        masks=TrackMasks(tracker=SKELETON_SEEDED, device="cpu"),
        caption=Caption(captioner="mini/captioner", required=False, device="cpu"),
        # Small shards, so that two training workers have one each even in the demo.
        shards=WriteShards(size=1.0),
    )


def encode() -> Encoding:
    """A curated data set to the same with VAE latents and prompt embeddings in it: training then skips the encoders."""
    return Encoding()


RECIPES: dict[str, Callable[[], Pipeline]] = {"curate": curate, "curate-mini": curate_mini, "encode": encode}
"""By the name that the command line takes."""
