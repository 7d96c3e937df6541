"""What a client of a frozen OpenAPI document would trip over in a newer one.

What was taken must still be taken, and what was answered must still be answered, so a schema is read in its direction:
a request may grow optional fields, values and room; an answer may grow fields, and its promises may only get stronger.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

Direction = Literal["taken", "answered"]
Schema = dict[str, Any]

_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_UPPER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")


def breaking_changes(frozen: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One sentence for each."""
    found: list[str] = []
    for path, methods in frozen["paths"].items():
        for method, operation in methods.items():
            name = f"{method.upper()} {path}"
            current = now["paths"].get(path, {}).get(method)
            if current is None:
                found.append(f"{name} is gone")
                continue
            compared = _Comparison(frozen, now)
            found += compared.parameters(name, operation, current)
            found += compared.bodies(name, operation, current)
            found += compared.answers(name, operation, current)
    return list(dict.fromkeys(found))


class _Comparison:
    """Two documents, and which pairs of their schemas are being compared already."""

    def __init__(self, frozen: dict[str, Any], now: dict[str, Any]):
        self._frozen, self._now = frozen, now
        self._open: set[tuple[str, str, str]] = set()

    def parameters(self, name: str, frozen: Schema, now: Schema) -> Iterator[str]:
        before = {(p["in"], p["name"]): p for p in frozen.get("parameters", [])}
        after = {(p["in"], p["name"]): p for p in now.get("parameters", [])}
        for key, parameter in before.items():
            if key not in after:
                yield f"{name}: parameter {key[1]} is gone"
            else:
                where = f"{name}: parameter {key[1]}"
                yield from self.schema(where, parameter.get("schema", {}), after[key].get("schema", {}), "taken")
        for key, parameter in after.items():
            if parameter.get("required") and not before.get(key, {}).get("required"):
                yield f"{name}: parameter {key[1]} is newly required"

    def bodies(self, name: str, frozen: Schema, now: Schema) -> Iterator[str]:
        before, after = frozen.get("requestBody", {}), now.get("requestBody", {})
        if after.get("required") and not before.get("required"):
            yield f"{name}: a body is newly required"
        for kind, content in before.get("content", {}).items():
            if kind not in after.get("content", {}):
                yield f"{name}: body {kind} is no longer taken"
            else:
                yield from self.schema(name, content["schema"], after["content"][kind]["schema"], "taken")

    def answers(self, name: str, frozen: Schema, now: Schema) -> Iterator[str]:
        for status, answer in frozen.get("responses", {}).items():
            current = now.get("responses", {}).get(status)
            if current is None:
                yield f"{name}: status {status} is gone"
                continue
            for kind, content in answer.get("content", {}).items():
                if kind not in current.get("content", {}):
                    yield f"{name}: status {status} no longer answers {kind}"
                    continue
                new = current["content"][kind].get("schema", {})
                yield from self.schema(f"{name}: status {status}", content.get("schema", {}), new, "answered")

    def schema(self, where: str, frozen: Schema, now: Schema, direction: Direction) -> Iterator[str]:
        pair = (frozen.get("$ref", ""), now.get("$ref", ""), direction)
        if pair[0] and pair in self._open:
            return
        self._open.add(pair)
        frozen, now = _resolved(frozen, self._frozen), _resolved(now, self._now)
        yield from self._alternatives(where, frozen, now, direction)
        yield from _values(where, frozen, now, direction)
        yield from _bounds(where, frozen, now, direction)
        yield from self._fields(where, frozen, now, direction)
        if "items" in frozen and "items" in now:
            yield from self.schema(f"{where}[]", frozen["items"], now["items"], direction)

    def _alternatives(self, where: str, frozen: Schema, now: Schema, direction: Direction) -> Iterator[str]:
        before, after = _kinds(frozen, self._frozen), _kinds(now, self._now)
        lost, gained = before - after, after - before
        if direction == "taken" and after and (lost or not before):
            yield f"{where} no longer takes {', '.join(sorted(lost)) or 'everything'}"
        if direction == "answered" and before and (gained or not after):
            yield f"{where} may now be {', '.join(sorted(gained)) or 'anything'}"
        # Of an `anyOf`, the object of either side: null and plain values have been compared by their kinds.
        pairs = zip(_objects(frozen, self._frozen), _objects(now, self._now), strict=False)
        for old, new in pairs:
            if old is not frozen:
                yield from self._fields(where, old, new, direction)
                yield from _values(where, old, new, direction)
                yield from _bounds(where, old, new, direction)

    def _fields(self, where: str, frozen: Schema, now: Schema, direction: Direction) -> Iterator[str]:
        before, after = frozen.get("properties", {}), now.get("properties", {})
        required = set(frozen.get("required", [])), set(now.get("required", []))
        for field in before:
            if field not in after:
                yield f"{where}: field {field} is {'no longer taken' if direction == 'taken' else 'gone'}"
            else:
                yield from self.schema(f"{where}: field {field}", before[field], after[field], direction)
        if direction == "taken":
            yield from (f"{where}: field {field} is newly required" for field in sorted(required[1] - required[0]))
        else:
            lost = (required[0] - required[1]) & set(after)
            yield from (f"{where}: field {field} is no longer sure to be there" for field in sorted(lost))


def _resolved(schema: Schema, document: dict[str, Any]) -> Schema:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def _objects(schema: Schema, document: dict[str, Any]) -> list[Schema]:
    """The ways a schema may be meant that are not null."""
    ways = [_resolved(way, document) for way in schema.get("anyOf", schema.get("oneOf", [schema]))]
    return [way for way in ways if way.get("type") != "null"]


def _kinds(schema: Schema, document: dict[str, Any]) -> set[str]:
    """The JSON types that are allowed, a format beside its type; empty means any."""
    found: set[str] = set()
    for way in schema.get("anyOf", schema.get("oneOf", [schema])):
        way = _resolved(way, document)
        types = way.get("type", [])
        form = f" ({way['format']})" if "format" in way else ""
        found |= {f"{kind}{form}" for kind in ([types] if isinstance(types, str) else types)}
    if "number" in found:
        found.add("integer")
    return found


def _values(where: str, frozen: Schema, now: Schema, direction: Direction) -> Iterator[str]:
    before, after = _enum(frozen), _enum(now)
    if direction == "taken" and after is not None:
        if before is None:
            yield f"{where} takes only {sorted(map(str, after))} now"
        else:
            yield from (f"{where} no longer takes {value!r}" for value in sorted(before - after))
    if direction == "answered" and before is not None:
        if after is None:
            yield f"{where} may be anything now, and was one of {sorted(map(str, before))}"
        else:
            yield from (f"{where} may now be {value!r}" for value in sorted(after - before))


def _enum(schema: Schema) -> set[Any] | None:
    if "const" in schema:
        return {schema["const"]}
    return set(schema["enum"]) if "enum" in schema else None


def _bounds(where: str, frozen: Schema, now: Schema, direction: Direction) -> Iterator[str]:
    if direction == "answered":
        return
    for bound in _LOWER:
        if bound in now and now[bound] > frozen.get(bound, float("-inf")):
            yield f"{where}: {bound} is {now[bound]} now"
    for bound in _UPPER:
        if bound in now and now[bound] < frozen.get(bound, float("inf")):
            yield f"{where}: {bound} is {now[bound]} now"
    if now.get("pattern") not in (None, frozen.get("pattern")):
        yield f"{where}: its pattern is {now['pattern']!r} now"
    if now.get("additionalProperties") is False and frozen.get("additionalProperties") is not False:
        yield f"{where} takes no other fields now"
