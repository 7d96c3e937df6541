"""What is known of the models that may shape a data set: their licences, and what those ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelFact:
    """One family of weights."""

    prefix: str
    """What ids of the family begin with; local folders of the same name count as well."""
    licence: str
    """As its publishers state it."""
    note: str = ""
    """What a user of the data should know."""


MODELS = (
    ModelFact(
        "yzd-v/DWPose",
        "Apache-2.0",
        "Trained on COCO-WholeBody, whose annotations are for research and non-commercial use only.",
    ),
    ModelFact("mini/", "this project's", "A small model trained on synthetic figures; not the real one."),
    ModelFact("skeleton-seeded", "none needed", "Masks are grown from the skeleton; there are no weights."),
    ModelFact("sidecar", "none needed", "Captions were written by people and lay beside the sources."),
    ModelFact("facebook/sam2", "Apache-2.0"),
    ModelFact("facebook/sam3", "SAM License", "Gated: its use is bound to Meta's terms."),
    ModelFact("facebook/EdgeTAM", "Apache-2.0", "Check the weights' own card."),
    ModelFact("Qwen/Qwen2-VL-2B", "Apache-2.0"),
    ModelFact("Qwen/Qwen2-VL-7B", "Apache-2.0"),
    ModelFact("Qwen/Qwen2-VL-72B", "Qwen licence"),
    ModelFact("transnetv2", "MIT"),
)

RESEARCH_ONLY = (
    "Poses from DWPose carry on the terms of COCO-WholeBody, on whose annotations it was trained: research and "
    "non-commercial use."
)


def model_fact(name: str) -> ModelFact | None:
    """What is known of a model id or a folder's name; None where nothing is."""
    lowered = name.lower()
    for fact in MODELS:
        if lowered.startswith(fact.prefix.lower()):
            return fact
    tails = [(fact, fact.prefix.lower().rsplit("/", 1)[-1]) for fact in MODELS]
    return next((fact for fact, tail in tails if tail and f"/{tail}" in lowered), None)


def model_roles(models: Mapping[str, Sequence[str]]) -> list[str]:
    """The roles that name a model, without hashes and without what else is on record about one: "caption prompt"."""
    return [
        role for role in models if not role.endswith(" sha256") and role.partition(" ")[0] not in {*models} - {role}
    ]


def details(models: Mapping[str, Sequence[str]], role: str) -> dict[str, Sequence[str]]:
    """What else is on record about a role's model, by what it is: its prompt, for example."""
    return {
        name.removeprefix(f"{role} "): values
        for name, values in models.items()
        if name.startswith(f"{role} ") and not name.endswith(" sha256")
    }


def is_research_only(models: Mapping[str, Sequence[str]]) -> bool:
    """Whether the real DWPose is among the models, by role, of a description."""
    facts = [model_fact(name) for names in models.values() for name in names]
    return any(fact and fact.prefix == "yzd-v/DWPose" for fact in facts)
