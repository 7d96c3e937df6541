"""python -m pipelines report"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Report:
    """Writes DATASET/report/index.html anew: one self-contained page about a data set."""

    dataset: str
    """Data set: a folder, or an s3:// or gs:// prefix."""
    work: str = ""
    """Work folder of the run; "" = where a run keeps it by itself. Costs and pictures of refused clips lie there."""

    def run(self) -> int:
        from pipelines.datasets.dataset_view import open_view
        from pipelines.records import costs
        from pipelines.report import write_report

        work = open_view(self.dataset, self.work).work
        print(write_report(self.dataset, costs=costs.of_run(work) if work else None, work=work))
        return 0
