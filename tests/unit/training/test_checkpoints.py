"""What counts as a checkpoint on disk, and what is done about those that do not."""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dynamictrl.errors import CheckpointError, ConfigError
from training.checkpoints import leases, on_disk
from training.checkpoints.average import file_of, fill
from training.checkpoints.on_disk import COMPLETE, Checkpoint
from training.checkpoints.snapshot import HostMemory, SnapshotEngine, available_bytes
from training.checkpoints.writing import Target, Writing, write_state

STATE = {"weights": torch.arange(1000.0), "step": 3, "groups": [{"lr": 0.1}]}


def target_of(root: Path, step: int, rank: int = 0, workers: int = 1, keep: int = 2) -> Target:
    facts = {"step": step, "workers": workers, "zero_stage": 2}
    return Target(root, step, rank, workers, facts, keep)


def write(root: Path, step: int, keep: int = 9) -> Checkpoint:
    writing = Writing(target_of(root, step, keep=keep), {"state/one.pt": STATE, "state/two.pt": STATE}, {}).start()
    writing.wait()
    assert writing.is_whole
    return Checkpoint.read(root / on_disk.name_of(step))


def test_a_checkpoint_is_whole_when_every_worker_has_said_that_its_part_is_safe(tmp_path: Path):
    first = Writing(target_of(tmp_path, 5, rank=0, workers=2), {"state/0.pt": STATE}, {}).start()
    first.wait_for_own()
    first.wait(0.3)
    assert on_disk.folders(tmp_path) == []

    second = Writing(target_of(tmp_path, 5, rank=1, workers=2), {"state/1.pt": STATE}, {}).start()
    first.wait()
    second.wait()

    found = on_disk.newest(tmp_path)
    assert found is not None
    assert (found.step, found.workers, sorted(found.files)) == (5, 2, ["state/0.pt", "state/1.pt"])
    assert found.damage() == ""
    assert torch.equal(torch.load(found.folder / "state/1.pt")["weights"], STATE["weights"])
    assert sorted(path.name for path in found.folder.iterdir()) == [COMPLETE, "state"]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "one.pt has"),
        (lambda path: path.write_bytes(path.read_bytes()[:900] + b"x" + path.read_bytes()[901:]), "holds other bytes"),
        (lambda path: path.unlink(), "one.pt cannot be read"),
    ],
)
def test_a_truncated_a_changed_and_a_missing_file_are_each_found(tmp_path: Path, damage, told: str):
    found = write(tmp_path, 1)
    assert found.damage() == ""
    damage(found.folder / "state" / "one.pt")

    assert told in found.damage()
    assert [bool(found.damage(share, 2)) for share in range(2)] == [True, False]


def test_a_marker_that_cannot_be_read_is_no_checkpoint(tmp_path: Path):
    write(tmp_path, 1)
    newer = write(tmp_path, 2)
    (newer.folder / COMPLETE).write_text("{")

    found = on_disk.newest(tmp_path)
    assert found is not None
    assert found.step == 1
    with pytest.raises(CheckpointError, match="COMPLETE cannot be read"):
        Checkpoint.read(newer.folder)


def test_the_newest_whole_ones_are_kept_and_what_somebody_reads(tmp_path: Path):
    read = write(tmp_path, 1)
    leases.hold(read.folder)
    write(tmp_path, 2)
    write(tmp_path, 3)
    (tmp_path / "step-00000004").mkdir()
    (tmp_path / ".step-00000009.tmp" / "state").mkdir(parents=True)
    write(tmp_path, 5, keep=2)

    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step-00000001", "step-00000003", "step-00000005"]


def test_a_full_disk_fails_the_checkpoint_and_leaves_nothing_of_it(tmp_path: Path):
    kept = write(tmp_path, 1)
    target = target_of(tmp_path, 2)
    (target.temporary / "state").mkdir(parents=True)
    (target.temporary / "state" / "two.pt").symlink_to("/dev/full")
    writing = Writing(target, {"state/one.pt": STATE, "state/two.pt": STATE}, {}).start()
    writing.wait()

    assert isinstance(writing.problem, OSError)
    assert writing.problem.errno == errno.ENOSPC
    assert not writing.is_whole
    assert list((target.temporary / "state").iterdir()) == []
    assert [found.step for found in on_disk.whole(tmp_path)] == [1]
    assert kept.damage() == ""


