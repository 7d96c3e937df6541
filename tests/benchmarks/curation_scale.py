"""Whether cost grows with the work alone: N tiny sources are curated, and the same command is given again.

    python -m tests.benchmarks.curation_scale [--sources 1000 13000] [--workers 2] [--folder FOLDER]

Every source is a video of its own bytes and is read, cut and committed. The second run is a no-op: seconds, stages
executed (counted by the stages), and the driver's memory. Processor seconds are those of a control group:
driver, Ray, workers.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.curation_pieces import accounted, command, executions, machine, write_sources


@dataclass(frozen=True)
class Run:
    """One start of the command."""

    wall: float
    """Seconds."""
    cpu: float
    """Seconds, of all its processes."""
    peak: float
    """MiB of the driver."""
    executed: int
    """Units that went through a stage."""


def run(videos: Path, out: Path, workers: int, log: Path) -> Run:
    before, began = len(executions(out)), time.monotonic()
    with accounted(command(videos, out, workers=workers, shard_size=1), log) as (driver, account):
        driver.wait()
        wall = time.monotonic() - began
    if driver.returncode:
        sys.exit(f"the run failed; see {log}")
    return Run(wall, account.seconds, account.peak_mib, len(executions(out)) - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, nargs="+", default=[1000, 13000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None, help="is emptied; a temporary one where none is given")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="curation-scale-"))
    shutil.rmtree(folder, ignore_errors=True)
    print(f"on {machine()}; videos of 13 to 25 frames, 64x48; {given.workers} workers\n")
    print("| sources | run s | CPU s | CPU ms per source | driver peak MiB | again s | CPU s | executed | driver MiB |")
    print("|---|---|---|---|---|---|---|---|---|")
    costs: dict[int, float] = {}
    for count in given.sources:
        place = folder / f"{count}"
        videos = write_sources(place / "videos", count, frames=(13, 19, 25))
        first = run(videos, place / "set", given.workers, place / "first.log")
        again = run(videos, place / "set", given.workers, place / "again.log")
        costs[count] = first.cpu
        print(
            f"| {count} | {first.wall:.0f} | {first.cpu:.0f} | {1000 * first.cpu / count:.1f} | {first.peak:.0f} | "
            f"{again.wall:.1f} | {again.cpu:.1f} | {again.executed} | {again.peak:.0f} |",
            flush=True,
        )
    counts = sorted(costs)
    for small, large in zip(counts, counts[1:], strict=False):
        growth = (costs[large] / large) / (costs[small] / small)
        print(f"\nCPU per source at {large} over that at {small}: {growth:.3f}")


if __name__ == "__main__":
    main()
