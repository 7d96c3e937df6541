"""The files that only retell a data set (cards, indices, the report page), made again when it has changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipelines.files.storage import Store

REPORT = "report/index.html"


def derived(out: str, work: Path, with_report: bool = False) -> Callable[[Mapping[str, Any]], dict[str, bytes]]:
    """What makes those files from a description, once the manifest that goes with it is published.

    The report is made `with_report`, or where there was one: it shows clips, and takes time.
    """
    store = Store(out)

    def make(description: Mapping[str, Any]) -> dict[str, bytes]:
        from pipelines import cards, report
        from pipelines.datasets.dataset_view import DatasetView
        from pipelines.records import costs

        view = DatasetView(out, description, work if work.is_dir() else None)
        files = cards.files(description, view.rows, view.name)
        if with_report or store.exists(REPORT):
            files[REPORT] = report.render(view, costs.of_run(work))
        return files

    return make
