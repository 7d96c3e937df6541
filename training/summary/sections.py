"""The parts of the page: each takes the record and gives HTML, empty where there is nothing to tell."""

from __future__ import annotations

import base64
import html
import json
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from training.callbacks.progress import duration
from training.summary.charts import COLOURS, Chart, Marks, written
from training.summary.record import RunRecord
from training.validating.validation_results import Result

GB = 1e9
GIB = 2**30
LARGEST_EMBEDDED = 3 * 2**20
"""Bytes of a validation's clips that are put into the page; larger ones are linked."""
LISTED = 50


def cards(record: RunRecord) -> str:
    """The numbers that are asked for first."""
    seconds, mfu, stall = (record.typical(name) for name in ("step_seconds", "mfu", "data_stall_fraction"))
    losses = [value for _, value in record.values("loss") if value == value]
    left = (record.wanted - record.done) * seconds if seconds is not None else None
    found = [
        (f"{record.done:,}", f"of {record.wanted:,} steps"),
        (written(statistics.fmean(losses[-max(1, len(losses) // 50) :])) if losses else "", "loss, lately"),
        (f"{seconds:.3g} s" if seconds is not None else "", "a step (median)"),
        (duration(left) if left and record.state == "running" else "", "left at this speed"),
        (_rate(record.typical("tokens_per_second")), "tokens a second"),
        (f"{100 * mfu:.1f} %" if mfu is not None else "", "of the GPUs' peak (MFU)"),
        (f"{100 * stall:.2f} %" if stall is not None else "", "waiting for data"),
        (_gib(record.last("peak_memory_gib")), "most memory of a worker"),
        (written(record.last("epoch") or 0.0), "epochs seen"),
        (f"{record.last('skipped_steps') or 0:,.0f}", "steps left out"),
        (f"{len(record.restarts):,}", "restart" if len(record.restarts) == 1 else "restarts"),
    ]
    return f'<div class="grid">{"".join(f"<div class=card><b>{n}</b>{w}</div>" for n, w in found if n)}</div>'


def notice(record: RunRecord) -> str:
    """Why a run gave up."""
    if not record.failure:
        return ""
    return f'<p class="notice"><span class="code">gave up</span> {html.escape(record.failure)}</p>'


def charts(record: RunRecord) -> str:
    """Every curve, with what happened marked at its step."""
    left_out = [int(line["step"]) for line in record.told if not line["applied"]]
    spikes = [int(line["step"]) for line in record.told if line["applied"]]
    marks = Marks(record.checkpoints, record.restarts, left_out, spikes)

    def one(title: str, unit: str, *names: str, **options: bool) -> Chart:
        series = {_short(name): record.values(name) for name in names if name in record.metric_names}
        return Chart(title, unit, series, marks, **options)

    bins = sorted((name for name in record.metric_names if name.startswith("loss/")), key=_first_timestep)
    speed = one("Seconds a step", "s", "step_seconds", from_zero=True)
    drawn = [
        one("Loss", "mean square of v", "loss"),
        one("Loss by timestep", "low timesteps are nearly clean", *bins),
        one("Gradient norm", "before clipping", "grad_norm"),
        one("Steps clipped", "share", "clipped", percent=True, from_zero=True, share=True),
        one("Learning rate", "", "learning_rate", smooth=False, from_zero=True),
        speed,
        one("Tokens a second", "all workers", "tokens_per_second", from_zero=True),
        one("Use of the GPUs", "HFU counts what is computed twice", "mfu", "hfu", percent=True, from_zero=True),
        one("Waiting for data", "share of the step", "data_stall_fraction", percent=True, from_zero=True),
        one("Memory", "GiB, the fullest worker", "peak_memory_gib", "memory_gib", "reserved_memory_gib", smooth=False),
    ]
    shown = [chart for chart in drawn if chart.series]
    return f'<div class="charts">{"".join(map(_chart_card, shown))}</div>' if record.steps else _nothing("No step yet.")


def marks_legend() -> str:
    """What the marks in the charts mean."""
    return (
        '<p class="soft legend"><span class="swatch" style="background: var(--mark)"></span>restart'
        '<span class="swatch" style="background: var(--soft)"></span>checkpoint'
        '<span class="swatch" style="background: var(--bad)"></span>step left out'
        '<span class="swatch" style="background: var(--out)"></span>spike, applied. '
        "Pale: every step; line: running mean over a fiftieth of the steps.</p>"
    )


def phases(record: RunRecord) -> str:
    """Where the time of a typical step goes."""
    names = ("data", "forward", "backward", "optimizer")
    parts = {name: record.typical(f"{name}_seconds") for name in names}
    whole = record.typical("step_seconds")
    if whole is None or any(value is None for value in parts.values()):
        return ""
    known = {name: value or 0.0 for name, value in parts.items()}
    known["rest"] = max(0.0, whole - sum(known.values()))
    total = sum(known.values()) or 1.0
    bar = "".join(
        f'<i style="width: {100 * value / total:.2f}%; background: {COLOURS[index]}"></i>'
        for index, value in enumerate(known.values())
    )
    legend = "".join(
        f'<span class="swatch" style="background: {COLOURS[index]}"></span>{name} {1000 * value:,.0f} ms '
        f"({100 * value / total:.1f} %)"
        for index, (name, value) in enumerate(known.items())
    )
    return f'<h3>A typical step</h3><div class="stacked">{bar}</div><p class="soft legend num">{legend}</p>'


def sessions(record: RunRecord) -> str:
    """When the run was started, from where, and what a restart cost."""
    if not record.sessions:
        return _nothing("No session is on record.")
    rows = [
        (_moment(s.started), duration(s.ended - s.started), f"{s.first:,}", f"{s.last:,}", f"{s.repeated:,}",
         f"{s.workers}")
        for s in record.sessions
    ]  # fmt: skip
    wall = sum(session.ended - session.started for session in record.sessions)
    used = sum(value for _, value in record.values("step_seconds"))
    share = f"Steps that stand took {100 * min(1.0, used / wall):.1f} % of the sessions' time. " if wall > 0 else ""
    saved = f"{len(set(record.checkpoints)):,} checkpoints were written." if record.checkpoints else ""
    head = ("started", "lasted", "from step", "to step", "steps taken again", "workers")
    return f'<p class="soft">{share}{saved}</p>{_table(head, rows, numbers=range(1, 6))}'


def told(record: RunRecord) -> str:
    """Steps that were left out, and spikes, with the clips they were made of."""
    if not record.told:
        return ""
    rows = []
    for line in record.told[-LISTED:]:
        worst = sorted(line["samples"], key=lambda s: s["loss"] if s["loss"] is not None else float("inf"))[-3:]
        keys = ", ".join(f"{s['key']} (t {s['timestep']}, loss {_number(s['loss'])})" for s in reversed(worst))
        what = {"not_finite": "not finite", "spike": "spike"}.get(line["reason"], line["reason"])
        done = "applied" if line["applied"] else "left out"
        norms = (_number(line[name]) for name in ("grad_norm", "median_norm", "loss"))
        rows.append((f"{line['step']:,}", what, done, *norms, keys))
    head = ("step", "gradients", "step was", "norm", "median norm", "loss", "its clips with the greatest losses")
    more = f'<p class="soft">The last {LISTED} of {len(record.told):,}.</p>' if len(record.told) > LISTED else ""
    text = '<p class="soft">All of them with all their clips are in <code>skipped_steps.jsonl</code>.</p>'
    return f'<h2 id="told">Steps left out, and spikes</h2>{text}{more}{_table(head, rows, numbers=(0, 3, 4, 5))}'


def expected(record: RunRecord) -> str:
    """The plan against what was measured; nothing on the CPU, which no plan is made for."""
    plan = record.plan() if record.settings["recipe"]["workers"]["device"] == "cuda" else None
    if plan is None:
        return ""
    rows = [
        _compared("seconds a step", plan.seconds_per_step, record.typical("step_seconds"), "{:.3g}"),
        _compared("peak memory, GiB", plan.memory.allocated_gib, record.last("peak_memory_gib"), "{:.1f}"),
        _compared("MFU, %", 100 * plan.mfu, _hundred(record.typical("mfu")), "{:.1f}"),
        _compared("HFU, %", 100 * plan.hfu, _hundred(record.typical("hfu")), "{:.1f}"),
        ("parameters", f"{plan.parameters:,}", "", ""),
        ("of which learn", f"{plan.trained:,}", "", ""),
        ("tokens a clip", f"{plan.tokens:,}", "", ""),
        ("checkpoint, GB", f"{plan.checkpoint_gb:,.1f}", "", ""),
    ]
    text = f'<p class="soft">Planned for {html.escape(plan.gpu)}.</p>'
    head = ("", "planned", "measured", "measured / planned")
    return f'<h2 id="plan">Plan against measured</h2>{text}{_table(head, rows, numbers=(1, 2, 3))}'


def validations(record: RunRecord, place: Path) -> str:
    """Metrics of every validation by step, and the last one's clips; `place` is the page's folder."""
    found = record.validations
    if not found:
        return ""
    names = list(dict.fromkeys(name for one in found for name in one.values))
    drawn = [Chart(name, "", {name: [(v.step, v.values[name]) for v in found if name in v.values]}, smooth=False)
             for name in names[:12]]  # fmt: skip
    curves = "".join(map(_chart_card, drawn)) if len(found) > 1 else ""
    rows = [(f"{one.step:,}", *(_number(one.values.get(name)) for name in names)) for one in found[-LISTED:]]
    table = _table(("step", *names), rows, numbers=range(len(names) + 1))
    clips = _clips(place, found[-1])
    return f'<h2 id="validation">Validation</h2><div class="charts">{curves}</div>{table}{clips}'


def data(record: RunRecord) -> str:
    """Where the clips came from."""
    described = record.dataset
    rows = [("folder", html.escape(str(record.settings["data"])))]
    for name in ("recipe", "schema_version", "created", "counts", "seconds"):
        if name in described:
            rows.append((name.replace("_", " "), f"<code>{html.escape(json.dumps(described[name]))}</code>"))
    clips = record.last("samples_seen"), record.last("epoch")
    if clips[0] and clips[1]:
        rows.append(("clips trained on", f"{clips[0] / clips[1]:,.0f}, each seen {written(clips[1])} times"))
    if not described:
        rows.append(("description", "the folder cannot be seen from here"))
    body = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
    return f'<h2 id="data">Data</h2><table>{body}</table>'


def settings(record: RunRecord) -> str:
    """The recipe whole, and what it ran on."""
    recipe = record.settings["recipe"]
    groups = [("run", {name: value for name, value in recipe.items() if not isinstance(value, dict)})]
    groups += [(name, value) for name, value in recipe.items() if isinstance(value, dict)]
    shown = "".join(
        f'<div class="card"><h3>{html.escape(name)}</h3><table>'
        + "".join(
            f"<tr><th>{html.escape(k)}</th><td class=num>{html.escape(str(v))}</td></tr>" for k, v in group.items()
        )
        + "</table></div>"
        for name, group in groups
        if group
    )
    where = ""
    if record.environment:
        text = html.escape(json.dumps(record.environment, indent=2))
        where = f"<details><summary>machine, packages and code</summary><pre>{text}</pre></details>"
    return f'<h2 id="recipe">Recipe</h2><div class="recipe">{shown}</div>{where}'


def model(record: RunRecord, place: Path) -> str:
    """The exported model, and what to do next; `place` is the page's folder."""
    card = record.folder / "model" / "README.md"
    if not card.is_file():
        return ""
    text = html.escape(card.read_text(encoding="utf-8"))
    folder, link = html.escape(str(record.folder / "model")), html.escape(os.path.relpath(card, place))
    return (
        f'<h2 id="model">Model</h2><p><a href="{link}">model/README.md</a> in <code>{folder}</code></p>'
        f"<details><summary>model card</summary><pre>{text}</pre></details>"
        f"<pre>python -m training evaluate --model {folder} --data DATASET --out DIR</pre>"
    )


def _clips(place: Path, last: Result) -> str:
    clips = [path for path in last.clips if path.is_file()]
    embeds = sum(path.stat().st_size for path in clips) <= LARGEST_EMBEDDED
    figures = "".join(_figure(path, place, embeds) for path in clips)
    return f'<h3>Clips of step {last.step:,}</h3><div class="clips">{figures}</div>'


def _figure(path: Path, place: Path, embeds: bool) -> str:
    link = html.escape(os.path.relpath(path, place))
    source = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}" if embeds else link
    tag = f'<video src="{source}" autoplay muted loop playsinline controls></video>'
    return f'<div class="card">{tag}<p class="soft"><a href="{link}">{html.escape(path.name)}</a></p></div>'


def _chart_card(chart: Chart) -> str:
    newest = [points[-1][1] for points in chart.series.values() if points]
    tells = len(newest) == 1 and not chart.share
    last = f'<span class="soft num">last {written(newest[0], chart.percent)}</span>' if tells else ""
    unit = f' <span class="soft">{html.escape(chart.unit)}</span>' if chart.unit else ""
    title = f'<div class="title"><span>{html.escape(chart.title)}{unit}</span>{last}</div>'
    return f'<div class="card">{title}{chart.svg()}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """Cells are text and escaped here."""
    right = set(numbers)
    kinds = [' class="num"' if column in right else "" for column in range(len(head))]
    top = "".join(f"<th{kind}>{html.escape(name)}</th>" for kind, name in zip(kinds, head, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{html.escape(cell)}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _compared(name: str, planned: float, measured: float | None, form: str) -> tuple[str, str, str, str]:
    if measured is None:
        return name, form.format(planned), "not measured", ""
    return name, form.format(planned), form.format(measured), f"{measured / planned:.2f}" if planned else ""


def _number(value: float | None) -> str:
    return "not finite" if value is None or value != value else written(value)


def _hundred(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _gib(value: float | None) -> str:
    return "" if value is None else f"{value:.3g} GiB"


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _short(name: str) -> str:
    return {"mfu": "MFU", "hfu": "HFU"}.get(name, name.removeprefix("loss/").removesuffix("_gib").replace("_", " "))


def _first_timestep(name: str) -> int:
    return int(name.removeprefix("loss/t").split("-")[0])


def _nothing(sentence: str) -> str:
    return f'<p class="soft">{sentence}</p>'
