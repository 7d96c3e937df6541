"""Which units a task takes together: by the work in them, not by their number.

A Ray task costs 60 to 75 ms of processor time of its own, so it should carry seconds of ours; and the longest units go
first and alone, so that at the end none of them holds up a run that has nothing else left to do. How units are bundled
changes no result: each is decided and recorded by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipelines.clip import Clip
from pipelines.files import storage

LEAST_SECONDS = 2.0
"""Estimated work of a bundle, where there is as much: Ray's own share is then below 4 %."""
MOST_SECONDS = 15.0
"""More would save little and make the progress jump."""
CLIPS_FOR_A_GPU = 128
"""Captions come at 7 clips a second on an H200; the first batch of a bundle is waited for some 2 s."""
ROUNDS = 4
"""A bundle takes at most this fraction of what is left for a worker, so bundles get smaller towards the end."""

# Rough and rather low, for cores of 2020 to 2025. An error only makes bundles longer or shorter than meant.
SECONDS_PER_SOURCE = 0.05
SECONDS_PER_MIB = 1.0
"""To find the shots of H.264 of 1080 lines, cut and encode it again."""
UNKNOWN_MIB = 4.0
"""A remote source, which is not asked for its size."""
SECONDS_PER_CLIP = 0.05
SECONDS_PER_FRAME = 0.002
SECONDS_PER_MEGAPIXEL = 0.005

MEGA, MEBIBYTE = 1e6, 2**20


def bundled(units: Sequence[Clip], lanes: int) -> list[list[Clip]]:
    """The units in bundles for `lanes` workers, the longest first; equal units in the order of their names."""
    weighed = sorted(((seconds(unit), unit) for unit in units), key=lambda w: (-w[0], w[1].key or w[1].fingerprint))
    remaining = sum(weight for weight, _ in weighed)
    least = min(LEAST_SECONDS, remaining / lanes)
    bundles: list[list[Clip]] = []
    filled = limit = 0.0
    for weight, unit in weighed:
        # The next unit would make it longer than it would be shorter without: half a unit is the difference.
        if not bundles or filled + weight / 2 > limit:
            limit = min(MOST_SECONDS, max(least, remaining / (lanes * ROUNDS)))
            bundles.append([])
            filled = 0.0
        bundles[-1].append(unit)
        filled += weight
        remaining -= weight
    return bundles


def merged(bundles: Sequence[list[Clip]], lanes: int) -> list[list[Clip]]:
    """Bundles joined until a GPU has enough of one to be worth its start: its batches are decoded ahead within it."""
    units = sum(map(len, bundles))
    least = min(CLIPS_FOR_A_GPU, max(1, units // (2 * lanes)))
    found: list[list[Clip]] = []
    for bundle in bundles:
        if found and len(found[-1]) < least:
            found[-1] += bundle
        else:
            found.append(list(bundle))
    return found


def seconds(unit: Clip) -> float:
    """Estimated processor time of a unit: a source's by its bytes, a clip's by its frames and their size."""
    if unit.key:
        megapixels = unit.width * unit.height / MEGA
        return SECONDS_PER_CLIP + unit.frames * (SECONDS_PER_FRAME + SECONDS_PER_MEGAPIXEL * megapixels)
    return SECONDS_PER_SOURCE + SECONDS_PER_MIB * (
        storage.local_size(unit.path or unit.source) / MEBIBYTE or UNKNOWN_MIB
    )


def grouped(names: Sequence[str], lanes: int) -> Iterator[Sequence[str]]:
    """Names of equal work in runs for `lanes` workers, at least `ROUNDS` runs each where there are as many."""
    size = max(1, len(names) // (lanes * ROUNDS))
    for start in range(0, len(names), size):
        yield names[start : start + size]
