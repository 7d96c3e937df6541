"""What a run on Ray costs over its bare stages, in processor seconds: driver, Ray, workers and all that ended.

    python -m tests.benchmarks.curation_overhead [--sources 160] [--seconds 20] [--workers 2] [--repeats 3]

The bare stages go through the same sources in plain loops, `--workers` of them at once so that both share the cores in
the same way; only what is spent inside stages counts there, so imports, the ledger and the shards are the run's own
cost. The run is the command a user gives, from its start to its end, first shard to report. Runs of both kinds
alternate. Its processor time is that of a control group, which no process can leave.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median

from pipelines.clip import Clip
from pipelines.stage import apply
from tests.benchmarks.curation_pieces import (
    FPS,
    ROOT,
    accounted,
    command,
    environment,
    machine,
    weightless,
    write_sources,
)


def bare(videos: Path, work: Path, share: int, of: int) -> None:
    """Takes a share of the sources through the stages in a loop; prints the processor seconds by stage."""
    pipeline = weightless(videos, work / "set")
    stages = [*pipeline.stages("source"), *pipeline.stages("clip")]
    for stage in stages:
        stage.setup()
    spent: Counter[str] = Counter()
    sources = sorted(pipeline.find.process(Clip(source=str(videos))), key=lambda source: source.source)
    for source in sources[share::of]:
        row = Clip.from_row({**source.to_row(), "work": str(work)})
        cut = apply(pipeline.stages("source"), [row])
        done = [cut, *(apply(pipeline.stages("clip"), [clip]) for clip in cut.clips)]
        for result in done:
            spent.update({stage: cost.cpu_seconds for stage, cost in result.costs.items()})
    print(json.dumps(spent))


def bare_at_once(videos: Path, work: Path, workers: int) -> Counter[str]:
    """The bare stages' processor seconds, `workers` loops at once."""
    started = []
    for share in range(workers):
        (work / f"{share}").mkdir(parents=True)
        words = [sys.executable, "-m", "tests.benchmarks.curation_overhead", "--videos", str(videos)]
        words += ["--bare", str(work / f"{share}"), str(share), str(workers)]
        started.append(subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE))
    spent: Counter[str] = Counter()
    for process in started:
        said, _ = process.communicate()
        if process.returncode:
            sys.exit("a bare loop failed")
        spent.update(json.loads(said.splitlines()[-1]))
    return spent


def run(videos: Path, out: Path, workers: int, log: Path) -> tuple[float, dict[str, float], str]:
    """A whole run's processor seconds, those inside its stages by their own account, and how they were taken."""
    words = command(videos, out, workers=workers, shard_size=4)
    with accounted(words, log) as (driver, account):
        driver.wait()
    if driver.returncode:
        sys.exit(f"the run failed; see {log}")
    return account.seconds, inside(out), account.way


def inside(out: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in (out / ".work" / "metrics.prom").read_text().splitlines():
        if line.startswith("dynamictrl_curation_stage_cpu_seconds_total{"):
            found[line.split('"')[1]] = float(line.rsplit(" ", 1)[1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, default=160)
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of each source; a tenth of them are ten times longer"
    )
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--videos", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--bare", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bare:
        work, share, of = given.bare
        bare(given.videos, Path(work), int(share), int(of))
        return
    folder = Path(tempfile.mkdtemp(prefix="curation-overhead-"))
    frames = round(given.seconds * FPS)
    width = given.height * 16 // 9 // 2 * 2
    videos = write_sources(
        folder / "videos", given.sources, frames=[frames] * 9 + [10 * frames], height=given.height, width=width
    )
    print(f"on {machine()}; {given.sources} sources of {given.seconds:g} s ({width}x{given.height}), every tenth")
    print(f"ten times as long; {given.workers} workers. Processor seconds:\n")
    print("| repeat | bare stages | whole run on Ray | ratio | inside its stages | around them | way |")
    print("|---|---|---|---|---|---|---|")
    ratios = []
    for repeat in range(given.repeats):
        alone = bare_at_once(videos, folder / f"bare-{repeat}", given.workers).total()
        whole, stages, way = run(videos, folder / f"run-{repeat}" / "set", given.workers, folder / "run.log")
        ratios.append(whole / alone)
        print(
            f"| {repeat + 1} | {alone:.1f} | {whole:.1f} | {whole / alone:.3f} | {sum(stages.values()):.1f} | "
            f"{whole - sum(stages.values()):.1f} | {way} |",
            flush=True,
        )
        shutil.rmtree(folder / f"bare-{repeat}")
        shutil.rmtree(folder / f"run-{repeat}")
    print(f"\nmedian ratio {median(ratios):.3f}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
