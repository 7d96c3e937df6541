"""Measures a detector and a pose model on held-out marionettes.

python -m dynamictrl.mini.whole_body.evaluate --model mini/dwpose --scenes 80 --empty 60
"""

from __future__ import annotations

import argparse
import json
import logging

from dynamictrl import weights
from dynamictrl.mini.whole_body.held_out import held_out_scenes
from dynamictrl.mini.whole_body.quality import detector_quality, onnx_network, pose_quality
from dynamictrl.poses.dwpose import DETECTOR, POSE

logger = logging.getLogger(__name__)


def main() -> None:
    """Logs both models' numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini/dwpose", help="a folder with both ONNX files, or its name")
    parser.add_argument("--scenes", type=int, default=80, help="scenes with people, six frames each")
    parser.add_argument("--empty", type=int, default=60, help="scenes without people, four frames each")
    parser.add_argument("--small", type=int, default=30, help="scenes with a small person, four frames each")
    parser.add_argument("--workers", type=int, default=0, help="drawing processes")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = weights.resolve(args.model, (DETECTOR, POSE))
    scenes = held_out_scenes(args.scenes, args.empty, args.small, args.workers)
    quality = {
        "detector": detector_quality(onnx_network(folder / DETECTOR), scenes),
        "pose": pose_quality(onnx_network(folder / POSE), scenes.people),
    }
    logger.info("%s", json.dumps(quality, indent=2))


if __name__ == "__main__":
    main()
