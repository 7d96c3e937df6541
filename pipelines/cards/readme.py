"""The data card: YAML that the Hugging Face Hub reads, then what a person should know before using the data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.cards.facts import RESEARCH_ONLY, is_research_only, model_fact, model_roles
from pipelines.cards.rights import Rights
from pipelines.datasets.stage_list import limits, listed

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
SHOWN = 5
"""Models of one role that are named."""
TASKS = ("image-to-video", "text-to-video", "keypoint-detection", "mask-generation")
TAGS = ("webdataset", "croissant", "video", "human-motion", "pose", "segmentation")

MEMBERS = """| member | content |
|---|---|
| `KEY.mp4` | the clip: H.264, yuv420p, constant frame rate, upright |
| `KEY.pose.npz` | `keypoints` [frames, persons, 134, 2] in [0, 1], `scores`, `boxes`, `track_ids` |
| `KEY.mask.npz` | `persons` [frames, height, width], 0 = background; `clothes` where a parser was at work |
| `KEY.txt` | the caption |
| `KEY.json` | source, times, sizes, scores, models, licence, consent, lineage |"""

READING = """```python
import webdataset  # the stock package
samples = webdataset.WebDataset("shards/train-{{000000..{last}}}.tar", shardshuffle=False)

import datasets  # Hugging Face
samples = datasets.load_dataset("webdataset", data_files="shards/*.tar", split="train", streaming=True)
```"""


def readme(name: str, description: Mapping[str, Any], rights: Rights) -> str:
    """`README.md` of a data set."""
    sections = [
        *_head(name, description, rights),
        *_contents(description),
        *_sources(description, rights),
        *_filters(description),
        *_models(description),
        *_limits(description, rights),
    ]
    return "\n".join(["---", *_yaml(name, description, rights), "---", "", *sections]) + "\n"


def _yaml(name: str, description: Mapping[str, Any], rights: Rights) -> Iterator[str]:
    """Every value in double quotes, as JSON: names come from strangers."""
    yield f"license: {rights.hub_licence}"
    if rights.hub_licence == "other":
        stated = ", ".join(rights.licences) if rights.licences else "none"
        yield f"license_name: {json.dumps('as stated per clip' if rights.licences else 'none')}"
        yield f"license_details: {json.dumps(f'per source: {stated[:300]}', ensure_ascii=False)}"
    yield f"pretty_name: {json.dumps(name, ensure_ascii=False)}"
    yield "language:\n- en"
    yield "task_categories:"
    yield from (f"- {task}" for task in TASKS)
    yield "size_categories:"
    yield f"- {size_category(description['counts']['kept'])}"
    yield "tags:"
    yield from (f"- {tag}" for tag in TAGS)
    yield "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: shards/train-*.tar"


def size_category(samples: int) -> str:
    """The Hub's size class of a number of samples."""
    return next((words for limit, words in SIZES if samples < limit), "1M<n<10M")


def _head(name: str, description: Mapping[str, Any], rights: Rights) -> Iterator[str]:
    counts, seconds = description["counts"], description["seconds"]
    yield f"# {name}"
    yield ""
    yield (
        f"{counts['kept']:,} clips ({seconds['kept'] / 3600:,.2f} h) of people moving, out of {rights.sources:,} "
        f"source videos, each with whole-body poses, person masks and a caption. Made by the recipe "
        f"`{description['recipe']}` of DynamiCtrl's curation; `report/index.html` shows the data, `dataset.json` has "
        f"every setting and hash."
    )
    yield ""


def _contents(description: Mapping[str, Any]) -> Iterator[str]:
    shards = description["shards"]
    size = sum(shard["bytes"] for shard in shards)
    yield "## What is in it"
    yield ""
    yield (
        f"{len(shards):,} WebDataset shards, {size / 2**20:,.1f} MiB. `manifest.parquet` lists every clip found, kept "
        f"or refused; `shards/index.json` is an index for `wids`."
    )
    yield ""
    yield MEMBERS
    yield ""
    yield READING.format(last=max((s["name"] for s in shards), default="000000").removesuffix(".tar")[-6:])
    yield ""


