"""What is said of a marionette scene: one sentence, and the same facts by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynamictrl.mini.marionettes.character import Character
from dynamictrl.mini.marionettes.motion import ACTIONS
from dynamictrl.mini.marionettes.scene import Place


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def clothes_words(who: Character) -> str:
    """Such as "a red t-shirt and a blue skirt"."""
    bottom = f"{who.bottom_colour} {who.bottom}"
    return f"{_article(f'{who.top_colour} {who.top}')} and {_article(bottom) if who.bottom == 'skirt' else bottom}"


def hair_words(who: Character) -> str:
    """Such as "long brown hair" or "a green cap"."""
    if who.hair_style == "cap":
        return _article(f"{who.hat_colour} cap")
    if who.hair_style == "shaved":
        return "a shaved head"
    kind = {"long": "long", "curly": "curly", "bun": "tied-up", "ponytail": "tied-back"}.get(who.hair_style, "short")
    return f"{kind} {who.hair_name} hair"


def caption_of(rng: np.random.Generator, people: list[Character], actions: list[str], place: Place) -> str:
    """One English sentence; the same facts are worded in several ways."""
    doing, where = [ACTIONS[action][0] for action in actions], place.words
    if len(people) == 1:
        who = people[0]
        templates = (
            f"A person in {clothes_words(who)} is {doing[0]} {where}.",
            f"A person with {hair_words(who)} wearing {clothes_words(who)} is {doing[0]} {where}.",
            f"Someone with {hair_words(who)}, dressed in {clothes_words(who)}, is {doing[0]} {where}.",
        )
        return templates[int(rng.integers(len(templates)))]
    first, second = (clothes_words(who) for who in people)
    if doing[0] == doing[1]:
        return f"Two people are {doing[0]} {where}, one in {first}, the other in {second}."
    return f"Two people {where}: one in {first} is {doing[0]}, the other in {second} is {doing[1]}."


def attributes_of(people: list[Character], actions: list[str], place: Place) -> dict[str, Any]:
    """`count`, the first person's `top`, `trousers`, `action`; the place and its wall; all people in `persons`."""
    persons = [
        {
            "top": who.top_colour,
            "top_kind": who.top,
            "trousers": who.bottom_colour,
            "trousers_kind": who.bottom,
            "shoes": who.shoe_colour,
            "hair": hair_words(who),
            "action": ACTIONS[action][0],
        }
        for who, action in zip(people, actions, strict=True)
    ]
    first = persons[0]
    return {
        "count": len(people),
        "top": first["top"],
        "trousers": first["trousers"],
        "background": place.name,
        "background_colour": place.colour,
        "action": first["action"],
        "persons": persons,
    }
