"""What one service is: its model, its limits, where it keeps jobs. Imports neither torch nor ray."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dynamictrl.acceleration import Acceleration
from dynamictrl.errors import ConfigError
from serving.tenants.tenant import Quotas

_NAME = re.compile(r"[\w./-]{1,64}")
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
    body_seconds: float = 900.0
    """Time in which a request's body must have come, seconds."""
    body_idle_s: float = 15.0
    """Longest pause within a body, seconds."""
    body_rate: int = 8192
    """Bytes a second that a body must come with, on average after its first `body_idle_s` seconds."""
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
    total_frames: int = 640
    """Frames of a clip with all its extensions: they are joined in a worker's memory."""
    num_inference_steps: int = 100
    """Denoising steps of one job."""
    wait_seconds: float = 60.0
    """Longest `wait` of POST /v1/videos, seconds."""
    fetch_urls: Literal["keys", "always", "never"] = "keys"
    """Whose media are fetched from a URL that they name: of requests with an API key, so that somebody answers for what
    this machine calls; of everybody; of nobody (docs/serving/media.md)."""
    fetch_seconds: float = 60.0
    """Time in which a medium named by URL must have come, redirects included, seconds."""
    probe_seconds: float = 20.0
    """Time in which a file must have been probed, of the clock and of the processor, seconds."""
    decode_seconds: float = 120.0
    """Time in which a job's medium must have been decoded when it is rendered, seconds."""
    probe_memory: int = 8 * GIB
    """Address space of the process that opens a stranger's file, and its largest output, bytes."""
    probe_resident: int = 3 * GIB
    """Main memory that this process may hold, bytes."""


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """How many engines run, between `min_engines` and `max_engines` (docs/serving/scaling.md)."""

    clear_within_s: float = 60.0
    """Seconds within which the work at hand should be done; fewer means more engines for the same queue."""
    shrink_margin: float = 0.7
    """An engine is given up only where the rest would do the work in this share of `clear_within_s`."""
    shrink_after_s: float = 120.0
    """Seconds for which an engine has to have been one too many before it is given up."""
    to_zero_after_s: float = 600.0
    """The same for the last engine, where `min_engines` is 0."""

    def __post_init__(self):
        if self.clear_within_s <= 0 or not 0 < self.shrink_margin <= 1:
            raise ConfigError(
                f"clear_within_s is {self.clear_within_s} and shrink_margin {self.shrink_margin}; it must hold that "
                "clear_within_s > 0 and 0 < shrink_margin <= 1",
                code="scaling",
                param="scaling",
            )


@dataclass(frozen=True, kw_only=True)
class Canary:
    """How a new version of the model takes over, where `model` names an alias of the registry
    (docs/serving/scaling.md)."""

    follow: bool = True
    """Whether the alias is followed while the service runs; otherwise its version of the first start stays."""
    poll_s: float = 15.0
    """Seconds between two looks at the registry, and at what the canary has shown."""
    percent: int = 10
    """Share of the tenants that get the new version first."""
    jobs: int = 20
    """Jobs that the new version has to render before it is promoted."""
    seconds: float = 1800.0
    """Seconds after which it is promoted with fewer jobs, if none of them speaks against it."""
    failures_more_at_most: float = 0.1
    """How much higher than the old version's its share of failed jobs may be."""
    slower_at_most: float = 1.5
    """How many times as long its jobs may take."""

    def __post_init__(self):
        if not 0 < self.percent <= 100 or self.poll_s <= 0 or self.jobs < 1:
            raise ConfigError(
                f"percent is {self.percent}, poll_s {self.poll_s} and jobs {self.jobs}; it must hold that "
                "0 < percent <= 100, poll_s > 0 and jobs >= 1",
                code="canary",
                param="canary",
            )


