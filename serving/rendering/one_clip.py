"""One clip without a server: `python -m serving animate`. Bad input is refused before a model is loaded."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from dynamictrl.errors import InputError
from serving.named_files import check_paths

if TYPE_CHECKING:
    from serving.jobs.job import AnimationJob
    from serving.rendering.clip_wanted import Animate, Show


def animate_one(request: Animate, show: Show) -> str:
    """Renders one clip and writes it, whole or not at all; returns a note for people, empty as a rule.

    Raises InputError and CheckpointError for what is wrong with the request; before the weights are loaded, except
    for what only the pose model can see (no person).
    """
    from serving.rendering.model_source import locate

    check_paths(request)
    if request.manifest is not None:
        from serving.rendering.from_manifest import render_again

        return render_again(request, show)
    if not request.model or request.prompt is None:
        raise InputError("give --model and --prompt, or the --manifest of a clip to render again")
    source = locate(request.model, request.transformer)
    job = _job(request, source.mini)
    show("loading", 0, 1)
    # From here on it takes long: torch, then the weights.
    import torch

    from dynamictrl.media.audio import keep_sound
    from dynamictrl.media.video import write_video
    from serving.rendering.engine import Engine

    on_gpu = request.device == "cuda" or (request.device == "auto" and torch.cuda.is_available())
    dtype = request.dtype if request.dtype != "auto" else "bfloat16" if on_gpu else "float32"
    pose_model = request.pose_model or ("mini/dwpose" if source.mini else "yzd-v/DWPose")
    ways: dict[str, Any] = {"compatibility": request.compatibility, "alignment": request.alignment}
    engine = Engine(source, pose_model, device=request.device, dtype=dtype, **ways)
    if request.lora:
        engine.pipeline.load_lora_weights(request.lora, adapter_name="lora")
        engine.pipeline.set_adapters("lora", request.lora_scale)
    clip = engine.animate(job, on_step=show)
    write_video(request.out, clip.frames, clip.fps)
    seconds, note = len(clip.frames) / clip.fps, ""
    if job.sound_source is not None and not keep_sound(job.sound_source, request.out, seconds=seconds):
        note = f"{job.sound_source} has no sound in its first {seconds:.2f} s: the clip is silent"
    show("written", len(clip.frames), len(clip.frames))
    return note


def _job(request: Animate, mini: bool) -> AnimationJob:
    """The request with every bound checked against the files themselves."""
    from dynamictrl.errors import MediaError
    from dynamictrl.media.images import read_image
    from dynamictrl.media.video import probe
    from serving.config import Limits
    from serving.jobs.job import AnimationJob, VideoFacts, Wish, check_media, check_wish, settle
    from serving.recipes import mini as mini_recipe
    from serving.recipes import production

    # Limits are for strangers; whoever runs this owns the machine.
    limits = Limits(output_pixels=2**40, num_frames=2**20, video_seconds=1e9, num_inference_steps=1000)
    width, height = _size(request.size)
    wish = Wish(
        prompt=request.prompt or "", width=width, height=height, num_frames=request.num_frames, fps=request.fps,
        num_inference_steps=request.num_inference_steps, guidance_scale=request.guidance_scale, seed=request.seed,
        keep_audio=request.keep_audio,
    )  # fmt: skip
    check_wish(wish, limits)
    motion: dict[str, Any] = {"driving_video": request.driving, "pose_video": request.pose_video}
    check_media({"input_reference": request.image, **motion})
    image = read_image(request.image)
    if request.mask is not None and (mask := read_image(request.mask)).size != image.size:
        raise InputError(
            f"the mask {request.mask} is {mask.width}x{mask.height} and the image {image.width}x{image.height} pixels; "
            "give a mask of the image's size",
            code="mask_size",
            param="mask",
        )
    path = request.driving or request.pose_video
    assert path is not None  # check_media has seen to it
    info = probe(path)
    if not 0 < info.fps <= 1000:
        raise MediaError(f"{path} states a frame rate of {info.fps:g}; encode it again at a constant one")
    facts = VideoFacts(info.width, info.height, info.fps, info.frames, info.duration)
    defaults = (mini_recipe() if mini else production()).defaults
    settings = settle(wish, facts, is_pose_video=request.pose_video is not None, defaults=defaults, limits=limits)
    return AnimationJob(settings=settings, image=request.image, mask=request.mask, **motion)


def _size(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None:
        raise InputError(f"--size {text}: write WIDTHxHEIGHT in pixels, such as 512x768", code="bad_size", param="size")
    return int(match[1]), int(match[2])