def test_a_disk_that_can_neither_be_written_nor_cleared_is_told_of(tmp_path: Path):
    target = target_of(tmp_path, 2)
    (target.temporary / "state" / "two.pt").mkdir(parents=True)  # refuses to be opened and to be unlinked
    writing = Writing(target, {"state/one.pt": STATE, "state/two.pt": STATE}, {}).start()
    writing.wait()

    assert isinstance(writing.problem, OSError)
    assert not (target.temporary / "state" / "one.pt").exists()


def test_what_is_given_up_ends_soon_and_leaves_no_file(tmp_path: Path):
    writing = Writing(target_of(tmp_path, 2, workers=2), {"state/one.pt": STATE}, {}).start()
    writing.wait_for_own()
    started = time.monotonic()
    writing.give_up()

    assert time.monotonic() - started < 5
    assert writing.problem is None
    assert not (writing.target.temporary / "state" / "one.pt").exists()


def test_another_zero_stage_is_refused_with_the_one_that_works(tmp_path: Path):
    on_disk.check_layout(None, 3)
    on_disk.check_layout(write(tmp_path, 1), 2)
    with pytest.raises(ConfigError, match="--zero-stage 2"):
        on_disk.check_layout(on_disk.newest(tmp_path), 3)


def snapshot_of(memory: HostMemory, states: Mapping[str, object], root: Path) -> SnapshotEngine:
    memory.rewind()
    engine = SnapshotEngine(memory, root, lambda name, state: write_state(root / name, state))
    for name, state in states.items():
        engine.save(state, str(root / name))
    return engine


def test_a_snapshot_does_not_change_with_the_states_and_its_buffers_are_used_again(tmp_path: Path):
    live = torch.ones(4)
    state = {"live": live, "again": [live, (live[:2], "word")], "empty": torch.ones(0), "lr": 0.1}
    memory = HostMemory()
    first = snapshot_of(memory, {"a.pt": state}, tmp_path).files["a.pt"]
    live.zero_()
    state["lr"] = 0.2

    assert first["live"].tolist() == [1] * 4
    assert first["again"][0] is first["live"]
    assert first["again"][1][0].tolist() == [1, 1]
    assert first["lr"] == 0.1
    second = snapshot_of(memory, {"a.pt": state}, tmp_path).files["a.pt"]
    assert second["live"].data_ptr() == first["live"].data_ptr()
    assert second["live"].tolist() == [0] * 4


def test_states_that_find_no_room_in_host_memory_are_written_at_once(tmp_path: Path):
    nothing = torch.empty(1).expand(available_bytes())  # no memory is behind it
    memory, told = HostMemory(), []
    engine = SnapshotEngine(memory, tmp_path, lambda name, state: told.append(name))
    engine.save({"weights": nothing}, str(tmp_path / "large.pt"))
    engine.save({"weights": torch.ones(2)}, str(tmp_path / "small.pt"))

    assert told == ["large.pt"]
    assert list(engine.files) == ["small.pt"]


def test_a_container_full_of_files_pages_has_room(tmp_path: Path):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("990000\n")
    (tmp_path / "memory.stat").write_text("anon 190000\nactive_file 300000\ninactive_file 500000\n")

    assert available_bytes(tmp_path) == 810_000


def fragments_of(values: Tensor, cuts: list[int]) -> list[dict[str, tuple[int, Tensor]]]:
    """One flat parameter in as many pieces as workers, and a count that all of them hold."""
    edges = [0, *cuts, values.numel()]
    pieces = [(start, values[start:end].clone()) for start, end in zip(edges, edges[1:], strict=False)]
    return [{"weight": piece, "updates()": (0, torch.tensor([7.0]))} for piece in pieces]


@pytest.mark.parametrize("cuts", [[], [5], [3], [2, 5, 9]])
def test_an_average_is_taken_up_by_any_number_of_workers(tmp_path: Path, cuts: list[int]):
    values = torch.arange(10.0)
    for rank, fragments in enumerate(fragments_of(values, [4])):
        write_state(tmp_path / file_of(rank), fragments)

    for mine in fragments_of(torch.zeros(10), cuts):
        mine["updates()"][1].zero_()
        fill(mine, tmp_path, 2)
        start, filled = mine["weight"]
        assert torch.equal(filled, values[start : start + filled.numel()])
        assert mine["updates()"][1].item() == 7


def test_an_average_with_a_hole_is_refused(tmp_path: Path):
    write_state(tmp_path / file_of(0), fragments_of(torch.arange(10.0), [4])[0])
    with pytest.raises(CheckpointError, match="no whole average"):
        fill(fragments_of(torch.zeros(10), [])[0], tmp_path, 1)
