"""python -m pipelines diff"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Says which clips, captions, scores and verdicts differ between two data sets, and why."""

    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """Data set: a folder, or an s3:// or gs:// prefix."""
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """The one it is compared with."""
    json: bool = False
    """Print everything as JSON."""

    def run(self) -> int:
        from pipelines.datasets import comparison
        from pipelines.datasets.dataset_view import open_view

        found = comparison.compare(open_view(self.a), open_view(self.b))
        print(json.dumps(found, indent=1, ensure_ascii=False) if self.json else "\n".join(comparison.text(found)))
        return 0
