"""What opening media in a process of their own costs: facts, and a job's pixels, against a reading in this process.

    python -m tests.benchmarks.serving_media_guard [--repeats 5] [FILE ...]

Without files the clips of ../shared/data/clips are taken, where they are. Both ways alternate; medians of one run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from serving.config import Limits
from serving.media.decoding import OwnFiles
from serving.media.media_guard import MediaGuard
from tests.benchmarks.curation_pieces import ROOT, machine
from tests.unit.serving.malformed.pictures import saved

FRAMES, PIXELS = 37, 1920 * 1088


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    files = options.files or sorted((ROOT.parent / "shared" / "data" / "clips").glob("*.mp4"))
    guard, own = MediaGuard(Limits(), "mini/none"), OwnFiles()
    print(machine())
    print(f"the prober's start, once per service process: {timed(guard.warm):.2f} s")
    small = Path("/dev/shm/serving-media-guard.png")
    small.write_bytes(saved("PNG"))
    facts = [timed(lambda: guard.image(small, "mask")) for _ in range(50)]
    known = [timed(lambda: guard.image(small, "mask", sha256="known")) for _ in range(50)]
    small.unlink()
    print(f"facts of a small picture: median {median(facts) * 1000:.1f} ms; once known {median(known) * 1e6:.0f} us")
    print(f"\n| clip | first {FRAMES} frames here, s | guarded, s | ratio | facts, ms |\n|---|---|---|---|---|")
    for path in files:
        wish = {"num_frames": FRAMES, "max_pixels": PIXELS}
        plain, guarded, looked = [], [], []
        for _ in range(options.repeats):
            plain.append(timed(lambda p=path, w=wish: own.frames(p, "video", **w)))
            guarded.append(timed(lambda p=path, w=wish: guard.frames(p, "video", **w)))
            looked.append(timed(lambda p=path: guard.video(p, "video")))
        ratio = median(guarded) / median(plain)
        row = f"{median(plain):.3f} | {median(guarded):.3f} | {ratio:.2f} | {median(looked) * 1000:.0f}"
        print(f"| {path.name} | {row} |")
    guard.close()


if __name__ == "__main__":
    main()
