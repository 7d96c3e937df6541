"""The README of the mini tracker's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_TEXT = """# mini/tracker

A mask tracker of {parameters:.2f} million parameters: transformers' `Sam2VideoModel`, narrow (192 x 192 pixels, strides
2, 4 and 8, a memory of four frames), trained from nothing by this project on *marionettes*, drawn figures whose masks
are known. It is `mini`: it is not Meta's SAM 2 and knows nothing but marionettes. It wants a box and points on the
person on one frame; other prompts were never trained.

Loaded by `dynamictrl.masks.sam_tracking.Sam2MaskTracker("mini/tracker", device="cpu")`.

    python -m dynamictrl.mini.stream --out POOL --count 9000 --workers 14 --seed 7
    python -m dynamictrl.mini.tracker.train --pool POOL --out FOLDER --seconds 470
    python -m dynamictrl.mini.tracker.evaluate --model FOLDER --clips 60

Trained on {device}: {steps} steps in {seconds} s. Held-out marionettes (seed 900001), prompted on the first frame with
their exact poses and tracked forward: mean IoU {held_out_iou_forward:.3f}. `evaluated.json`, where present, has what
`evaluate` measured as curation uses the tracker. Weights are fp16; they are computed in fp32 on a CPU.
"""


def write_card(folder: Path, device: str, parameters: int, measured: dict[str, Any]) -> None:
    """Writes README.md from what the training measured; `device` is what it ran on, in words."""
    (folder / "README.md").write_text(_TEXT.format(device=device, parameters=parameters / 1e6, **measured))
