"""Trains the mini person detector and writes `yolox_l.onnx` with YOLOX's input and output.

python -m dynamictrl.mini.whole_body.detector_training --out DIR --seconds 250 --workers 3
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import torch

from dynamictrl.mini.whole_body.compose import Wardrobe
from dynamictrl.mini.whole_body.detector_model import SIDE, MiniDetector, cell_grid, detection_loss
from dynamictrl.mini.whole_body.detector_pictures import SHRINK, pictures_of
from dynamictrl.mini.whole_body.held_out import HeldOut, held_out_scenes
from dynamictrl.mini.whole_body.onnx_files import write_onnx
from dynamictrl.mini.whole_body.quality import Network, detector_quality, onnx_network
from dynamictrl.mini.whole_body.stream import Bank, Canvas, FigureStream, stream
from dynamictrl.mini.whole_body.training import Feeder, Outcome, Quality, Settings, fit, read_command, write_record

logger = logging.getLogger(__name__)

FILE = "yolox_l.onnx"
CANVAS = Canvas(height=224, width=192, backdrop=320)
DEFAULTS = Settings(seed=1, batch=128, workers=3, weight_decay=0.02, kept=8000)
_SHOWN = math.log(0.3 / 0.7)
"""The score from which the runner shows a box, as a logit."""
_LEFT_WRONG = 0.005
"""Share of empty training pictures in which a box may stay."""
_MOST_CAUTION = 0.8


def network(model: MiniDetector) -> Network:
    """The model in training, run like its file."""
    device = next(model.parameters()).device

    def run(picture: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [model(torch.from_numpy(picture).to(device)).float().cpu().numpy()]

    return run


def train(settings: Settings, scenes: HeldOut) -> tuple[MiniDetector, Outcome]:
    """Trains until the seconds are used up and returns the averaged weights, their scores made cautious.

    Some of the held-out `scenes` are measured on the way.
    """
    torch.manual_seed(settings.seed)
    device = torch.device(settings.device)
    figures = FigureStream(settings.seed, CANVAS, backdrops=6)
    feeder = Feeder(stream(figures, settings.workers))
    bank, wardrobe = Bank(settings.kept, max(settings.kept // 2, 8), device), Wardrobe.make(device)
    model = MiniDetector().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    places, strides = cell_grid(device)
    feeder.fill(bank, min(settings.kept, 4 * settings.batch))

    def loss() -> torch.Tensor:
        with torch.no_grad():
            pictures, boxes, ignored = pictures_of(bank, wardrobe, settings.batch)
            pictures = pictures.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            cells = model.cells(pictures, SHRINK)
        return detection_loss(cells.float(), boxes, ignored, places, strides)

    def measure(average: MiniDetector) -> Quality:
        return detector_quality(network(average), scenes.first(24))

    average, outcome = fit(model, loss, bank, feeder, settings, measure)
    feeder.end()
    caution = needed_caution(average, bank, wardrobe, settings)
    logger.info("scores are lowered by %.2f (logit)", caution)
    average.lower(caution)
    return average, outcome


@torch.inference_mode()
def needed_caution(model: MiniDetector, bank: Bank, wardrobe: Wardrobe, settings: Settings, rounds: int = 16) -> float:
    """How far person logits must go down for empty training pictures to stay empty."""
    best = []
    for _ in range(1 if settings.max_steps else rounds):
        pictures, _, _ = pictures_of(bank, wardrobe, settings.batch, (1.0, 0.0, 0.0, 0.0))
        best.append(model.cells(pictures, SHRINK)[..., 4].amax(dim=1))
    wrong = torch.cat(best).float().quantile(1 - _LEFT_WRONG)
    return float((wrong - _SHOWN).clamp(0, _MOST_CAUTION))


def export(model: MiniDetector, path: Path) -> None:
    """Writes the model under YOLOX-L's signature."""
    write_onnx(
        model,
        torch.zeros(1, 3, SIDE, SIDE),
        path,
        inputs="images",
        outputs=["output"],
        dynamic_batch=False,
        metadata={"family": "mini", "model": "mini person detector trained on marionettes; not YOLOX-L"},
    )


def main() -> None:
    """Reads the command line, trains, writes the ONNX file, and measures that file on held-out marionettes."""
    out, settings = read_command(__doc__, DEFAULTS)
    # Drawn first: processes are forked safely only while this one has a single thread.
    empty = settings.held_out_empty
    scenes = held_out_scenes(settings.held_out, empty, small=empty // 2, workers=settings.workers)
    model, outcome = train(settings, scenes)
    export(model, out / FILE)
    quality = detector_quality(onnx_network(out / FILE), scenes)
    write_record(out / "detector.json", settings, outcome, quality)


if __name__ == "__main__":
    main()
