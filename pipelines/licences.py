"""Licences and other rights as lists of sources state them: brought to one spelling, and never merged in silence."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pipelines.clip import Clip

CONFLICT = "conflict"
"""In `Clip.rights`: what lists say two things about."""
YES = {"yes", "y", "true", "1", "given", "granted", "obtained", "written", "signed", "explicit"}
"""What a list may write for consent that was given."""
_CC_URL = re.compile(r"creativecommons\.org/(?:licenses/([a-z-]+)|publicdomain/(zero|mark))/(\d(?:\.\d)?)")
_CC_WORDS = (
    ("attribution", "by"), ("noncommercial", "nc"), ("non commercial", "nc"), ("noderivatives", "nd"),
    ("noderivs", "nd"), ("no derivatives", "nd"), ("share alike", "sa"), ("sharealike", "sa"),
)  # fmt: skip
_CC_PARTS = ("by", "nc", "nd", "sa")
_OTHERS = {
    "mit": "MIT", "apache": "Apache", "gpl": "GPL", "lgpl": "LGPL", "agpl": "AGPL", "unlicense": "Unlicense",
    "odbl": "ODbL", "pddl": "PDDL", "odc by": "ODC-By", "isc": "ISC", "mpl": "MPL",
}  # fmt: skip


def spdx(licence: str) -> str:
    """A licence by its SPDX identifier where it is a known one, else its words in lower case; "" stays "".

    `CC BY 4.0`, `cc-by-4.0`, `Creative Commons Attribution 4.0 International` and the licence's URL are `CC-BY-4.0`.
    """
    if found := _CC_URL.search(licence.lower()):
        kind, domain, version = found.groups()
        return f"CC-{kind.upper()}-{version}" if kind else f"CC0-{version}" if domain == "zero" else "CC-PDM-1.0"
    words = " ".join(re.sub(r"[^a-z0-9.]+", " ", licence.lower()).split())
    version = next(iter(re.findall(r"\d+(?:\.\d+)?", re.sub(r"\bcc0\b", "cc zero", words))), "")
    if "cc0" in words.split() or words.startswith(("cc zero", "creative commons zero")):
        return f"CC0-{version or '1.0'}"
    if words.startswith(("cc ", "creative commons")):
        return _creative_commons(words, version)
    if bsd := re.match(r"bsd (\d) clause", words):
        return f"BSD-{bsd[1]}-Clause"
    if words == "public domain":
        return "CC-PDM-1.0"
    name = re.sub(r"\b(the|licen[cs]e|version|v|\d+(\.\d+)?)\b|(?<=\w)\.$", " ", words)
    known = _OTHERS.get(" ".join(name.split()))
    return words if known is None else f"{known}-{version}" if version else known


def _creative_commons(words: str, version: str) -> str:
    for long, short in _CC_WORDS:
        words = words.replace(long, short)
    parts = [part for part in _CC_PARTS if part in words.split()]
    return "-".join(["CC", *(part.upper() for part in parts), *([version] if version else [])]) if parts else words


def covers(allowed: Sequence[str], licence: str) -> bool:
    """Whether a licence is one of those allowed; one named without its version (`CC-BY`) covers all its versions."""
    name = spdx(licence)
    return bool(name) and any(name == a or re.fullmatch(re.escape(a) + r"-\d[\d.]*", name) for a in map(spdx, allowed))


def consents(consent: str) -> bool:
    """Whether a list states that those shown agreed."""
    return consent.strip().lower() in YES


def agreed(sources: Iterable[Clip]) -> list[Clip]:
    """One row for each source, in the order they came first; a source named twice has what either row states.

    Where two rows state different licences, consents or legal bases, `rights` says so under "conflict", for
    `RequireLicence` to refuse: which of them holds is not ours to guess.
    """
    groups: dict[str, list[Clip]] = {}
    for source in sources:
        groups.setdefault(source.source, []).append(source)
    return [rows[0] if len(rows) == 1 else _merged(rows) for rows in groups.values()]


def _merged(rows: Sequence[Clip]) -> Clip:
    stated = {
        "licence": {spdx(row.licence): row.licence for row in _ordered(rows) if row.licence},
        "consent": {row.consent.strip().lower(): row.consent for row in _ordered(rows) if row.consent},
        "legal basis": {b.strip().lower(): b for row in _ordered(rows) if (b := row.rights.get("basis", ""))},
    }
    rights = _joined([row.rights for row in rows])
    if basis := stated["legal basis"]:
        rights["basis"] = next(iter(basis.values()))
    one = replace(
        rows[0],
        licence=next(iter(stated["licence"].values()), ""),
        consent=next(iter(stated["consent"].values()), ""),
        rights=rights,
    )
    said = [f"the {n} {' and '.join(map(repr, sorted(v.values())))}" for n, v in stated.items() if len(v) > 1]
    return one if not said else _in_conflict(one, f"the lists state {', '.join(said)} for one source")


def _in_conflict(source: Clip, problem: str) -> Clip:
    # Once the lists agree it is another unit of work: what was refused before is not found again.
    fingerprint = hashlib.sha256(f"{source.fingerprint}\n{problem}".encode()).hexdigest()[:32]
    return replace(source, fingerprint=fingerprint, rights={**source.rights, CONFLICT: problem})


def _ordered(rows: Sequence[Clip]) -> list[Clip]:
    """What is taken over must not depend on the order of the lists."""
    return sorted(rows, key=lambda row: (row.licence, row.consent, sorted(row.rights.items())), reverse=True)


def _joined(rights: Iterable[Mapping[str, str]]) -> dict[str, str]:
    values: dict[str, set[str]] = {}
    for one in rights:
        for name, value in one.items():
            values.setdefault(name, set()).add(value)
    return {name: "; ".join(sorted(found)) for name, found in sorted(values.items())}


def refused(source: Clip, code: str, message: str) -> Clip:
    """A source refused before a byte of it was read: its key is made of its name, as its content is not known."""
    key = source.key or f"unread-{source.fingerprint[:16]}"
    return replace(source, key=key).reject(code, message)
