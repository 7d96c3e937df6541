"""The HTTP surface as a document. `serving/openapi.json` is its frozen form: a test refuses what would break a client.

python -m serving openapi > serving/openapi.json      after a change that breaks nobody
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

FROZEN = Path(__file__).with_name("openapi.json")


def document() -> str:
    """The OpenAPI document of the code as it is, as JSON with sorted keys."""
    from dataclasses import replace

    from serving.api import build_api
    from serving.recipes import mini

    with tempfile.TemporaryDirectory() as folder:
        service = replace(mini(), data_folder=Path(folder))
        return json.dumps(build_api(service).openapi(), indent=1, sort_keys=True, ensure_ascii=False)


def breaking_changes(frozen: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What a client of the frozen surface would trip over: routes, parameters, fields gone, or newly required."""
    found = []
    for path, methods in frozen["paths"].items():
        for method, operation in methods.items():
            current = now["paths"].get(path, {}).get(method)
            name = f"{method.upper()} {path}"
            if current is None:
                found.append(f"{name} is gone")
                continue
            found += _parameters(name, operation, current)
            found += _bodies(name, operation, current)
    for name, schema in frozen["components"]["schemas"].items():
        current = now["components"]["schemas"].get(name)
        found += [f"schema {name} is gone"] if current is None else _answer_fields(f"schema {name}", schema, current)
    return found


def _parameters(name: str, frozen: dict[str, Any], now: dict[str, Any]) -> list[str]:
    before = {(p["in"], p["name"]): p for p in frozen.get("parameters", [])}
    after = {(p["in"], p["name"]): p for p in now.get("parameters", [])}
    gone = [f"{name}: parameter {key[1]} is gone" for key in before if key not in after]
    return gone + [
        f"{name}: parameter {key[1]} is newly required"
        for key, parameter in after.items()
        if parameter.get("required") and not before.get(key, {}).get("required")
    ]


def _bodies(name: str, frozen: dict[str, Any], now: dict[str, Any]) -> list[str]:
    before = frozen.get("requestBody", {}).get("content", {})
    after = now.get("requestBody", {}).get("content", {})
    found = []
    for kind, content in before.items():
        if kind not in after:
            found.append(f"{name}: body {kind} is no longer taken")
            continue
        old, new = content["schema"], after[kind]["schema"]
        fields = set(old.get("properties", {})) - set(new.get("properties", {}))
        required = set(new.get("required", [])) - set(old.get("required", []))
        found += [f"{name}: field {field} is no longer taken" for field in sorted(fields)]
        found += [f"{name}: field {field} is newly required" for field in sorted(required)]
    return found


def _answer_fields(name: str, frozen: dict[str, Any], now: dict[str, Any]) -> list[str]:
    before, after = frozen.get("properties", {}), now.get("properties", {})
    found = [f"{name}: field {field} is gone" for field in before if field not in after]
    for field in before.keys() & after.keys():
        kinds = [
            json.dumps({k: v for k, v in p[field].items() if k in _SHAPE}, sort_keys=True) for p in (before, after)
        ]
        if kinds[0] != kinds[1]:
            found.append(f"{name}: field {field} has another type")
    return found


_SHAPE = {"type", "anyOf", "$ref", "items", "format"}