@dataclass(frozen=True, kw_only=True)
class Service:
    """One service, whole: `python -m serving up RECIPE` starts it."""

    model: str = "models:/dynamictrl@champion"
    """Model folder, hub id, `mini/NAME`, or an MLflow URI (`models:/dynamictrl@champion`; MLFLOW_TRACKING_URI)."""
    transformer: str = ""
    """Folder or hub id whose transformer takes the place of the model's own, such as gulucaptain/Dynamictrl-Mask_B01
    with the folder of its base, zai-org/CogVideoX1.5-5B-I2V, as `model`."""
    models: tuple[str, ...] = ()
    """More models beside it, each NAME=FOLDER (or hub id): whole folders, or lone transformers as for `transformer`.
    They share the first one's text encoder and VAE; a job's `model` chooses."""
    loras: tuple[str, ...] = ()
    """LoRAs that jobs can ask for in `loras`, each NAME=PATH of a file or folder."""
    compatibility: Literal["none", "released"] = "none"
    """`released` renders as the published inference does, its lag of three frames included (docs/method.md)."""
    alignment: Literal["auto", "limbs", "affine", "released", "none"] = "auto"
    """How a driving video's poses are brought onto the person: `auto` is `limbs`, the person's own bone lengths, or
    `released` with that compatibility (docs/driving.md)."""
    pose_model: str = "yzd-v/DWPose"
    """Folder, hub id or `mini/NAME` of the DWPose ONNX pair that reads driving videos."""
    data_folder: Path = Path("serving-data")
    """Folder of jobs, inputs and results; what is in it outlives a restart. Created where missing."""
    storage: str = ""
    """Where uploads, inputs and results lie: s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX, with the
    vendor's own variables for credentials and endpoint (docs/serving/results.md). Empty: `data_folder`."""
    presign: bool = False
    """Whether a clip in a bucket is answered with a redirect to a signed URL of it; otherwise it is passed through."""
    presign_s: float = 300.0
    """Seconds for which a signed URL is good."""
    provenance: Literal["signed", "off"] = "signed"
    """Whether clips carry signed C2PA provenance; a clip that cannot be signed is a failed job."""
    signing_certificate: str = ""
    """PEM file of the certificate that clips are signed with (P-256, then those that vouch for it). Empty: one made for
    development in `data_folder`, which nobody trusts (docs/serving/provenance.md)."""
    signing_key: str = ""
    """PEM file of its private key."""
    timestamp_authority: str = ""
    """URL of an RFC 3161 time-stamp authority that each signature is shown to; empty asks none."""
    provenance_prompt: bool = False
    """Whether the signed provenance holds the prompt itself, which may be private, and not just its hash."""
    invisible_mark: bool = False
    """Whether the first 8 digits of the job's id are hidden in the frames, to be found again after re-encoding."""
    invisible_mark_key: str = ""
    """File with the secret that the marks are made with and found by. Empty: one made in `data_folder`."""
    database: str = ""
    """SQLAlchemy URL of the job store; empty means SQLite inside `data_folder`."""
    host: str = "127.0.0.1"
    """Address to listen on. Anything but loopback needs `api_key_hashes` or `require_keys`."""
    port: int = 8000
    """TCP port to listen on."""
    ssl_certfile: str = ""
    """PEM file of the certificate chain: then HTTPS is spoken. Empty: HTTP, as behind a reverse proxy."""
    ssl_keyfile: str = ""
    """PEM file of its private key."""
    api_key_hashes: tuple[str, ...] = ()
    """sha256 in hex of keys of the tenant `default`, with every scope; `python -m serving key` makes a pair. Empty, and
    no key in the database: loopback only, no keys."""
    require_keys: bool = False
    """Whether only holders of keys are served also before the first key was made (`python -m serving key create`); set
    it to listen beyond loopback with keys of the database alone."""
    quotas: Quotas = field(default_factory=Quotas)
    """What each tenant may use, where `python -m serving tenant set` says nothing else for it."""
    gpu_hour_price: float = 0.0
    """Price of one GPU hour, in any currency: what a tenant's GPU seconds cost, on /metrics."""
    private_hosts: tuple[str, ...] = ()
    """Hosts, or HOST:PORT, in a private network that media and webhooks may name all the same."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses of reverse proxies whose X-Forwarded-For is believed, for the audit log."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """Log lines: `auto` is text at a terminal and JSON elsewhere."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where clips are rendered; `auto` takes a GPU where there is one."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the weights while rendering."""
    min_engines: int = 1
    """Model replicas that always run, each of which renders one job at a time; 0 lets an idle service give up its last
    GPU, and its next job wait for the model to load."""
    max_engines: int = 1
    """Model replicas at most; between the two, as many as the queue needs."""
    scaling: Scaling = field(default_factory=Scaling)
    """When engines are added and given up."""
    canary: Canary = field(default_factory=Canary)
    """How a new version of the model takes over."""
    gpus_per_engine: float = 1.0
    """GPUs that Ray sets aside for each replica, on one node; 0 renders on the CPU."""
    cpus_per_engine: float = 1.0
    """CPUs that Ray sets aside for each replica."""
    num_cpus: int = 4
    """Logical CPUs of the local Ray (used where RAY_ADDRESS is not set)."""
    threads: int = 0
    """Torch threads of a replica; 0 leaves it to torch."""
    parallel: int = 1
    """Processes that denoise each clip together, a GPU each: 2 share guidance, 4 each branch's tokens too. Set
    `gpus_per_engine` to the same."""
    acceleration: Acceleration = field(default_factory=Acceleration)
    """How transformers are made fast; the default changes nothing, to the bit (docs/serving/engine.md)."""
    warm_shapes: tuple[str, ...] = ()
    """Sizes that are rendered once before a replica says that it is ready, each WIDTHxHEIGHTxFRAMES: no job of such a
    size pays for compiling. Empty: a short clip of the default size."""
    compile_cache: str = ""
    """Folder where compiled kernels are kept for the next start (TORCHINDUCTOR_CACHE_DIR); empty leaves it to torch."""
    cache_mib: int = 2048
    """Memory for poses, latents and prompts that are found again by their content, MiB; 0 keeps nothing."""
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
    records_kept_s: float = 90 * 24 * 3600.0
    """Seconds for which a job stays on record after its end, once its clip has expired or where it has none."""
    events_kept_s: float = 24 * 3600.0
    """Seconds for which a client that comes back to an event stream is told every change that it has missed."""

    def __post_init__(self):
        if not 0 < self.port < 65536:
            raise ConfigError(f"port is {self.port}; it must be from 1 to 65535", code="port", param="port")
        self._check_engines()
        for name in ("max_attempts", "num_cpus", "parallel"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1", code=name, param=name)
        if self.lease_s <= 0 or self.longest_job_s < self.lease_s:
            raise ConfigError(
                f"lease_s is {self.lease_s} and longest_job_s {self.longest_job_s}; it must hold that "
                "0 < lease_s <= longest_job_s",
                code="lease_s",
                param="lease_s",
            )
        self._check_storage()
        if self.device != "cpu" and self.gpus_per_engine and self.parallel > max(1, self.gpus_per_engine):
            raise ConfigError(
                f"parallel is {self.parallel} and gpus_per_engine {self.gpus_per_engine:g}; each process needs a GPU",
                code="setting_conflict",
                param="parallel",
            )
        _ = self.named_models, self.named_loras
        self._check_keys()
        self._check_tls()

    def _check_storage(self) -> None:
        if self.storage and not self.storage.startswith(("s3://", "gs://", "az://")):
            raise ConfigError(
                f"storage is {self.storage!r}; give s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX, "
                "or leave it empty for the data folder",
                code="storage",
                param="storage",
            )
        if not 1 <= self.presign_s <= 7 * 24 * 3600:
            raise ConfigError(
                f"presign_s is {self.presign_s:g}; a signed URL is good for 1 s to 7 days",
                code="presign_s",
                param="presign_s",
            )

    def _check_engines(self) -> None:
        if not 0 <= self.min_engines <= self.max_engines or self.max_engines < 1:
            raise ConfigError(
                f"min_engines is {self.min_engines} and max_engines {self.max_engines}; it must hold that "
                "0 <= min_engines <= max_engines and max_engines >= 1",
                code="engines",
                param="max_engines",
            )
        if self.gpus_per_engine > 1 and self.gpus_per_engine != int(self.gpus_per_engine):
            raise ConfigError(
                f"gpus_per_engine is {self.gpus_per_engine}; above 1 it must be a whole number",
                code="gpus_per_engine",
                param="gpus_per_engine",
            )

    @property
    def named_models(self) -> dict[str, str]:
        """`models` by name; ConfigError where one is not NAME=FOLDER, or a name comes twice."""
        return _named(self.models, "models")

    @property
    def named_loras(self) -> dict[str, str]:
        """`loras` by name; ConfigError as above."""
        return _named(self.loras, "loras")

    def _check_tls(self) -> None:
        files = (self.ssl_certfile, self.ssl_keyfile)
        if any(files) and not all(name and Path(name).is_file() for name in files):
            raise ConfigError(
                f"ssl_certfile is {files[0]!r} and ssl_keyfile {files[1]!r}; both must be files, or neither is given",
                code="ssl_certfile",
                param="ssl_certfile",
            )

    def _check_keys(self) -> None:
        for digest in self.api_key_hashes:
            if len(digest) != 64 or not all(c in "0123456789abcdef" for c in digest):
                raise ConfigError(
                    "an entry of api_key_hashes is no sha256 in lower-case hex; `python -m serving key` makes one",
                    code="api_key_hashes",
                    param="api_key_hashes",
                )
        if not self.api_key_hashes and not self.require_keys and not is_loopback(self.host):
            raise ConfigError(
                f"host is {self.host!r} and no API keys are required: anyone could use the service. Give "
                "--require-keys (`python -m serving key create` makes keys) or --api-key-hashes, or keep --host "
                "127.0.0.1",
                code="host_without_keys",
                param="host",
            )

    @property
    def scheme(self) -> str:
        return "https" if self.ssl_certfile else "http"

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.data_folder.absolute() / 'jobs.db'}"


def _named(pairs: tuple[str, ...], param: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs:
        name, sign, place = pair.partition("=")
        if not sign or not place or not _NAME.fullmatch(name) or name in found:
            raise ConfigError(
                f"{param} has {pair!r}; write NAME=PLACE, each name once, of letters, digits and . _ / -",
                code=param,
                param=param,
            )
        found[name] = place
    return found


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
