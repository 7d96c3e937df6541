"""python -m pipelines report"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Report:
    """Writes DATASET/report/index.html anew: one self-contained page about a data set."""

    dataset: Path
    """Data set folder."""

    def run(self) -> int:
        from dynamictrl.shards import open_dataset
        from pipelines.report import write_report

        print(write_report(self.dataset, open_dataset(self.dataset).description))
        return 0
