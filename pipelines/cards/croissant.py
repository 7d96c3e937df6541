"""Croissant metadata (https://docs.mlcommons.org/croissant, 1.0) with the fields of its RAI extension.

Each shard is a file object with its sha256, each kind of member a file set in the shards. The record set `clips` reads
the manifest. None reads the members: `mlcroissant` 1.1 takes a tar that ends in an `.npz` for a zip file and finds
nothing in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.cards.facts import RESEARCH_ONLY, is_research_only, model_roles
from pipelines.cards.rights import HUB_LICENCES, Rights

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""As the specification gives it."""

COLUMNS = (
    ("key", "sc:Text", "stable name of the clip"),
    ("source", "sc:Text", "URI of the source video"),
    ("source_sha256", "sc:Text", "hash of the source's content"),
    ("start", "sc:Float", "seconds from the source's first frame"),
    ("end", "sc:Float", "seconds from the source's first frame"),
    ("fps", "sc:Float", "constant frame rate"),
    ("frames", "sc:Integer", "number of frames"),
    ("width", "sc:Integer", "pixels"),
    ("height", "sc:Integer", "pixels"),
    ("reason", "sc:Text", "why the clip was refused; empty where it was kept"),
    ("caption", "sc:Text", "what a model or a person says of it"),
    ("licence", "sc:Text", "as the list of sources states it"),
    ("consent", "sc:Text", "as the list of sources states it"),
    ("shard", "sc:Text", "file that holds the sample"),
    ("offset", "sc:Integer", "byte at which the sample begins; -1 in no shard"),
)
MANIFEST = "manifest.parquet"
MEMBERS = (
    ("mp4", "video/mp4", "the clip: H.264, constant frame rate"),
    ("pose.npz", "application/octet-stream", "whole-body poses, numpy arrays"),
    ("mask.npz", "application/octet-stream", "person masks, numpy arrays"),
    ("txt", "text/plain", "the caption"),
    ("json", "application/json", "source, times, scores, models, licence and consent"),
)


def croissant(name: str, description: Mapping[str, Any], rights: Rights) -> dict[str, Any]:
    """The content of `croissant.json`."""
    manifest = description.get("files", {}).get(MANIFEST, {})
    shards = [_shard(shard) for shard in description["shards"]]
    objects = [*shards, *([_manifest(manifest)] if manifest.get("sha256") else [])]
    content = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": _words(description, rights),
        "license": _licence(rights),
        "version": f"{description['schema_version']}.0.0",
        "keywords": ["human motion", "video", "pose", "segmentation", "captions"],
        "isLiveDataset": False,
        **_responsible(description, rights),
        "distribution": [*objects, *(_members(shards) if shards else [])],
    }
    return {**content, "recordSet": [_clips()]} if manifest.get("sha256") else content


def _words(description: Mapping[str, Any], rights: Rights) -> str:
    counts, seconds = description["counts"], description["seconds"]
    return (
        f"{counts['kept']} clips ({seconds['kept'] / 3600:.2f} h) of people moving from {rights.sources} sources, "
        f"with whole-body poses, person masks and captions, in WebDataset shards."
    )


def _licence(rights: Rights) -> list[str]:
    """A URL of the Creative Commons where all clips stand under one of its licences, else the words of the sources."""
    known = rights.hub_licence
    if known.startswith("cc-by") and known in HUB_LICENCES:
        kind, version = known.removeprefix("cc-").rsplit("-", 1)
        return [f"https://creativecommons.org/licenses/{kind}/{version}/"]
    return [known] if known != "other" else list(rights.licences) or ["not stated"]


def _responsible(description: Mapping[str, Any], rights: Rights) -> dict[str, Any]:
    """Provenance and the RAI extension's fields."""
    consents = "; ".join(f"{consent}: {clips} clips" for consent, (clips, _) in rights.consents.items())
    licences = "; ".join(f"{licence}: {clips} clips" for licence, (clips, _) in rights.licences.items())
    models = sorted({name for role in model_roles(description["models"]) for name in description["models"][role]})
    stages = ", ".join(dict.fromkeys(entry["stage"] for entry in description.get("stages", ())))
    said = {
        "rai:dataCollection": f"Given source videos were split at cuts and filtered. Licences stated: {licences}.",
        "rai:dataCollectionType": ["Secondary Data Analysis"],
        "rai:dataPreprocessingProtocol": [
            f"Recipe {description['recipe']}" + (f", stages {stages}" if stages else ""),
            "Clips are cut at a constant frame rate, upright, H.264.",
        ],
        "rai:dataAnnotationProtocol": "Poses, masks and captions come from models; filters judged them.",
        "rai:machineAnnotationTools": models,
        "rai:personalSensitiveInformation": [f"Clips show identifiable people. Consent as stated: {consents}."],
        "rai:dataLimitations": [RESEARCH_ONLY] if is_research_only(description["models"]) else [],
        "rai:dataBiases": ["Filters favour people seen whole, near and alone; representation was not measured."],
        "rai:dataUseCases": ["Training and evaluating models that animate people."],
        "rai:dataReleaseMaintenancePlan": "Sources are taken out on request: shards are rewritten without them and a "
        "tombstone keeps them out.",
    }
    return {name: value for name, value in said.items() if value}


def _shard(shard: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        "@type": "cr:FileObject",
        "@id": shard["name"],
        "name": shard["name"],
        "contentUrl": f"shards/{shard['name']}",
        "contentSize": f"{shard['bytes']} B",
        "encodingFormat": "application/x-tar",
        "sha256": shard["sha256"],
    }
    return {**found, "md5": shard["md5"]} if shard.get("md5") else found


def _manifest(file: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": MANIFEST,
        "name": MANIFEST,
        "description": "one row per clip found, kept or refused",
        "contentUrl": MANIFEST,
        "encodingFormat": "application/x-parquet",
        "sha256": file["sha256"],
    }


def _members(shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "@type": "cr:FileSet",
            "@id": f"*.{extension}",
            "name": extension,
            "description": words,
            "containedIn": [{"@id": shard["@id"]} for shard in shards],
            "encodingFormat": kind,
            "includes": f"*.{extension}",
        }
        for extension, kind, words in MEMBERS
    ]


def _clips() -> dict[str, Any]:
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"clips/{name}",
            "name": name,
            "description": words,
            "dataType": kind,
            "source": {"fileObject": {"@id": MANIFEST}, "extract": {"column": name}},
        }
        for name, kind, words in COLUMNS
    ]
    return {
        "@type": "cr:RecordSet",
        "@id": "clips",
        "name": "clips",
        "description": "every clip found, kept or refused",
        "key": {"@id": "clips/key"},
        "field": fields,
    }
