"""Content credentials (C2PA): what made a clip, from what, signed into the file itself so that anyone can check it."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import c2pa

import dynamictrl
from dynamictrl.errors import DynamiCtrlError
from serving.results.certificates import DEVELOPMENT, Identity

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
RENDERING = "org.dynamictrl.rendering"
"""Label of our own assertion: model, settings, seed, inputs."""
KINDS = {".mp4": "video/mp4", ".webp": "image/webp", ".jpg": "image/jpeg"}
"""Files that can carry a signature, by suffix."""


@dataclass(frozen=True)
class Claim:
    """What is said of a clip; `rendering` is JSON-able."""

    title: str
    rendering: Mapping[str, Any]
    inputs: Mapping[str, str]
    """Medium -> sha256 in hex."""


class Notary:
    """Signs files. Threads may share it."""

    def __init__(self, identity: Identity, *, timestamp_authority: str = ""):
        self.identity = identity
        info = c2pa.C2paSignerInfo(
            alg=b"es256", sign_cert=identity.chain, private_key=identity.key,
            ta_url=timestamp_authority.encode() or None
        )  # fmt: skip
        try:
            self._signer = c2pa.Signer.from_info(info)
            # A preview of each picture inside itself would take 20 times as long, and 270 KB.
            plain = {"builder": {"thumbnail": {"enabled": False}}}
            self._context = c2pa.Context(c2pa.Settings.from_dict(plain))
        except c2pa.C2paError as problem:
            raise _failed(problem) from problem

    def sign(self, path: Path, claim: Claim) -> None:
        """Signs a file in place, whole or not at all; DynamiCtrlError with code `provenance` where that fails."""
        kind = KINDS[path.suffix]
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        try:
            builder = c2pa.Builder.from_json(json.dumps(_definition(claim, kind)), context=self._context)
            with path.open("rb") as source, partial.open("w+b") as target:
                builder.sign(self._signer, kind, source, target)
            os.replace(partial, path)
        except (c2pa.C2paError, OSError) as problem:
            raise _failed(problem) from problem
        finally:
            partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class Credentials:
    """What a file's signature says, and whether it holds."""

    is_intact: bool
    """The signature is good and nothing under it has changed (padding in the signature's own box is under none)."""
    is_trusted: bool
    """The signer's certificate leads to one of those that the caller trusts."""
    signer: str = ""
    issuer: str = ""
    generator: str = ""
    actions: list[dict[str, Any]] = field(default_factory=list)
    rendering: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def is_development(self) -> bool:
        return self.issuer == DEVELOPMENT


def read_credentials(path: Path, trusted: bytes = b"") -> Credentials | None:
    """The credentials of a file, None where it has none. `trusted` is PEM of authorities that the caller believes."""
    settings: dict[str, Any] = {"verify": {"verify_trust": True, "remote_manifest_fetch": False}}
    if trusted:
        settings["trust"] = {"trust_anchors": trusted.decode()}
    try:
        context = c2pa.Context(c2pa.Settings.from_dict(settings))
        with path.open("rb") as stream, c2pa.Reader(KINDS[path.suffix.lower()], stream, context=context) as reader:
            state, told = reader.get_validation_state(), json.loads(reader.json())
    except c2pa.C2paError.ManifestNotFound:
        return None
    except (c2pa.C2paError, KeyError, ValueError) as problem:
        return Credentials(False, False, problems=[str(problem)[:300]])
    manifest = told["manifests"][told["active_manifest"]]
    assertions = {item["label"]: item["data"] for item in manifest.get("assertions", [])}
    signature, generator = manifest.get("signature_info", {}), (manifest.get("claim_generator_info") or [{}])[0]
    problems = [f"{item['code']}: {item.get('explanation', '')}" for item in told.get("validation_status", [])]
    return Credentials(
        is_intact=state in ("Valid", "Trusted"),
        is_trusted=state == "Trusted",
        signer=signature.get("common_name", ""),
        issuer=signature.get("issuer", ""),
        generator=f"{generator.get('name', '')}/{generator.get('version', '')}",
        actions=assertions.get("c2pa.actions.v2", {}).get("actions", []),
        rendering=assertions.get(RENDERING, {}),
        inputs={item["title"]: item["instance_id"].rpartition(":")[2] for item in manifest.get("ingredients", [])},
        problems=problems,
    )


def _definition(claim: Claim, kind: str) -> dict[str, Any]:
    software = {"name": "DynamiCtrl", "version": dynamictrl.__version__}
    action = {
        "action": "c2pa.created",
        "digitalSourceType": SOURCE_TYPE,
        "softwareAgent": software,
        "description": "Animated by a trained model from the picture of a person and a motion.",
        "parameters": {"ingredientIds": [f"{medium}:sha256:{digest}" for medium, digest in claim.inputs.items()]},
    }
    return {
        "claim_generator_info": [software],
        "title": claim.title,
        "format": kind,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [action]}},
            {"label": RENDERING, "data": dict(claim.rendering)},
        ],
        # Known by their hash alone: neither their bytes nor a picture of them goes into the file.
        "ingredients": [
            {"title": medium, "instance_id": f"{medium}:sha256:{digest}", "relationship": "inputTo"}
            for medium, digest in claim.inputs.items()
        ],
    }


def _failed(problem: Exception) -> DynamiCtrlError:
    message = f"the clip could not be signed ({type(problem).__name__}: {problem})"
    return DynamiCtrlError(message[:400], code="provenance")
