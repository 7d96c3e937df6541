"""All measures of a clip's picture in one call, named as the data set's rows name them."""

from __future__ import annotations

from dynamictrl.quality.frame_edges import bars, seam
from dynamictrl.quality.lettering import lettering
from dynamictrl.quality.light import exposure, jump, standstill
from dynamictrl.quality.samples import Samples
from dynamictrl.quality.sharpness import sharpness


def measure_picture(samples: Samples) -> dict[str, float]:
    """Each score's meaning and unit are with the function that measures it; bars are left out of light and motion."""
    taken, inside = bars(samples.small_FHW)
    top, bottom, left, right = inside
    inner_FHW = samples.small_FHW[:, top:bottom, left:right]
    return {
        "bars": taken,
        "seam": seam(samples.small_FHW, inside),
        "sharpness": sharpness(samples.details),
        "lettering": lettering(samples.details),
        **exposure(inner_FHW),
        **standstill(inner_FHW, samples.times_F),
        **jump(inner_FHW, samples.times_F),
    }
