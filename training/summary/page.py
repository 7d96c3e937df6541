"""The page itself: one file that needs no network and no script."""

from __future__ import annotations

import html
import logging
import time
from pathlib import Path

from training.summary import sections
from training.summary.record import RunRecord

logger = logging.getLogger(__name__)

FILE = "summary.html"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file: data:; media-src 'self' file: data:"
"""The page loads nothing but clips beside it that are too large to lie in it."""


def write_summary(run_folder: Path, out: Path | None = None) -> Path:
    """Writes `RUN/summary.html`, or `out`, whole or not at all.

    Raises ConfigError where the folder is no run's.
    """
    out = out or run_folder / FILE
    text = page(RunRecord.read(run_folder), out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(out)
    return out


def write_after(run_folder: Path) -> Path | None:
    """The summary at the end of a session; a page that cannot be written never fails a run."""
    try:
        return write_summary(run_folder)
    except Exception:  # the run's own result, or its own failure, is what counts
        logger.warning("no summary was written", exc_info=True)
        return None


def page(record: RunRecord, place: Path) -> str:
    """The whole page, with links from the folder `place`, in which it will lie."""
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    name, title = html.escape(record.folder.resolve().name), html.escape(record.name)
    parts = [
        sections.notice(record),
        sections.cards(record),
        '<h2 id="curves">Curves</h2>',
        sections.marks_legend(),
        sections.charts(record),
        sections.phases(record),
        sections.validations(record, place),
        sections.told(record),
        '<h2 id="sessions">Sessions</h2>',
        sections.sessions(record),
        sections.expected(record),
        sections.data(record),
        sections.settings(record),
        sections.model(record, place),
    ]
    body = "\n".join(part for part in parts if part)
    again = html.escape(f"python -m training summary {record.folder}")
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{name}: training run</title>
<style>
{style}</style>
</head>
<body>
<h1>{name} <span class="state {record.state}">{record.state}</span></h1>
<p class="soft head">Training run of the recipe <code>{title}</code>; written {written}. Again: <code>{again}</code></p>
<nav>{_links(body)}</nav>
{body}
</body>
</html>
"""


def _links(body: str) -> str:
    names = ("curves", "validation", "told", "sessions", "plan", "data", "recipe", "model")
    words = {"told": "steps left out"}
    return "".join(f'<a href="#{name}">{words.get(name, name)}</a>' for name in names if f'id="{name}"' in body)
