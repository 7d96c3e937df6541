"""python -m pipelines quarantine"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro


@dataclass(frozen=True, kw_only=True)
class Quarantine:
    """Lists the sources that could not be read, or has them taken again by the next run."""

    action: tyro.conf.Positional[Literal["list", "retry"]]
    """`list` shows them; `retry` forgets what became of them."""
    dataset: str
    """Data set: a folder, or an s3:// or gs:// prefix."""
    reason: str = ""
    """Only those put aside with this reason code."""
    source: str = ""
    """Only this source: its URI or file name."""
    work: str = ""
    """Work folder of the run; "" = where a run keeps it by itself."""

    def run(self) -> int:
        from pipelines.datasets import retrying
        from pipelines.datasets.dataset_view import open_view

        view = open_view(self.dataset, self.work)
        lines = retrying.chosen(view, self.reason, self.source)
        clips = retrying.accidents(view, self.reason, self.source)
        if self.action == "list":
            print("\n".join(retrying.text(lines, clips)))
            return 0
        forgotten = retrying.retry(view, lines, clips)
        print(f"{len(forgotten.sources)} sources and {len(forgotten.clips)} clips will be taken again by")
        print(retrying.next_command(view))
        return 0
