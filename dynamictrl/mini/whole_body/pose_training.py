"""Trains the mini whole-body pose model and writes `dw-ll_ucoco_384.onnx` with DWPose's signature.

python -m dynamictrl.mini.whole_body.pose_training --out DIR --seconds 250 --workers 4
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dynamictrl.mini.whole_body.compose import Wardrobe
from dynamictrl.mini.whole_body.held_out import HeldOut, held_out_scenes
from dynamictrl.mini.whole_body.onnx_files import write_onnx
from dynamictrl.mini.whole_body.pose_model import HEIGHT, WIDTH, MiniPose, normalise, pose_loss
from dynamictrl.mini.whole_body.pose_pictures import crops_of
from dynamictrl.mini.whole_body.quality import Network, onnx_network, pose_quality
from dynamictrl.mini.whole_body.stream import Bank, Canvas, FigureStream, stream
from dynamictrl.mini.whole_body.training import Feeder, Outcome, Quality, Settings, fit, read_command, write_record

FILE = "dw-ll_ucoco_384.onnx"
CANVAS = Canvas(height=448, width=384, backdrop=384)
DEFAULTS = Settings(seed=2)


def network(model: MiniPose) -> Network:
    """The model in training, run like its file."""
    device = next(model.parameters()).device

    def run(crops: np.ndarray) -> list[np.ndarray]:
        with torch.inference_mode():
            return [output.float().cpu().numpy() for output in model(torch.from_numpy(crops).to(device))]

    return run


def train(settings: Settings, scenes: HeldOut) -> tuple[MiniPose, Outcome]:
    """Trains until the seconds are used up and returns the averaged weights.

    Some of the held-out `scenes` are measured on the way.
    """
    torch.manual_seed(settings.seed)
    device = torch.device(settings.device)
    feeder = Feeder(stream(FigureStream(settings.seed, CANVAS), settings.workers))
    bank, wardrobe = Bank(settings.kept, max(settings.kept // 4, 8), device), Wardrobe.make(device)
    model = MiniPose().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    feeder.fill(bank, min(settings.kept, 4 * settings.batch))

    def loss() -> torch.Tensor:
        with torch.no_grad():
            crops, points, scores = crops_of(bank, wardrobe, settings.batch)
            crops = normalise(crops).contiguous(memory_format=torch.channels_last)
        return pose_loss(model, crops, points, scores)

    def measure(average: MiniPose) -> Quality:
        return pose_quality(network(average), scenes.people[:16])

    trained = fit(model, loss, bank, feeder, settings, measure)
    feeder.end()
    return trained


def export(model: MiniPose, path: Path) -> None:
    """Writes the model under DWPose's signature."""
    write_onnx(
        model,
        torch.zeros(1, 3, HEIGHT, WIDTH),
        path,
        inputs="input",
        outputs=["simcc_x", "simcc_y"],
        dynamic_batch=True,
        metadata={"family": "mini", "model": "mini whole-body pose model trained on marionettes; not DWPose"},
    )


def main() -> None:
    """Reads the command line, trains, writes the ONNX file, and measures that file on held-out marionettes."""
    out, settings = read_command(__doc__, DEFAULTS)
    # Drawn first: processes are forked safely only while this one has a single thread.
    scenes = held_out_scenes(settings.held_out, workers=settings.workers)
    model, outcome = train(settings, scenes)
    export(model, out / FILE)
    write_record(out / "pose.json", settings, outcome, pose_quality(onnx_network(out / FILE), scenes.people))


if __name__ == "__main__":
    main()
