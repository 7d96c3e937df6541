"""A clip once more, from its manifest: the same frames, or the reasons why they are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamictrl.errors import ConfigError, DynamiCtrlError, InputError
from serving.results.manifest import Recipe, frames_hash, read_manifest

if TYPE_CHECKING:
    from serving.rendering.clip_wanted import Animate, Show
    from serving.rendering.engine import Engine
    from serving.rendering.model_source import ModelSource


def render_again(request: Animate, show: Show) -> str:
    """Renders what a manifest describes and writes it; returns a sentence for people.

    Raises InputError where model or media are not those of the manifest, before any weight is loaded, and
    DynamiCtrlError with code `other_frames`, the clip being written all the same, where the frames differ.
    """
    from serving.rendering.model_source import locate

    assert request.manifest is not None
    recipe = read_manifest(request.manifest)
    media = _media(request, recipe)
    source = locate(request.model or recipe.model, request.transformer)
    if source.version != recipe.model_version:
        raise InputError(
            f"{source.folder} is version {source.version} of the model, and the clip was made with "
            f"{recipe.model} {recipe.model_version}; name that one with --model",
            code="manifest_model",
            param="model",
        )
    loras = _loras(request, recipe)
    show("loading", 0, 1)
    from dynamictrl.media.video import write_video
    from serving.jobs.job import AnimationJob

    engine = _engine(request, recipe, source, loras)
    _check_loras(engine, recipe)
    job = AnimationJob(
        settings=recipe.settings, image=media["input_reference"], driving_video=media.get("driving_video"),
        pose_video=media.get("pose_video"), mask=media.get("mask"), vae=recipe.engine.get("vae", "")
    )  # fmt: skip
    clip = engine.animate(job, on_step=show)
    write_video(request.out, clip.frames, clip.fps)
    show("written", len(clip.frames), len(clip.frames))
    if frames_hash(clip.frames) == recipe.frames_sha256:
        return f"the frames are equal to those of the manifest, bit for bit ({len(clip.frames)} frames)"
    raise DynamiCtrlError(
        f"{request.out} was written, and its frames are NOT those of the manifest{_why(recipe, clip.made_with)}",
        code="other_frames",
    )


def _media(request: Animate, recipe: Recipe) -> dict[str, Path]:
    given = {"input_reference": request.image, "driving_video": request.driving, "pose_video": request.pose_video,
             "mask": request.mask}  # fmt: skip
    media = {medium: path for medium, path in given.items() if path is not None}
    for medium, path in media.items():
        recipe.check_input(medium, path)
    if "mask" in recipe.inputs and "mask" not in media:
        raise InputError("the clip was made with a mask; give it with --mask", code="manifest_input", param="mask")
    return media


def _loras(request: Animate, recipe: Recipe) -> Mapping[str, Path]:
    names = [name for name, _ in recipe.settings.loras]
    if not names:
        return {}
    if len(names) > 1 or not request.lora:
        raise InputError(
            f"the clip wears the LoRA {', '.join(names)}; give its file with --lora (several cannot be given here)",
            code="manifest_lora",
            param="lora",
        )
    return {names[0]: Path(request.lora)}


def _check_loras(engine: Engine, recipe: Recipe) -> None:
    for name, _, was in recipe.engine.get("loras", []):
        if engine.lora_hash(name) != was:
            raise InputError(f"--lora is not the {name} of the manifest", code="manifest_lora", param="lora")


def _engine(request: Animate, recipe: Recipe, source: ModelSource, loras: Mapping[str, Path]) -> Engine:
    from dynamictrl.acceleration import Acceleration
    from serving.rendering.engine import Engine

    told = recipe.engine
    known = {item.name for item in fields(Acceleration)}
    wanted = {name: value for name, value in told.get("acceleration", {}).items() if name in known}
    ways: dict[str, Any] = {"compatibility": told["compatibility"], "alignment": told.get("alignment") or "auto"}
    try:
        return Engine(
            source,
            request.pose_model or told.get("pose_model") or ("mini/dwpose" if source.mini else "yzd-v/DWPose"),
            device="cpu" if told["device"] == "cpu" else "cuda",
            dtype=told["dtype"],
            threads=told["threads"],
            loras=loras,
            acceleration=Acceleration(**wanted),
            **ways,
        )
    except ConfigError as problem:
        raise InputError(f"this machine cannot render as the manifest says: {problem}", code=problem.code) from problem


def _why(recipe: Recipe, made_with: Mapping[str, Any]) -> str:
    reasons = recipe.differences()
    reasons += [
        f"{name} is {made_with.get(name)} here and was {was}"
        for name, was in recipe.engine.items()
        if _plain(made_with.get(name)) != _plain(was)
    ]
    if reasons:
        return ": " + "; ".join(reasons)
    return "; software and settings are the same, so it was another processor or GPU (docs/serving/provenance.md)"


def _plain(value: object) -> object:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