def _sources(description: Mapping[str, Any], rights: Rights) -> Iterator[str]:
    counts = description["counts"]
    quarantined = sum(counts["quarantined"].values())
    yield "## Sources, licences, consent"
    yield ""
    yield (
        f"{counts['sources']:,} source videos were given; clips of {rights.sources:,} were kept; {quarantined:,} could "
        f"not be read (`quarantine.jsonl` says why). Licence and consent are what the list of sources states; nobody "
        f"checked them against the rights holders."
    )
    yield ""
    for title, found in (("licence", rights.licences), ("consent", rights.consents)):
        rows = [[_plain(value), f"{clips:,}", f"{seconds / 3600:,.2f}"] for value, (clips, seconds) in found.items()]
        yield from _table([title, "clips", "hours"], rows)
    yield (
        "To have a source taken out, ask whoever published this copy. They run "
        "`python -m pipelines remove --source URI`: its clips, captions and index entries go, and a tombstone keeps "
        "them from coming back."
    )
    yield ""


def _filters(description: Mapping[str, Any]) -> Iterator[str]:
    counts = description["counts"]
    yield "## How it was chosen"
    yield ""
    yield "Stages in order of work: " + ", ".join(f"`{entry['stage']}`" for entry in listed(description)) + "."
    yield ""
    found = limits(description)
    if found:
        yield from _table(["filter", "score", "kept"], [[f"`{m.stage}`", m.score, str(m)] for m in found])
    rejected = counts["rejected"]
    if rejected:
        yield f"{sum(rejected.values()):,} of {counts['clips']:,} clips were refused:"
        yield ""
        ordered = sorted(rejected.items(), key=lambda item: (-item[1], item[0]))
        yield from _table(["reason", "clips"], [[f"`{reason}`", f"{number:,}"] for reason, number in ordered])
    else:
        yield f"None of {counts['clips']:,} clips was refused."
        yield ""


def _models(description: Mapping[str, Any]) -> Iterator[str]:
    yield "## Models whose output is in it"
    yield ""
    rows = []
    models = description["models"]
    for role in [*model_roles(models), *(role for role in models if role.endswith(" sha256"))]:
        facts = [fact for name in models[role] if (fact := model_fact(name))]
        licence = "; ".join(dict.fromkeys(f"{fact.licence}. {fact.note}".rstrip(". ") for fact in facts))
        rows.append([_plain(role), ", ".join(f"`{_plain(name)}`" for name in models[role][:SHOWN]), licence])
    yield from _table(["role", "model or hash", "licence"], rows)


def _limits(description: Mapping[str, Any], rights: Rights) -> Iterator[str]:
    yield "## Known limits"
    yield ""
    if is_research_only(description["models"]):
        yield f"- {RESEARCH_ONLY}"
    if not rights.is_stated:
        yield "- Not every source states a licence: do not assume that clips may be redistributed."
    yield "- Clips show identifiable people. Faces are as filmed, unless a `blur_faces` stage is among those above."
    yield "- Poses, masks and captions were made by models and checked by filters, not by people; they hold mistakes."
    yield (
        "- Filters favour people who are seen whole, near and alone. Who and what is over- or under-represented "
        "was not measured."
    )
    if any("mini/" in name for names in description["models"].values() for name in names):
        yield "- Small stand-in models (`mini/`) were at work: this copy is for trying the software, not for training."
    yield "- Shards are byte-identical for the same sources and settings where all models ran on the CPU."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if not rows:
        return
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    yield from ("| " + " | ".join(row) + " |" for row in rows)
    yield ""


def _plain(text: str) -> str:
    """A stranger's words in one cell of a table, without markup."""
    return " ".join(text.replace("|", "/").replace("`", "'").replace("<", "(").replace(">", ")").split())
