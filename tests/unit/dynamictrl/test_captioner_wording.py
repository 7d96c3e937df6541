"""What a caption claims is read back as it was meant, in every wording that marionettes have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dynamictrl.mini.captioner.wording import (
    ATTRIBUTES,
    accuracy,
    canonical_caption,
    mirrored,
    read_caption,
    right_attributes,
)
from dynamictrl.mini.marionettes.caption import attributes_of, caption_of
from dynamictrl.mini.marionettes.character import BOTTOMS, CLOTH_COLOURS, TOPS, draw_character
from dynamictrl.mini.marionettes.motion import ACTIONS
from dynamictrl.mini.marionettes.scene import PLACES, WALL_COLOURS, choose_place


def scene(seed: int) -> tuple[set[str], dict[str, Any]]:
    """All captions that a random scene may get, and its attributes."""
    rng = np.random.default_rng(seed)
    people = [draw_character(rng) for _ in range(1 + int(rng.uniform() < 0.5))]
    actions = [str(name) for name in rng.choice(sorted(ACTIONS), len(people))]
    actions = [actions[0]] * len(actions) if rng.uniform() < 0.4 else actions
    place = choose_place(rng)
    captions = {caption_of(np.random.default_rng(k), people, actions, place) for k in range(24)}
    return captions, attributes_of(people, actions, place)


@pytest.mark.parametrize("seeds", [range(0, 300), range(300, 600)])
def test_every_wording_is_read_as_what_it_says(seeds: range):
    for seed in seeds:
        captions, attributes = scene(seed)
        for caption in captions:
            wrong = [name for name, correct in right_attributes(caption, attributes) if not correct]
            assert wrong == [], (caption, attributes)


def test_the_canonical_caption_is_one_of_the_marionettes_own():
    for seed in range(300):
        captions, attributes = scene(seed)
        assert canonical_caption(attributes) in captions


def test_every_place_wall_garment_and_action_is_told_from_every_other():
    seen = set()
    for name in PLACES:
        for colour in WALL_COLOURS if "{colour}" in PLACES[name][0] else (None,):
            place = choose_place(np.random.default_rng(0), name, colour)
            said = read_caption(f"A person is waving {place.words}.")
            assert (said["background"], said["background_colour"]) == (name, colour)
            seen.add((name, colour))
    assert len(seen) == 6 + 2 * len(WALL_COLOURS)
    for words, _ in ACTIONS.values():
        (person,) = read_caption(f"A person in a red vest and blue shorts is {words} in a gym.")["persons"]
        assert person["action"] == words
    for top in TOPS:
        for bottom in BOTTOMS:
            (person,) = read_caption(f"one in an orange {top} and {'a ' * (bottom == 'skirt')}navy {bottom}.")[
                "persons"
            ]
            assert (person["top_kind"], person["trousers_kind"], person["action"]) == (top, bottom, None)
    assert len(CLOTH_COLOURS) == 14


@pytest.mark.parametrize("text", ["", "a a a a", "I'm sorry.", "A dog runs in a forest."])
def test_what_says_nothing_gets_nothing_right(text: str):
    attributes = scene(1)[1]
    assert not any(correct for name, correct in right_attributes(text, attributes) if name != "count")


def two_people() -> dict[str, Any]:
    return next(
        a for _, a in map(scene, range(99)) if a["count"] == 2 and len({p["action"] for p in a["persons"]}) == 2
    )


def test_two_people_may_be_named_in_either_order_but_not_mixed():
    attributes = two_people()
    assert accuracy([canonical_caption(mirrored(attributes))], [attributes])["all"] == 1
    first, second = attributes["persons"]
    mixed = {**attributes, "persons": [{**first, "top": second["top"]}, {**second, "top": first["top"]}]}
    right = right_attributes(canonical_caption(mixed), attributes)
    assert sum(not correct for _, correct in right) == 2


def test_a_person_left_out_counts_as_wrong_throughout():
    attributes = two_people()
    alone = {**attributes, "count": 1, "persons": attributes["persons"][:1]}
    right = right_attributes(canonical_caption(alone), attributes)
    assert ("count", False) in right
    assert sum(not correct for _, correct in right) == 6


def test_one_wrong_word_costs_its_attribute_alone():
    attributes = next(a for _, a in map(scene, range(99)) if a["count"] == 1 and a["background_colour"])
    person = attributes["persons"][0]
    wrong = {**attributes, "persons": [{**person, "top": "pink" if person["top"] != "pink" else "teal"}]}
    shares = accuracy([canonical_caption(wrong), canonical_caption(attributes)], [attributes, attributes])
    assert shares.pop("top") == 0.5
    assert shares.pop("all") == 0.5
    assert shares.pop("mean") == pytest.approx(1 - 0.5 / len(ATTRIBUTES))
    assert set(shares.values()) == {1.0}
