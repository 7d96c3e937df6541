"""Where a service's model comes from: a folder, a hub id, the mini family, or MLflow's registry."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dynamictrl import weights
from dynamictrl.errors import CheckpointError

if TYPE_CHECKING:
    from serving.config import Service

COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
MINI_WIDTH = 1024
"""A transformer narrower than this is of the mini family: the smallest released one has 1,920."""

_MLFLOW = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_SAMPLE = 2**20


@dataclass(frozen=True)
class ModelSource:
    """A model folder on this machine and what it is called."""

    folder: Path
    name: str
    """What clients call it in `model`."""
    version: str
    """`NAME/3` from the registry, else a hash of the weights: which model made a clip."""
    mini: bool
    transformer: Path | None = None
    """Folder of another transformer that takes the place of the folder's own."""

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        lent = str(self.transformer) if self.transformer else None
        return {**asdict(self), "folder": str(self.folder), "transformer": lent}


def public_name(model: str) -> str:
    """What clients call a model, known without looking at it."""
    match = _MLFLOW.fullmatch(model)
    if match:
        return match["name"]
    is_name = model.count("/") == 1 and not model.startswith((".", "/", "~")) and not Path(model).is_dir()
    return model if is_name else "dynamictrl"


def locate(model: str, transformer: str = "") -> ModelSource:
    """Finds, and where need be downloads, a model; raises CheckpointError that says which part is missing.

    `transformer` names a folder or hub id whose transformer is taken instead of the model's own: the released masked
    models are such, and go with the folder of the base that they were trained from.
    """
    if model.startswith("models:"):
        folder, version = _from_registry(model)
    else:
        folder, version = weights.resolve(model), None
    check_folder(folder)
    name, version = public_name(model), version or weights_hash(folder)
    if not transformer:
        return ModelSource(folder, name, version, is_mini(folder / "transformer"))
    lent = _transformer_folder(transformer)
    return ModelSource(folder, public_name(transformer), f"{version}+{weights_hash(lent)}", is_mini(lent), lent)


def locate_all(model: str, transformer: str, others: Mapping[str, str]) -> list[ModelSource]:
    """A service's models, the default one first; `others` are folders or hub ids by the names that clients use.

    One without a model_index.json is a lone transformer, which goes with the folder of the first. CheckpointError where
    one cannot be had, or two have one name.
    """
    first = locate(model, transformer)
    sources = [first]
    for name, place in others.items():
        if name == first.name:
            raise CheckpointError(
                f"two models are called {name!r}; give the one of `models` another name",
                code="model_name",
                param="models",
            )
        whole = place.startswith("models:") or (weights.resolve(place) / "model_index.json").is_file()
        sources.append(replace(locate(place) if whole else _lone(first, place), name=name))
    return sources


def _lone(base: ModelSource, place: str) -> ModelSource:
    lent = _transformer_folder(place)
    version = f"{base.version.partition('+')[0]}+{weights_hash(lent)}"
    return ModelSource(base.folder, place, version, is_mini(lent), lent)


def model_names(service: Service) -> list[str]:
    """What clients may ask for in `model`, the default first; known without looking at a folder."""
    return [public_name(service.transformer or service.model), *service.named_models]


def lora_file(place: str) -> Path:
    """A LoRA's file on this machine: a file, or a folder's only one; CheckpointError where there is none."""
    path = Path(place).expanduser()
    if not path.exists() and place.count("/") == 1 and not place.startswith((".", "/", "~")):
        path = weights.resolve(place)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(
            f"{place} holds {len(files) or 'no'} .safetensors files; name a LoRA's file, or a folder with one",
            code="weights_missing",
            param="loras",
        )
    return files[0]


def _transformer_folder(transformer: str) -> Path:
    folder = weights.resolve(transformer)
    folder = folder / "transformer" if (folder / "transformer").is_dir() else folder
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} holds no transformer (config.json and .safetensors files); name a model folder, or one with a "
            "transformer's files",
            code="weights_missing",
            param="transformer",
        )
    return folder


def check_folder(folder: Path) -> None:
    """Refuses a folder that cannot be a DynamiCtrl pipeline, before anything heavy is imported."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
    except (OSError, ValueError) as problem:
        raise CheckpointError(
            f"{folder / 'model_index.json'} cannot be read ({type(problem).__name__}); name a folder that "
            "DynamiCtrlPipeline.save_pretrained wrote, such as RUN/model",
            code="model_folder",
            param="model",
        ) from problem
    missing = [name for name in COMPONENTS if name not in index or not (folder / name).is_dir()]
    if missing:
        raise CheckpointError(
            f"the model folder {folder} lacks {', '.join(missing)}; name a folder that "
            "DynamiCtrlPipeline.save_pretrained wrote, such as RUN/model",
            code="model_folder",
            param="model",
        )
    for name in ("transformer", "vae", "text_encoder"):
        if not any((folder / name).glob("*.safetensors")):
            raise CheckpointError(
                f"{folder / name} holds no .safetensors file; copy the weights there or name another model",
                code="weights_missing",
                param="model",
            )


def is_mini(transformer: Path) -> bool:
    """Whether a transformer's folder holds one of the small models, by its width."""
    config = json.loads((transformer / "config.json").read_text())
    return config.get("num_attention_heads", 30) * config.get("attention_head_dim", 64) < MINI_WIDTH


def weights_hash(folder: Path) -> str:
    """A name for the weights: sizes, headers and ends of each file (whole files of tens of GB would take minutes)."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)} {size}\n".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(_SAMPLE))
            stream.seek(max(0, size - _SAMPLE))
            digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()[:16]


def _from_registry(model: str) -> tuple[Path, str]:
    match = _MLFLOW.fullmatch(model)
    if match is None:
        raise CheckpointError(
            f"the model URI {model!r} is not understood; write models:/NAME@ALIAS or models:/NAME/VERSION",
            code="model_uri",
            param="model",
        )
    tracking = os.environ.get("MLFLOW_TRACKING_URI")
    if not tracking:
        raise CheckpointError(
            f"{model!r} is a name in MLflow's registry and MLFLOW_TRACKING_URI is not set; set it to the store that "
            "training wrote to (such as sqlite:///RUN/mlflow.db), or name the model's folder",
            code="no_tracking_uri",
            param="model",
        )
    # Imported late: it takes seconds, and only this branch needs it.
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient(tracking, registry_uri=tracking)
    name = match["name"]
    try:
        if match["alias"]:
            version = client.get_model_version_by_alias(name, match["alias"])
        else:
            version = client.get_model_version(name, match["version"])
        source = mlflow.artifacts.download_artifacts(
            artifact_uri=client.get_model_version_download_uri(name, version.version), tracking_uri=tracking
        )
    except (MlflowException, OSError) as problem:
        raise CheckpointError(
            f"{model!r} could not be had from {tracking} ({problem}). Train and register a model first "
            "(`python -m training ...`), or name a model folder",
            code="model_not_registered",
            param="model",
        ) from problem
    return _pipeline_folder(Path(source)), f"{name}/{version.version}"


def _pipeline_folder(downloaded: Path) -> Path:
    """The diffusers folder in what the registry holds: the artifact itself, or a folder in it."""
    indexes = sorted(downloaded.glob("**/model_index.json"), key=lambda path: len(path.parts))
    return indexes[0].parent if indexes else downloaded
