"""What clients send, and what it wishes for: OpenAI's Videos shapes, with more."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from dynamictrl.errors import InputError
from serving.jobs.job import Wish

MOST_LORAS = 4
"""LoRAs of one job."""

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


class LoraWish(BaseModel):
    """One LoRA, by its name, and how strongly it counts."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=64)]
    weight: Annotated[float, Field(ge=-4, le=4)] = 1.0


class Orders(BaseModel):
    """What goes with a job and changes nothing of its clip."""

    webhook_url: Annotated[
        str | None, Field(max_length=2000, description="Told of the job's end, signed after Standard Webhooks.")
    ] = None
    wait: Annotated[float, Field(ge=0, description="Seconds to wait for the end before answering.")] = 0.0
    priority: Annotated[
        int, Field(ge=-10, le=10, description="Among one's own jobs: each step is worth five minutes of waiting.")
    ] = 0
    max_queue_s: Annotated[
        float | None,
        Field(gt=0, description="Fails with queue_timeout where no worker takes it within so many seconds."),
    ] = None
    deadline_s: Annotated[
        float | None,
        Field(gt=0, le=2_592_000, description="Fails with deadline_exceeded where it is not done in so many seconds."),
    ] = None


class VideoRequest(Orders):
    """The plain fields of POST /v1/videos; its media are read beside it (`http_body.py`)."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1, description="What the clip shows; the person comes from the image.")]
    model: Annotated[str | None, Field(description="A name of GET /v1/models; the served one if left out.")] = None
    size: Annotated[
        str | None,
        Field(description="WIDTHxHEIGHT in pixels, multiples of 16. Left out: the pose video's, else the default."),
    ] = None
    seconds: Annotated[
        float | None, Field(description="Length; becomes the nearest legal frame count at the video's rate.")
    ] = None
    num_frames: Annotated[int | None, Field(description="Length in frames: 5, 9, 13, ...; instead of `seconds`.")] = (
        None
    )
    fps: Annotated[
        float | None, Field(description="Frames per second of the clip; the driving video's own if left out.")
    ] = None
    num_inference_steps: Annotated[int | None, Field(description="Denoising steps.")] = None
    guidance_scale: Annotated[float | None, Field(description="Strength of the prompt; 1 is none.")] = None
    seed: Annotated[int | None, Field(description="The same seed and inputs give the same clip.")] = None
    quality: Annotated[
        str, Field(description="`exact`, or quicker and a little farther from it: `balanced`, `fast`.")
    ] = "exact"
    loras: Annotated[
        list[LoraWish] | str | None,
        Field(description="LoRAs that the model wears, as a list or its JSON text: [{name, weight}, ...]."),
    ] = None
    keep_audio: Annotated[
        bool, Field(description="The clip keeps the video's sound, cut to its frames; silent where there is none.")
    ] = False

    def to_wish(self) -> Wish:
        """InputError where the size is not WIDTHxHEIGHT."""
        width, height = _parse_size(self.size)
        return Wish(
            prompt=self.prompt,
            width=width,
            height=height,
            seconds=self.seconds,
            num_frames=self.num_frames,
            fps=self.fps,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            seed=self.seed,
            quality=self.quality,
            keep_audio=self.keep_audio,
            loras=_parse_loras(self.loras),
        )


_LORAS = TypeAdapter(list[LoraWish])


class RemixRequest(BaseModel):
    """POST /v1/videos/{id}/remix: the same job with a new prompt."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1)]


class ExtendRequest(Orders):
    """The plain fields of POST /v1/videos/extensions; size and rate are the clip's."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(min_length=1, description="What the clip goes on to show.")]
    seconds: Annotated[float, Field(description="Length of what is added, seconds.")]
    model: Annotated[str | None, Field(description="A name of GET /v1/models; the served one if left out.")] = None
    num_inference_steps: Annotated[int | None, Field(description="Denoising steps; the job's own if left out.")] = None
    guidance_scale: Annotated[float | None, Field(description="Strength of the prompt; the job's own.")] = None
    seed: Annotated[int | None, Field(description="The job's own if left out.")] = None
    quality: Annotated[str, Field(description="How it is rendered; the job's own if left out.")] = "exact"

    def as_request(self) -> VideoRequest:
        """The same without its length: frames are counted from the clip's rate."""
        return VideoRequest.model_validate(self.model_dump(exclude={"seconds"}, exclude_unset=True))

    def to_wish(self) -> Wish:
        return replace(self.as_request().to_wish(), seconds=self.seconds)


class CharacterRequest(BaseModel):
    """The plain fields of POST /v1/videos/characters."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=80, description="What the character is called.")]


def _parse_loras(loras: list[LoraWish] | str | None) -> tuple[tuple[str, float], ...]:
    """Forms cannot carry a list of objects, so a text of JSON means the same."""
    if isinstance(loras, str):
        try:
            loras = _LORAS.validate_json(loras)
        except ValueError as problem:
            raise InputError(
                'loras is a list such as [{"name": "style", "weight": 0.8}], or its JSON text',
                code="bad_loras",
                param="loras",
            ) from problem
    names = [lora.name for lora in loras or ()]
    if len(names) > MOST_LORAS or len(set(names)) < len(names):
        raise InputError(
            f"loras names {len(names)}; at most {MOST_LORAS} are taken, each once", code="bad_loras", param="loras"
        )
    return tuple((lora.name, lora.weight) for lora in loras or ())


def _parse_size(size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return None, None
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise InputError(
            f"size is {size[:40]!r}; write WIDTHxHEIGHT in pixels, such as 768x1360", code="bad_size", param="size"
        )
    return int(match[1]), int(match[2])
