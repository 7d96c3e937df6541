"""python -m pipelines verify"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Re-reads every shard against the manifest; exit code 1 and a list if anything is missing, doubled or damaged."""

    dataset: str
    """Data set: a folder, or an s3:// or gs:// prefix."""

    def run(self) -> int:
        from pipelines.datasets.verify import verify

        problems = verify(self.dataset)
        for problem in problems:
            print(problem)
        print(f"{len(problems)} problems in {self.dataset}" if problems else f"{self.dataset} is whole")
        return 1 if problems else 0
