"""Legal sizes and frame counts, and how pictures come to them: one place for training and serving.

A clip of n = 4k + 1 frames becomes k + 1 latent frames, and 8 x 8 pixels one latent pixel, of which 2 x 2 make a token.
"""

from __future__ import annotations

from typing import overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dynamictrl.errors import InputError

SIZE_MULTIPLE = 16
"""Pixels: 8 of the VAE times 2 of a patch."""
FRAMES_PER_LATENT = 4
CENTRE = (0.5, 0.5)
"""The middle of a picture, as x and y in [0, 1] of it."""


def nearest_size(value: int, multiple: int = SIZE_MULTIPLE) -> int:
    """The legal height or width nearest to a wished one, in pixels."""
    return max(multiple, round(value / multiple) * multiple)


def check_size(height: int, width: int, multiple: int = SIZE_MULTIPLE) -> None:
    """Refuses a picture size that is no multiple of 16 pixels; InputError (code "bad_size") names the nearest legal."""
    if height > 0 and width > 0 and height % multiple == 0 and width % multiple == 0:
        return
    raise InputError(
        f"the size {width}x{height} (width x height) cannot be rendered: both must be multiples of {multiple}. "
        f"The nearest is {nearest_size(width, multiple)}x{nearest_size(height, multiple)}.",
        code="bad_size",
        param="size",
    )


def legal_frames_below(num_frames: int) -> int:
    """The largest legal frame count that `num_frames` frames suffice for; 0 where they do not suffice for 5."""
    return max(0, (num_frames - 1) // FRAMES_PER_LATENT) * FRAMES_PER_LATENT + 1 if num_frames >= 5 else 0


def nearest_frames(num_frames: int) -> int:
    """The legal frame count nearest to a wished one."""
    return max(1, round((num_frames - 1) / FRAMES_PER_LATENT)) * FRAMES_PER_LATENT + 1


def check_num_frames(num_frames: int) -> None:
    """Refuses a frame count other than 5, 9, 13, ...; InputError (code "bad_num_frames") names the nearest legal."""
    if num_frames >= 5 and num_frames % FRAMES_PER_LATENT == 1:
        return
    below = legal_frames_below(num_frames)
    nearest = f"nearest are {below} and {below + FRAMES_PER_LATENT}" if below else "smallest is 5"
    raise InputError(
        f"{num_frames} frames cannot be rendered: the count must be 4k + 1 with k >= 1 (5, 9, 13, ...); the {nearest}.",
        code="bad_num_frames",
        param="num_frames",
    )


def latent_frames(num_frames: int) -> int:
    """How many latent frames a clip of 4k + 1 frames has (a single image has one)."""
    return (num_frames - 1) // FRAMES_PER_LATENT + 1


def cover_box(
    height: int, width: int, target_height: int, target_width: int, centre: tuple[float, float] = CENTRE
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in pixels of the largest part with the target's aspect ratio.

    It lies around `centre` (x, y in [0, 1] of the picture) as far as the picture's edges let it.
    """
    scale = min(height / target_height, width / target_width)
    crop_height, crop_width = target_height * scale, target_width * scale
    left, top = (
        min(max(middle * whole - part / 2, 0.0), whole - part)
        for middle, whole, part in ((centre[0], width, crop_width), (centre[1], height, crop_height))
    )
    return left, top, left + crop_width, top + crop_height


@overload
def cover_crop(
    pictures: Image.Image,
    height: int,
    width: int,
    *,
    resample: Image.Resampling | None = None,
    centre: tuple[float, float] = CENTRE,
) -> Image.Image: ...
@overload
def cover_crop(
    pictures: NDArray[np.uint8],
    height: int,
    width: int,
    *,
    resample: Image.Resampling | None = None,
    centre: tuple[float, float] = CENTRE,
) -> NDArray[np.uint8]: ...
def cover_crop(
    pictures: Image.Image | NDArray[np.uint8],
    height: int,
    width: int,
    *,
    resample: Image.Resampling | None = None,
    centre: tuple[float, float] = CENTRE,
) -> Image.Image | NDArray[np.uint8]:
    """Resizes to cover height x width pixels without changing the aspect, and cuts what stands over (`cover_box`).

    Takes one picture, or uint8 frames [F, H, W, 3] or masks [F, H, W], and returns the same kind. Lanczos unless
    `resample` says otherwise (masks want NEAREST). Equal sizes are returned untouched.
    """
    if isinstance(pictures, Image.Image):
        return _cover_crop_image(pictures, height, width, resample, centre)
    if pictures.shape[1:3] == (height, width):
        return pictures
    fitted = (_cover_crop_image(Image.fromarray(p), height, width, resample, centre) for p in pictures)
    return np.stack([np.asarray(picture) for picture in fitted])


def _cover_crop_image(
    image: Image.Image, height: int, width: int, resample: Image.Resampling | None, centre: tuple[float, float]
) -> Image.Image:
    if (image.height, image.width) == (height, width):
        return image
    box = cover_box(image.height, image.width, height, width, centre)
    return image.resize((width, height), Image.Resampling.LANCZOS if resample is None else resample, box=box)


def consecutive_indices(available: int, num_frames: int, start: int = 0) -> NDArray[np.int64]:
    """Indices of `num_frames` consecutive frames; InputError (code "too_few_frames") where there are not as many."""
    if available - start < num_frames:
        usable = legal_frames_below(available - start)
        hint = f"ask for at most {usable}" if usable else "give a longer clip (5 frames at least)"
        raise InputError(
            f"{num_frames} frames were asked for and the clip has {max(0, available - start)}; {hint}.",
            code="too_few_frames",
            param="num_frames",
        )
    return np.arange(start, start + num_frames)
