"""How many engines a queue deserves: pure arithmetic on GPU-seconds, without Ray and without a clock of its own."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

from serving.config import Scaling
from serving.jobs.workload import Workload


def to_post(work: Workload, number: int) -> bytes:
    """As the dispatcher posts it; `number` grows with every post, so that a reader notices a silent dispatcher."""
    return json.dumps({"number": number, **asdict(work)}).encode()


def from_post(text: bytes) -> tuple[int, Workload]:
    """What `to_post` wrote."""
    words = json.loads(text)
    return words.pop("number"), Workload(**words)


def engines_wanted(work: Workload, current: int, scaling: Scaling, least: int, most: int) -> int:
    """Engines with which the work would be done in `scaling.clear_within_s`.

    Never fewer than there are running jobs, never more than there are jobs, one as soon as there is any, and between
    `least` and `most` of course. Fewer than `current` only where the work would fit into fewer with room to spare:
    otherwise a queue that hovers at a limit would start and stop an engine for every job.
    """
    jobs = work.queued + work.running
    wanted = _for_work(work, jobs, scaling.clear_within_s)
    if wanted < current:
        cautious = _for_work(work, jobs, scaling.clear_within_s * scaling.shrink_margin)
        wanted = min(current, max(wanted, cautious))
    return max(work.running, min(max(wanted, least), most))


def _for_work(work: Workload, jobs: int, within_s: float) -> int:
    seconds = work.queued_seconds + work.running_seconds
    return max(work.running, min(jobs, max(1, math.ceil(seconds / within_s))))
