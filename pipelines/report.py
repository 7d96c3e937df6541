"""One self-contained page about a data set: what came in, what was refused and why, what it looks like."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamictrl.shards import Sample, read_sample
from pipelines import dataset_files, storage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TEMPLATE = Path(__file__).parent / "report_page.html"
SAMPLES = 9
SAMPLE_FRAMES = 60
SAMPLE_HEIGHT = 256
"""Pixels; the page carries its clips in it."""
BINS = 24
PERSON_COLOURS = ((255, 120, 60), (70, 150, 255), (120, 220, 100), (240, 200, 60))
"""RGB, by person; a fifth person takes the first one's again."""


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram, in units of the drawing (100 wide, 40 high)."""

    x: float
    width: float
    kept: float
    rejected: float


@dataclass(frozen=True)
class Histogram:
    """How one score is spread over kept and rejected clips."""

    name: str
    low: float
    high: float
    count: int
    bars: Sequence[Bar]


def write_report(dataset: Path, description: Mapping[str, Any]) -> Path:
    """Writes `DATASET/report/index.html` and returns its path; `description` is the content of `dataset.json`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    rows = dataset_files.read_manifest(dataset / "manifest.parquet")
    kept = [row for row in rows if not row["reason"]]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template(TEMPLATE.name).render(
        name=dataset.resolve().name,
        description=description,
        funnel=funnel(description, rows),
        reasons=Counter(row["reason"] for row in rows if row["reason"]).most_common(),
        histograms=histograms(rows),
        samples=[_card(dataset, row) for row in chosen(kept, SAMPLES)],
        rejected=[row for row in rows if row["reason"]][:200],
        quarantine=dataset_files.read_quarantine(dataset / "quarantine.jsonl"),
    )
    path = dataset / "report" / "index.html"
    storage.write_bytes(path, page.encode())
    return path


def funnel(description: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, int, str]]:
    """(what is counted, how many, what was taken away before) from sources down to kept clips."""
    counts = description["counts"]
    quarantined = sum(counts["quarantined"].values())
    steps = [("sources found", counts["sources"], "")]
    steps.append(("sources read", counts["sources"] - quarantined, f"{quarantined} quarantined" if quarantined else ""))
    left = len(rows)
    steps.append(("clips found", left, ""))
    refused = Counter(row["stage"] for row in rows if row["reason"])
    order = list(description["settings"].values())
    for stage in [s["stage"] for s in order if s["stage"] in refused] + [s for s in refused if s == "find"]:
        left -= refused[stage]
        steps.append((f"after {stage.replace('_', ' ')}", left, f"{refused[stage]} refused"))
    return steps


def histograms(rows: Sequence[Mapping[str, Any]]) -> list[Histogram]:
    """One per score, in order of name; bars of kept clips stand under those of rejected ones."""
    names = sorted({name for row in rows for name in row["scores"]})
    return [_histogram(name, [r for r in rows if name in r["scores"]]) for name in names]


def _histogram(name: str, rows: Sequence[Mapping[str, Any]]) -> Histogram:
    import numpy as np

    values = np.array([row["scores"][name] for row in rows])
    kept = np.array([not row["reason"] for row in rows])
    low, high = float(values.min()), float(values.max())
    span = (low, high if high > low else low + 1)
    kept_counts, edges = np.histogram(values[kept], BINS, span)
    all_counts, _ = np.histogram(values, BINS, span)
    tallest = max(1, int(all_counts.max()))
    bars = [
        Bar(100 * i / BINS, 100 / BINS, 40 * int(k) / tallest, 40 * int(a - k) / tallest)
        for i, (k, a) in enumerate(zip(kept_counts, all_counts, strict=True))
    ]
    return Histogram(name, low, high, len(rows), bars)


def chosen(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """At most `count` rows from as many sources as there are: one of each, then a second of each, and so on."""
    turns: Counter[str] = Counter()
    ranked = []
    for row in rows:
        ranked.append((turns[row["source"]], len(ranked), row))
        turns[row["source"]] += 1
    return [row for _, _, row in sorted(ranked, key=lambda entry: entry[:2])[:count]]


def _card(dataset: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """One sample as the page shows it: the clip beside itself with mask and pose drawn over it."""
    from dynamictrl.video import encode_video

    sample = read_sample(dataset / "shards" / row["shard"], row["offset"])
    content = base64.b64encode(encode_video(_side_by_side(sample), row["fps"], crf=27)).decode()
    return {**row, "video": f"data:video/mp4;base64,{content}", "source_name": row["source"].rsplit("/", 1)[-1]}


def _side_by_side(sample: Sample) -> NDArray[np.uint8]:
    """[F, H, 2 W, 3], shrunk for the page."""
    import numpy as np
    from PIL import Image

    from dynamictrl.geometry import cover_crop
    from dynamictrl.pose_drawing import draw_pose
    from dynamictrl.video import read_video

    frames = read_video(sample.video, num_frames=SAMPLE_FRAMES).frames
    count, height, width = frames.shape[:3]
    scale = min(1.0, SAMPLE_HEIGHT / height)
    size = (max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2))
    small = np.asarray(cover_crop(frames, *size))
    masks = np.asarray(cover_crop(sample.person_mask[:count], *size, resample=Image.Resampling.NEAREST))
    shown = _tinted(small, masks)
    pose = draw_pose(sample.pose.frames(slice(0, count)), *size)
    drawn = np.where(pose.max(axis=-1, keepdims=True) > 0, np.maximum(pose, shown // 3), shown)
    return np.concatenate([small, drawn], axis=2)


def _tinted(frames: NDArray[np.uint8], masks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames dimmed, with each person in their colour."""
    import numpy as np

    shown = frames * 0.5
    for person in range(1, int(masks.max(initial=0)) + 1):
        colour = np.array(PERSON_COLOURS[(person - 1) % len(PERSON_COLOURS)], np.float64)
        shown = np.where((masks == person)[..., None], frames * 0.55 + colour * 0.45, shown)
    return shown.astype(np.uint8)
