"""python -m pipelines explain"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Tells the whole story of one clip or source: every stage's verdict, score, cost and key, and where it lies."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="KEY|SOURCE")]
    """Key of a clip or the beginning of one, or URI or file name of a source."""
    dataset: str
    """Data set: a folder, or an s3:// or gs:// prefix."""
    work: str = ""
    """Work folder of the run; "" = where a run keeps it by itself."""

    def run(self) -> int:
        from pipelines.datasets.dataset_view import open_view
        from pipelines.datasets.explanation import explain

        print("\n".join(explain(open_view(self.dataset, self.work), self.name)))
        return 0
