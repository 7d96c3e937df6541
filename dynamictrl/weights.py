"""Where model weights are: a local folder, a hub id, or the mini family that ships with this package."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dynamictrl.errors import CheckpointError

MINI = Path(__file__).parent / "mini" / "weights"
"""The shipped small models, named `mini/NAME`."""


def resolve(name: str | Path, files: Iterable[str] = (), *, subfolder: str = "") -> Path:
    """The local folder that holds a model, downloaded once per node where `name` is a hub id.

    `files` are glob patterns that must each match a file in the folder; only they (and json files) are downloaded.
    Raises CheckpointError naming the file, where it was looked for, and how to provide it.
    """
    patterns = tuple(files)
    folder = _local(name) or _download(str(name), patterns, subfolder)
    folder = folder / subfolder if subfolder else folder
    for pattern in patterns:
        if not any(folder.glob(pattern)):
            raise CheckpointError(
                f"{pattern} was not found in {folder} (weights named {str(name)!r}). Put the file there, or name "
                f"another local folder or hub id that holds it.",
                code="weights_missing",
            )
    return folder


def _local(name: str | Path) -> Path | None:
    text = str(name)
    if text.startswith("mini/"):
        folder = MINI / text.removeprefix("mini/")
        if not folder.is_dir():
            known = sorted(f"mini/{p.name}" for p in MINI.iterdir() if p.is_dir()) if MINI.is_dir() else []
            raise CheckpointError(f"there are no mini weights {text!r}; there are {known}", code="weights_missing")
        return folder
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if text.startswith((".", "/", "~")) or text.count("/") != 1:
        raise CheckpointError(
            f"the model folder {folder} does not exist. Give an existing folder, or a hub id such as OWNER/NAME.",
            code="weights_missing",
        )
    return None


def _download(repo: str, patterns: tuple[str, ...], subfolder: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = [f"{subfolder}/{p}" if subfolder else p for p in patterns]
    allowed = [*wanted, "*.json", "*.txt", "*.model"] if patterns else None
    try:
        return Path(snapshot_download(repo, allow_patterns=allowed))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as problem:
        looked_for = ", ".join(wanted) or "all files"
        raise CheckpointError(
            f"{looked_for} of {repo!r} could not be had from the hub or its local cache ({type(problem).__name__}). "
            f"Download {repo} once where there is a network and name its folder here, or set HF_HOME to a cache that "
            f"holds it.",
            code="weights_missing",
        ) from problem


def check_index(folder: Path) -> None:
    """Refuses a folder that no pipeline was saved in."""
    import json

    path = folder / "model_index.json"
    if not path.is_file() or "transformer" not in json.loads(path.read_text()):
        raise CheckpointError(
            f"{folder} is no DynamiCtrl model folder: it has no model_index.json that names a transformer. Name a "
            f"folder that `save_pretrained` wrote, or a hub id of one.",
            code="weights_missing",
        )


def file_hash(path: Path) -> str:
    """The sha256 of one weight file, in hex: what a data set records of each model that shaped it."""
    import hashlib

    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
