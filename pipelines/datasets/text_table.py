"""Tables and amounts as a terminal shows them."""

from __future__ import annotations

import re
from collections.abc import Sequence

NUMBER = re.compile(r"[+-]?[\d,]*\.?\d+( ([KMGT]iB|B|s|min|h|%))?")
"""A plain number, with its unit or without."""
WIDEST = 72
"""Characters of a cell; what is longer is cut in its middle."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "  ") -> list[str]:
    """Lines of a table with aligned columns; numbers stand to the right."""
    shown = [[_cut(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(head, *shown, strict=True)]
    numeric = [bool(shown) and all(_is_number(row[i]) for row in shown) for i in range(len(head))]
    return [
        indent
        + "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in (head, *shown)
    ]


def amount(size: float) -> str:
    """Bytes as people say them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.2f} TiB"


def length(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds >= 3600:
        return f"{seconds / 3600:,.2f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def _cut(cell: str) -> str:
    cell = " ".join(str(cell).split())
    half = (WIDEST - 3) // 2
    return cell if len(cell) <= WIDEST else f"{cell[:half]}...{cell[-half:]}"


def _is_number(cell: str) -> bool:
    return NUMBER.fullmatch(cell) is not None
