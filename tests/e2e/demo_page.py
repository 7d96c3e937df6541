"""The page that `make demo` ends in: what went in, what was kept and why, what was learnt, what came out."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, select_autoescape


@dataclass(frozen=True)
class ClipCard:
    """A short video with a heading and a line of text."""

    title: str
    video: bytes
    """H.264 mp4."""
    text: str = ""


@dataclass(frozen=True)
class Score:
    """One row of the table of scores; higher is better in every column."""

    name: str
    psnr: float
    """PSNR* in dB against the true frames."""
    ssim: float
    pck: float
    """Share of body keypoints found within 0.2 trunk lengths of the driving pose."""
    moved: float
    """The same share, of those keypoints alone that are away from their place in the photo."""


@dataclass(frozen=True)
class Demo:
    """Everything the page shows."""

    sources: Sequence[ClipCard]
    outcomes: Sequence[tuple[str, int]]
    """Outcome or reason, and how many clips or files."""
    quarantine: Sequence[dict[str, Any]]
    samples: Sequence[ClipCard]
    models: Sequence[tuple[str, str]]
    """What is known about a sample, and the model it is from."""
    losses: Sequence[tuple[int, float]]
    """Step, loss."""
    results: Sequence[ClipCard]
    scores: Sequence[Score]
    verdict: str
    """What the scores say, in words."""
    places: Sequence[ClipCard]
    places_verdict: str
    facts: Sequence[tuple[str, str]] = field(default_factory=tuple)
    """Label and value, for the tiles at the top."""
    commands: Sequence[str] = field(default_factory=tuple)


def smooth(values: Sequence[float], window: int) -> list[float]:
    """A trailing mean, as long as `values`."""
    out = []
    for end in range(1, len(values) + 1):
        part = values[max(0, end - window) : end]
        out.append(sum(part) / len(part))
    return out


def loss_curve(losses: Sequence[tuple[int, float]], width: int = 720, height: int = 220) -> str:
    """An SVG of the loss, each step in grey and a trailing mean in colour."""
    if len(losses) < 2:
        return ""
    steps = [s for s, _ in losses]
    values = [v for _, v in losses]
    low, high = min(values), max(values)
    span = (high - low) or 1.0

    def path(series: Sequence[float]) -> str:
        points = [
            f"{40 + (width - 50) * (s - steps[0]) / max(1, steps[-1] - steps[0]):.1f},"
            f"{10 + (height - 40) * (1 - (v - low) / span):.1f}"
            for s, v in zip(steps, series, strict=True)
        ]
        return "M" + " L".join(points)

    labels = "".join(
        f'<text x="34" y="{10 + (height - 40) * (1 - share) + 4:.0f}" text-anchor="end">{low + span * share:.2f}</text>'
        for share in (0.0, 0.5, 1.0)
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="training loss by step">'
        f'<path class="raw" d="{path(values)}"/><path class="mean" d="{path(smooth(values, 12))}"/>{labels}'
        f'<text x="40" y="{height - 8}">step {steps[0]}</text>'
        f'<text x="{width - 10}" y="{height - 8}" text-anchor="end">step {steps[-1]}</text></svg>'
    )


TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>DynamiCtrl demo</title>
<style>
:root { --ink: #1d2330; --dim: #667085; --paper: #fbfaf8; --card: #fff; --line: #e4e2dd; --accent: #d6512d; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #eceae5; --dim: #9aa1ad; --paper: #14161b; --card: #1d2027; --line: #30343d; --accent: #ff8a62; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 1080px; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 2rem; margin: 0; } h2 { margin: 2.6rem 0 .4rem; font-size: 1.3rem; }
p { margin: .3rem 0 1rem; color: var(--dim); max-width: 70ch; }
.tiles, .cards { display: grid; gap: .9rem; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); margin: 1.4rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .7rem .9rem; }
.tile b { display: block; font-size: 1.35rem; } .tile span { color: var(--dim); font-size: .85rem; }
.cards { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
.cards.wide { grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); }
.cards.three { grid-template-columns: repeat(3, minmax(0, 220px)); }
.cards.large { grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
video { display: block; width: 100%; background: #000; aspect-ratio: var(--aspect, auto); object-fit: contain; }
.sources video { height: 150px; }
figcaption { padding: .5rem .7rem .6rem; font-size: .82rem; color: var(--dim); overflow-wrap: anywhere; }
figcaption b { display: block; color: var(--ink); font-size: .9rem; }
table { border-collapse: collapse; width: 100%; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; overflow: hidden; }
th, td { text-align: left; padding: .5rem .8rem; border-top: 1px solid var(--line); font-size: .92rem;
  overflow-wrap: anywhere; }
th { color: var(--dim); font-weight: 600; border-top: 0; } td.word, th { white-space: nowrap; } td.n, th.n { text-align: right; white-space: nowrap; }
tr.best td { font-weight: 700; }
svg { width: 100%; max-width: 720px; background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
svg text { font: 11px system-ui; fill: var(--dim); }
svg path { fill: none; } .raw { stroke: var(--line); } .mean { stroke: var(--accent); stroke-width: 2.2; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem 1rem; overflow: auto; }
</style></head><body>
<h1>DynamiCtrl, the whole way</h1>
<p>Raw videos in, a served clip out. The people are <em>marionettes</em>, drawn by the project; every model on this
page is the project's own <em>mini</em> family, small enough for a laptop's CPU. The code is the one that runs with the
real models on a cluster.</p>
<div class="tiles">{% for label, value in demo.facts %}<div class="tile"><b>{{ value }}</b><span>{{ label }}</span></div>
{% endfor %}</div>

<h2>1. What went in</h2>
<p>Source videos of several sizes, frame rates and scenes; one with nobody in it, and one file broken on purpose.</p>
<div class="cards sources">{% for card in demo.sources %}{{ figure(card) }}{% endfor %}</div>

<h2>2. What became of it</h2>
<table><tr><th>outcome</th><th class="n">count</th></tr>
{% for reason, count in demo.outcomes %}<tr><td>{{ reason }}</td><td class="n">{{ count }}</td></tr>{% endfor %}</table>
{% if demo.quarantine %}<p></p><table><tr><th>quarantined file</th><th>stage</th><th>reason</th><th>message</th></tr>
{% for row in demo.quarantine %}<tr><td>{{ row.uri.split("/")[-1] }}</td><td class="word">{{ row.stage }}</td>
<td class="word">{{ row.reason }}</td><td>{{ row.message }}</td></tr>{% endfor %}</table>{% endif %}

<h2>3. What the model learns from</h2>
<p>Clips from the shards, with the pose found in them drawn as the model sees it and the person's mask tinted. Below
each, its caption.{% if demo.models %} As the samples' records have it:
{% for kind, model in demo.models %}{{ kind }} by <code>{{ model }}</code>{{ ", " if not loop.last else "." }}
{% endfor %}{% endif %}</p>
<div class="cards wide">{% for card in demo.samples %}{{ figure(card) }}{% endfor %}</div>

<h2>4. Fine-tuning</h2>
<p>Velocity-prediction loss of the PadaLN transformer on two Ray Train workers under DeepSpeed, as MLflow recorded it;
each step in grey, a trailing mean of 12 in colour.</p>
{{ curve | safe }}

<h2>5. What came out of the service</h2>
<p>A person that no model here has seen, driven by a motion from the same held-out clip, so that the true frames are
known. The request went through the HTTP API with the stock <code>openai</code> client. The scene was picked for a
large, slow motion: limbs that move fast come out more smeared than these.</p>
<div class="cards large">{% for card in demo.results %}{{ figure(card) }}{% endfor %}</div>
<p></p>
<table><tr><th>against the true frames</th><th class="n">PSNR* (dB)</th><th class="n">SSIM</th>
<th class="n">joints in place (PCK@0.2)</th><th class="n">of those that moved</th></tr>
{% for s in demo.scores %}<tr{% if loop.first %} class="best"{% endif %}><td>{{ s.name }}</td>
<td class="n">{{ "%.2f" | format(s.psnr) }}</td><td class="n">{{ "%.3f" | format(s.ssim) }}</td>
<td class="n">{{ "%.0f %%" | format(100 * s.pck) }}</td><td class="n">{{ "%.0f %%" | format(100 * s.moved) }}</td></tr>
{% endfor %}</table>
<p>Higher is better everywhere. PSNR* and SSIM leave out the first frame, which was given. {{ demo.verdict }} One clip
and a few minutes on a laptop: a smoke test with a score, not a benchmark. <code>docs/mini.md</code> has the shipped
model's measured quality.</p>

<h2>6. The same person, another place</h2>
<p>The same photo and motion, sent with a <em>mask</em>: white over the person, who is kept; all else is blacked out and
drawn anew from the prompt. The two prompts differ in the colour of the place alone.</p>
<div class="cards three">{% for card in demo.places %}{{ figure(card) }}{% endfor %}</div>
<p></p>
<p>{{ demo.places_verdict }}</p>

<h2>Next</h2>
<pre>{% for line in demo.commands %}{{ line }}
{% endfor %}</pre>
</body></html>
"""


def figure(card: ClipCard) -> str:
    """One video card as HTML."""
    from markupsafe import Markup, escape

    source = base64.b64encode(card.video).decode()
    text = f"<br>{escape(card.text)}" if card.text else ""
    video = (
        f'<video src="data:video/mp4;base64,{source}" autoplay muted loop playsinline></video>' if card.video else ""
    )
    return Markup(f"<figure>{video}<figcaption><b>{escape(card.title)}</b>{text}</figcaption></figure>")


def write_page(demo: Demo, path: Path) -> None:
    """Writes the page, one file with everything in it."""
    environment = Environment(autoescape=select_autoescape(default_for_string=True))
    template = environment.from_string(TEMPLATE)
    path.write_text(template.render(demo=demo, figure=figure, curve=loss_curve(demo.losses)))
