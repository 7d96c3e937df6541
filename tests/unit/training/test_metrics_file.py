"""Files of JSON lines that a full disk has cut into."""

from __future__ import annotations

from pathlib import Path

from training.callbacks.metrics_file import Tail, keep_until, read_lines


def test_a_line_that_was_cut_short_before_another_one_is_passed_by(tmp_path: Path):
    path = tmp_path / "skipped_steps.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "samples": [{"ke{"step": 3}\n{"step": 4, "loss": null}\n{"step": 5}\n')

    assert [line["step"] for line in Tail(path).read()] == [1, 4, 5]
    assert [line["step"] for line in read_lines(path)] == [1, 4, 5]
    keep_until(path, 4)
    assert path.read_text() == '{"step": 1}\n{"step": 4, "loss": null}\n'
