"""`python -m serving verify FILE`: what a clip says of itself, who signed that, and whether it still holds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from dynamictrl.errors import InputError
from serving.results.provenance import KINDS, Credentials, read_credentials


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Checks a clip's signed provenance, and looks for the invisible mark where its key is given."""

    file: Positional[Path]
    """An mp4, webp or jpg."""
    trust: Path | None = None
    """PEM file of authorities that you trust; then only their signatures count as good."""
    mark_key: Path | None = None
    """The service's key file for invisible marks (`--invisible-mark-key`, else signing-mark.key of its data folder)."""
    json: bool = False
    """Print one JSON object instead of sentences."""


@dataclass(frozen=True)
class Verdict:
    """What was found, and whether it is good."""

    is_good: bool
    credentials: Credentials | None
    mark: str | None
    """Eight hex digits: the beginning of the job's id; None where none was found or looked for."""
    mark_score: float | None

    def to_json(self) -> str:
        words: dict[str, Any] = asdict(self)
        return json.dumps(words, indent=1)

    def sentences(self, request: Verify) -> list[str]:
        """For people."""
        found, lines = self.credentials, []
        if found is None:
            lines.append(f"{request.file.name} carries no signed provenance (it was never signed, or it was taken off)")
        elif not found.is_intact:
            lines.append(f"{request.file.name} is NOT intact: changed after it was signed, or its signature is bad")
            lines += [f"  {problem}" for problem in found.problems]
        else:
            lines += _said(found, request)
        if request.mark_key is not None:
            what = f"found: job {self.mark}..." if self.mark else "not found"
            lines.append(f"invisible mark of this key: {what} (score {self.mark_score:.1f})")
        return lines


def verify(request: Verify) -> Verdict:
    """Looks at one file; InputError where it cannot be read, or is of no kind that can be signed."""
    if request.file.suffix.lower() not in KINDS:
        raise InputError(f"{request.file}: give one of {', '.join(KINDS)}", code="not_signed_kind", param="file")
    if not request.file.is_file():
        raise InputError(f"{request.file}: there is no such file", code="not_found", param="file")
    found = read_credentials(request.file, request.trust.read_bytes() if request.trust else b"")
    is_good = found is not None and found.is_intact and (request.trust is None or found.is_trusted)
    if request.mark_key is None:
        return Verdict(is_good, found, None, None)
    from dynamictrl.media.invisible_mark import FOUND, strongest
    from dynamictrl.media.video import read_video
    from serving.results.certificates import read_mark_key

    frames = read_video(request.file).frames
    mark = strongest(frames, read_mark_key(request.mark_key))
    is_there = mark.score >= FOUND
    return Verdict(is_good, found, f"{mark.payload:08x}" if is_there else None, mark.score)


def _said(found: Credentials, request: Verify) -> list[str]:
    said, model = found.rendering, found.rendering.get("model", {})
    lines = [
        f"{request.file.name} is intact: nothing that was signed has changed",
        f"signed by {found.signer!r} of {found.issuer!r}, {_standing(found, request)}",
        f"made by {found.generator}, model {model.get('name')} {model.get('version')}"
        + (" (mini: a small model for trying things out)" if model.get("mini") else ""),
        "action " + ", ".join(f"{a.get('action')} ({_last(a.get('digitalSourceType'))})" for a in found.actions),
    ]
    if "person" in said:
        lines.append(said["person"])
    lines += [f"input {medium}: sha256 {digest}" for medium, digest in found.inputs.items()]
    if "settings" in said:
        lines.append("settings " + ", ".join(f"{name} {value}" for name, value in said["settings"].items()))
    lines.append(f"prompt {said['prompt']!r}" if "prompt" in said else f"prompt sha256 {said.get('prompt_sha256')}")
    return lines


def _standing(found: Credentials, request: Verify) -> str:
    if found.is_trusted:
        return "whom you trust"
    if found.is_development:
        return "a development certificate that anyone can make: it proves only that the file is unchanged"
    return "who is NOT among those you trust" if request.trust else "whom no list was given to trust"


def _last(url: str | None) -> str:
    return (url or "").rpartition("/")[2]
