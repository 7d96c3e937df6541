"""What a job would come to, before it is one: its shape, its cost, and what its sender may not have meant."""

from __future__ import annotations

import time

from dynamictrl import geometry
from serving.backend import Backend
from serving.tenants.tenant import Tenant
from serving.web.answers import Preflight
from serving.web.intake import Looked

SMALL = 0.5
"""An image of fewer pixels a side than this share of the clip's is worth a word."""
MUCH_CUT = 0.35
"""So is one of which more than this share is cut away."""


def to_preflight(looked: Looked, backend: Backend, model: str, tenant: Tenant) -> Preflight:
    """The report of one request whose media were found usable."""
    settings, store = looked.settings, backend.store
    seconds = store.estimates.seconds(model, settings, list(looked.media))
    wait = store.queue.outlook(tenant.id, time.time(), 2**62).wait_s
    price = backend.service.gpu_hour_price
    return Preflight(
        size=settings.size,
        num_frames=settings.num_frames,
        fps=settings.fps,
        seconds=settings.seconds,
        frames_available=looked.facts.available(looked.resampled_to),
        persons_in_image=looked.persons,
        crop=crop_of(looked),
        gpu_seconds=seconds,
        cost=round(seconds * price / 3600, 4) if seconds is not None and price else None,
        eta_s=None if wait is None or seconds is None else round(wait + seconds, 1),
        warnings=warnings(looked),
    )


def crop_of(looked: Looked) -> list[int] | None:
    """The part of the image that the clip shows, None where it is all of it."""
    image, settings = looked.image, looked.settings
    if image is None:
        return None
    box = [round(side) for side in geometry.cover_box(image.height, image.width, settings.height, settings.width)]
    return None if box == [0, 0, image.width, image.height] else box


def warnings(looked: Looked) -> list[str]:
    """What is legal and yet seldom meant."""
    found, image, settings = [], looked.image, looked.settings
    if looked.persons is not None and looked.persons > 1:
        found.append(f"{looked.persons} persons are in the image; each needs a mover of its own in the driving video")
    if image is None:
        return found
    if image.width < SMALL * settings.width or image.height < SMALL * settings.height:
        found.append(f"the image has {image.width}x{image.height} pixels, far fewer than the clip's {settings.size}")
    crop = crop_of(looked)
    if crop is not None:
        left, top, right, bottom = crop
        cut = 1 - (right - left) * (bottom - top) / (image.width * image.height)
        if cut > MUCH_CUT:
            found.append(f"{cut:.0%} of the image is cut away; choose a size nearer to its shape")
    return found
