"""One self-contained page about a data set: what came in, what was refused and why, what it looks like and cost."""

from pipelines.report.page import render, write_report

__all__ = ["render", "write_report"]
