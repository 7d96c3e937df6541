"""How many sound videos are refused for damage, and how much damage is noticed: a table, on files made here.

    python tests/benchmarks/false_alarms.py [--seeds 3] [--clips FOLDER ...]

Sound: every codec, container and oddity of `clean_media`, and the files of --clips, through the same checks as in a run
(`SplitShots` with its defaults). Damaged: each file of --clips with bytes overwritten at 8 places, or cut.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dynamictrl.errors import DynamiCtrlError
from pipelines.clip import Clip
from pipelines.stages.split_shots import SplitShots
from tests.benchmarks.clean_media import cut_at_an_open_group, joined_late, made, variants

PLACES = np.linspace(0.1, 0.9, 8)


def sound_files(seeds: int, folders: list[Path]) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of files in which nothing is wrong."""
    for variant in variants(seeds):
        data = made(variant)
        yield variant.name, data
        if variant.kind == "open-group":
            yield f"cut-{variant.name}", cut_at_an_open_group(data, variant.container)
        if variant.container == "ts" and variant.kind == "b-frames":
            yield f"joined-late-{variant.name}", joined_late(data)
    for folder in folders:
        for path in sorted(folder.iterdir()):
            yield path.name, path.read_bytes()


def verdict(data: bytes, path: Path) -> str:
    """The reason code for which a run would refuse the file, in whole or in part; "" = none."""
    path.write_bytes(data)
    try:
        rows = list(SplitShots().process(Clip(path=str(path))))
    except DynamiCtrlError as problem:
        return problem.code
    return next((row.rejected for row in rows if row.rejected), "")


def inverted(data: bytes, place: float) -> bytes:
    at = int(len(data) * place)
    return data[:at] + bytes(255 - byte for byte in data[at : at + 3]) + data[at + 3 :]


def zeroed(data: bytes, place: float) -> bytes:
    at = int(len(data) * place)
    return data[:at] + bytes(300) + data[at + 300 :]


def noised(data: bytes, place: float) -> bytes:
    at = int(len(data) * place)
    noise = np.random.default_rng(0).integers(0, 256, 2000, np.uint8).tobytes()
    return data[:at] + noise[: len(data) - at] + data[at + 2000 :]


def shortened(data: bytes, place: float) -> bytes:
    return data[: int(len(data) * place)]


DAMAGE: dict[str, Callable[[bytes, float], bytes]] = {
    "3 bytes inverted": inverted,
    "300 bytes zeroed": zeroed,
    "2000 bytes of noise": noised,
    "cut off": shortened,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="of each variant")
    parser.add_argument("--clips", type=Path, nargs="*", default=[], help="folders of real, sound clips")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video"
        refused: dict[str, str] = {}
        count, began = 0, time.process_time()
        for name, data in sound_files(arguments.seeds, arguments.clips):
            count += 1
            if code := verdict(data, path):
                refused[name] = code
        print(f"{len(refused)} of {count} sound files refused ({len(refused) / count:.2%}), ", end="")
        print(f"{time.process_time() - began:.0f} s of CPU with making them")
        for name, code in refused.items():
            print(f"  {code:20} {name}")
        for kind, damage in DAMAGE.items():
            codes = Counter(
                verdict(damage(clip.read_bytes(), float(place)), path)
                for each in arguments.clips
                for clip in sorted(each.iterdir())
                if clip.stat().st_size < 2_000_000
                for place in PLACES
            )
            if codes:
                total = sum(codes.values())
                print(f"{kind}: noticed {total - codes['']} of {total}, as {dict(codes.most_common())}")


if __name__ == "__main__":
    main()
