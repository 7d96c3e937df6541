"""The one wording that the mini captioner learns, and the way back from any marionette caption to what it claims."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

from dynamictrl.mini.marionettes.character import BOTTOMS, CLOTH_COLOURS, HAIRS, TOPS
from dynamictrl.mini.marionettes.motion import ACTIONS
from dynamictrl.mini.marionettes.scene import PLACES, Place

PERSON_ATTRIBUTES = ("top", "top_kind", "trousers", "trousers_kind", "action")
ATTRIBUTES = ("count", *PERSON_ATTRIBUTES, "background", "background_colour")
"""What a caption is measured by. `background_colour` counts where the place has a wall to name."""


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _clothes(person: Mapping[str, str]) -> str:
    bottom = f"{person['trousers']} {person['trousers_kind']}"
    bottom = _article(bottom) if person["trousers_kind"] == "skirt" else bottom
    top = f"{person['top']} {person['top_kind']}"
    return f"{_article(top)} and {bottom}"


def canonical_caption(attributes: Mapping[str, Any]) -> str:
    """The shortest of the wordings that `marionettes.caption.caption_of` has for these attributes."""
    where = Place(attributes["background"], attributes["background_colour"]).words
    people = attributes["persons"]
    doing, wearing = [person["action"] for person in people], [_clothes(person) for person in people]
    if len(people) == 1:
        return f"A person in {wearing[0]} is {doing[0]} {where}."
    if doing[0] == doing[1]:
        return f"Two people are {doing[0]} {where}, one in {wearing[0]}, the other in {wearing[1]}."
    return f"Two people {where}: one in {wearing[0]} is {doing[0]}, the other in {wearing[1]} is {doing[1]}."


def mirrored(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of the clip seen in a mirror: people are named from left to right."""
    return {**attributes, "persons": attributes["persons"][::-1]}


def every_word() -> Iterator[str]:
    """Texts that together hold each word of each marionette caption."""
    yield from ("A person with wearing", "Someone, dressed", "Two people are in, one, the other: one in is.")
    yield "an a cap, a shaved head; long, curly, tied-up, tied-back, short hair"
    yield " " + " ".join([*CLOTH_COLOURS, *HAIRS, *TOPS, *BOTTOMS])
    yield from (" " + said for said, _ in ACTIONS.values())
    for name, (said, _) in PLACES.items():
        colour = "orange" if "{colour}" in said else None
        yield " " + Place(name, colour).words


def _any_of(words: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, set(words)), key=len, reverse=True))


_COLOURS = _any_of(CLOTH_COLOURS)
_CLOTHES = re.compile(
    rf"\b(?P<top>{_COLOURS}) (?P<top_kind>{_any_of(TOPS)}) and (?:an? )?"
    rf"(?P<trousers>{_COLOURS}) (?P<trousers_kind>{_any_of(BOTTOMS)})\b"
)
_ACTION = re.compile(rf"\b({_any_of(said for said, _ in ACTIONS.values())})\b")
_PLACES = {
    name: re.compile(
        re.escape(said).replace(r"a\ \{colour\}", r"an?\ \{colour\}").replace(r"\{colour\}", rf"({_COLOURS})")
    )
    for name, (said, _) in PLACES.items()
}


def read_caption(text: str) -> dict[str, Any]:
    """What a caption in any of the marionettes' wordings claims, named as `attributes_of` names it.

    None stands where nothing is said that can be understood.
    """
    actions = _ACTION.findall(text)
    persons = [{**match.groupdict(), "action": None} for match in _CLOTHES.finditer(text)]
    for index, person in enumerate(persons):
        person["action"] = actions[min(index, len(actions) - 1)] if actions else None
    place, colour = None, None
    for name, pattern in _PLACES.items():
        if found := pattern.search(text):
            place, colour = name, (found.group(1) if found.groups() else None)
    count = 2 if text.startswith("Two people") else 1 if text.startswith(("A person", "Someone")) else None
    return {"count": count, "persons": persons, "background": place, "background_colour": colour}


def right_attributes(text: str, attributes: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Each of a clip's attributes by name with whether the caption has it right: one per person where it is a person's.

    A caption of two says "one ... the other ..." and claims no order, so people are paired in their favour.
    """
    said = read_caption(text)
    right = [
        ("count", said["count"] == attributes["count"]),
        ("background", said["background"] == attributes["background"]),
    ]
    if attributes["background_colour"] is not None:
        right.append(("background_colour", said["background_colour"] == attributes["background_colour"]))
    people = attributes["persons"]
    told = [*said["persons"], *({} for _ in people)][: len(people)]
    orders = (told, told[::-1])
    pairings = [
        [
            (name, person[name] == claim.get(name))
            for (person, claim), name in product(list(zip(people, order, strict=True)), PERSON_ATTRIBUTES)
        ]
        for order in orders
    ]
    return right + max(pairings, key=lambda pairing: sum(correct for _, correct in pairing))


def accuracy(captions: Iterable[str], truths: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Shares of right attributes by name, their `mean` over names, and `all`: of captions without any fault."""
    rights = [right_attributes(text, truth) for text, truth in zip(captions, truths, strict=True)]
    shares = {}
    for name in ATTRIBUTES:
        told = [correct for clip in rights for which, correct in clip if which == name]
        if told:
            shares[name] = sum(told) / len(told)
    faultless = sum(all(correct for _, correct in clip) for clip in rights) / max(1, len(rights))
    return {**shares, "mean": sum(shares.values()) / max(1, len(shares)), "all": faultless}
