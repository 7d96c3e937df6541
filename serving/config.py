"""What one service is: its model, its limits, where it keeps jobs. Imports neither torch nor ray."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dynamictrl.errors import ConfigError

MIB = 2**20
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a job gets where its sender does not say."""

    width: int = 768
    """Pixels; a multiple of 16."""
    height: int = 1360
    """Pixels; a multiple of 16."""
    num_frames: int = 37
    """Frames at most; fewer where the driving or pose video has fewer."""
    num_inference_steps: int = 25
    """Denoising steps."""
    guidance_scale: float = 3.0
    """Strength of the prompt; 1 turns guidance off and halves the time."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What strangers may send and ask for; whatever is above is answered with a coded 4xx."""

    body_bytes: int = 512 * MIB
    """One HTTP request, bytes."""
    media_bytes: int = 256 * MIB
    """One image or video, bytes."""
    data_url_bytes: int = 8 * MIB
    """One `data:` URL inside a form or JSON field, characters."""
    image_pixels: int = 50_000_000
    """Pixels of the person image and of the mask."""
    frame_pixels: int = 3840 * 2160
    """Pixels of one frame of a driving or pose video."""
    video_seconds: float = 300.0
    """Seconds of a driving or pose video."""
    prompt_chars: int = 4000
    """Characters of the prompt."""
    output_pixels: int = 1360 * 1360
    """Width times height of the clip that is asked for."""
    num_frames: int = 161
    """Frames of the clip that is asked for."""
    num_inference_steps: int = 100
    """Denoising steps of one job."""
    wait_seconds: float = 60.0
    """Longest `wait` of POST /v1/videos, seconds."""
    probe_seconds: float = 20.0
    """Time in which a file must have been probed, seconds; then its prober is killed."""
    probe_memory: int = 8 * GIB
    """Address space of the process that probes strangers' files, bytes."""


@dataclass(frozen=True, kw_only=True)
class Service:
    """One service, whole: `python -m serving up RECIPE` starts it."""

    model: str = "models:/dynamictrl@champion"
    """Model folder, hub id, `mini/NAME`, or an MLflow URI (`models:/dynamictrl@champion`; MLFLOW_TRACKING_URI)."""
    transformer: str = ""
    """Folder or hub id whose transformer takes the place of the model's own, such as gulucaptain/Dynamictrl-Mask_B01
    with the folder of its base, zai-org/CogVideoX1.5-5B-I2V, as `model`."""
    compatibility: Literal["none", "released"] = "none"
    """`released` renders as the published inference does, its lag of three frames included (docs/method.md)."""
    alignment: Literal["auto", "limbs", "affine", "released", "none"] = "auto"
    """How a driving video's poses are brought onto the person: `auto` is `limbs`, the person's own bone lengths, or
    `released` with that compatibility (docs/driving.md)."""
    pose_model: str = "yzd-v/DWPose"
    """Folder, hub id or `mini/NAME` of the DWPose ONNX pair that reads driving videos."""
    data_folder: Path = Path("serving-data")
    """Folder of jobs, inputs and results; what is in it outlives a restart. Created where missing."""
    database: str = ""
    """SQLAlchemy URL of the job store; empty means SQLite inside `data_folder`."""
    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs `api_key_hashes`."""
    port: int = 8000
    """TCP port to listen on."""
    api_key_hashes: tuple[str, ...] = ()
    """sha256 in hex of each accepted API key; `python -m serving key` makes a pair. Empty: loopback only, no keys."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where clips are rendered; `auto` takes a GPU where there is one."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the weights while rendering."""
    engines: int = 1
    """Model replicas; each renders one job at a time."""
    gpus_per_engine: float = 1.0
    """GPUs that Ray sets aside for each replica; 0 renders on the CPU."""
    cpus_per_engine: float = 1.0
    """CPUs that Ray sets aside for each replica."""
    num_cpus: int = 4
    """Logical CPUs of the local Ray (used where RAY_ADDRESS is not set)."""
    threads: int = 0
    """Torch threads of a replica; 0 leaves it to torch."""
    defaults: Defaults = field(default_factory=Defaults)
    """What a job gets where its sender does not say."""
    limits: Limits = field(default_factory=Limits)
    """What strangers may send and ask for."""
    person_check: Literal["submit", "render"] = "render"
    """When a driving-video job without a person in its image is refused: with a 400 at once (the pose model runs in the
    guarded process, about a second a job with the real one), or as a failed job once a worker has looked."""
    longest_job_s: float = 3600.0
    """Seconds one job may take; every timeout and drain follows from it."""
    lease_s: float = 15.0
    """Seconds after which the job of a silent dispatcher is taken up by another."""
    drain_s: float = 300.0
    """Seconds for which Ctrl-C waits for running jobs; what is not done then goes back to the queue."""
    max_attempts: int = 3
    """Workers that may die over one job before it is failed with code `too_many_attempts`."""
    expires_after_s: float = 7 * 24 * 3600.0
    """Seconds for which a finished clip can be downloaded."""

    def __post_init__(self):
        if not 0 < self.port < 65536:
            raise ConfigError(f"port is {self.port}; it must be from 1 to 65535", code="port", param="port")
        for name in ("engines", "max_attempts", "num_cpus"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1", code=name, param=name)
        if self.lease_s <= 0 or self.longest_job_s < self.lease_s:
            raise ConfigError(
                f"lease_s is {self.lease_s} and longest_job_s {self.longest_job_s}; it must hold that "
                "0 < lease_s <= longest_job_s",
                code="lease_s",
                param="lease_s",
            )
        self._check_keys()

    def _check_keys(self) -> None:
        for digest in self.api_key_hashes:
            if len(digest) != 64 or not all(c in "0123456789abcdef" for c in digest):
                raise ConfigError(
                    "an entry of api_key_hashes is no sha256 in lower-case hex; `python -m serving key` makes one",
                    code="api_key_hashes",
                    param="api_key_hashes",
                )
        if not self.api_key_hashes and not is_loopback(self.host):
            raise ConfigError(
                f"host is {self.host!r} and no API keys are configured: anyone could use the service. Give "
                "--api-key-hashes (`python -m serving key` makes one), or keep --host 127.0.0.1",
                code="host_without_keys",
                param="host",
            )

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data_folder.absolute() / 'jobs.db'}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
