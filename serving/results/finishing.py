"""From frames to results that say what they are: marked, encoded, signed, with a manifest to render them again."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamictrl.media import invisible_mark
from dynamictrl.media.audio import Sound
from serving.config import Service
from serving.results.certificates import open_identity, open_mark_key
from serving.results.manifest import Rendering, to_manifest
from serving.results.provenance import KINDS, Claim, Notary
from serving.results.renditions import write_results

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """What became of a clip besides its files."""

    manifest: str
    """JSON from which it can be rendered again."""
    seconds: dict[str, float]
    """Time by step: mark, encode, sign."""


class Finisher:
    """The last hands of a worker, chosen once by the service's settings."""

    def __init__(self, service: Service, data_folder: Path):
        """Reads, or makes, certificate and key; ConfigError where they cannot be used."""
        self._name_prompt = service.provenance_prompt
        self._mark_key = open_mark_key(service.invisible_mark_key, data_folder) if service.invisible_mark else None
        self._notary: Notary | None = None
        if service.provenance == "off":
            logger.warning("clips carry no signed provenance (provenance off): who passes them on may have to say it")
            return
        identity = open_identity(service.signing_certificate, service.signing_key, data_folder / "signing")
        self._notary = Notary(identity, timestamp_authority=service.timestamp_authority)
        if identity.is_development:
            logger.warning(
                "clips are signed with a development certificate (%s), which nobody trusts; give --signing-certificate "
                "and --signing-key in production",
                data_folder / "signing",
            )

    def finish(
        self, folder: Path, frames: NDArray[np.uint8], fps: float, sound: Sound | None, rendering: Rendering
    ) -> Finished:
        """Writes every variant into `folder`; DynamiCtrlError with code `provenance` where it cannot be signed."""
        start = time.perf_counter()
        manifest = json.dumps(to_manifest(rendering), sort_keys=True)
        mark = payload_of(rendering.video_id) if self._mark_key is not None else None
        if mark is not None:
            assert self._mark_key is not None
            frames = invisible_mark.mark(frames, mark, self._mark_key)
        marked = time.perf_counter()
        write_results(folder, frames, fps, sound)
        encoded = time.perf_counter()
        if self._notary is not None:
            claim = Claim(rendering.video_id, self._said_of(rendering, manifest, mark), rendering.inputs)
            for path in folder.iterdir():
                if path.suffix in KINDS:
                    self._notary.sign(path, claim)
        seconds = {"mark": marked - start, "video": encoded - marked, "sign": time.perf_counter() - encoded}
        return Finished(manifest, seconds)

    def _said_of(self, rendering: Rendering, manifest: str, mark: int | None) -> dict[str, Any]:
        """What the signature covers. The prompt may be private, so only its hash is said unless that is configured."""
        settings = asdict(rendering.settings)
        prompt = settings.pop("prompt")
        said: dict[str, Any] = {
            "job": rendering.video_id,
            "model": {"name": rendering.model, "version": rendering.model_version, "mini": rendering.is_mini},
            "settings": settings,
            "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(),
            "inputs_sha256": dict(rendering.inputs),
            "person": "the clip shows the person of a picture that was given (input_reference)",
            "manifest_sha256": hashlib.sha256(manifest.encode()).hexdigest(),
        }
        if self._name_prompt:
            said["prompt"] = prompt
        if mark is not None:
            said["invisible_mark"] = f"{mark:08x}"
        return said


def payload_of(video_id: str) -> int:
    """The 32 bits that an invisible mark carries: the first 8 hex digits of the job's id."""
    return int(video_id.rpartition("_")[2][:8], 16)
