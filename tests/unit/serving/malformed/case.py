"""One request that must be refused, and how."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ANY = "any"
Part = tuple[str, bytes] | tuple[str, bytes, str]


@dataclass(frozen=True)
class Good:
    """Media and ids that are all right, for what a case does not spoil."""

    person: bytes
    pose: bytes
    file_id: str
    """Of the pose video, sent ahead."""

    def files(self, **instead: Part | None) -> dict[str, Part]:
        """The parts of a good job, some of them replaced, or left out where None."""
        parts: dict[str, Part | None] = {"input_reference": ("p.png", self.person), "pose_video": ("m.mp4", self.pose)}
        return {name: part for name, part in {**parts, **instead}.items() if part is not None}

    def fields(self, **more: object) -> dict[str, Any]:
        return {"prompt": "p", **more}


@dataclass(frozen=True)
class Case:
    """A request as httpx takes it, and the refusal."""

    kind: str
    """The class it belongs to in the table of docs/benchmarks.md."""
    name: str
    code: str | frozenset[str]
    """The refusal's code, or those that would be as true: which of them a decoder finds first is its own affair."""
    param: str | None
    """`ANY` where it is the path that says what is meant."""
    build: Callable[[Good], Mapping[str, Any]] = field(repr=False)
    """Keyword arguments of `httpx.Client.request`; method and url are POST /v1/videos unless it says otherwise."""

    def is_met_by(self, status: int, code: str | None, param: str | None) -> bool:
        codes = self.code if isinstance(self.code, frozenset) else {self.code}
        return 400 <= status < 500 and code in codes and self.param in (ANY, param)

    def request(self, good: Good) -> dict[str, Any]:
        return {"method": "POST", "url": "/v1/videos", **self.build(good)}


def medium(
    kind: str, name: str, code: str | frozenset[str], data: bytes, param: str = "driving_video", filename: str = "a"
) -> Case:
    """A spoilt file in a request that is good otherwise."""
    instead: dict[str, Part | None] = {param: (filename, data)}
    if param == "driving_video":
        instead["pose_video"] = None
    return Case(kind, name, code, param, lambda good: {"data": good.fields(), "files": good.files(**instead)})


def with_fields(kind: str, name: str, code: str | frozenset[str], param: str | None, **fields: object) -> Case:
    """Plain values that cannot be, beside good media."""
    return Case(kind, name, code, param, lambda good: {"data": good.fields(**fields), "files": good.files()})


def with_json(kind: str, name: str, code: str | frozenset[str], param: str | None, **fields: object) -> Case:
    """A JSON body; media are data URLs of the good ones unless `fields` names them."""

    def build(good: Good) -> Mapping[str, Any]:
        media = {"input_reference": data_url(good.person, "image/png"), "pose_video": {"file_id": good.file_id}}
        if "driving_video" in fields:
            del media["pose_video"]
        # In ASCII, so that half a surrogate can travel.
        body = json.dumps({"prompt": "p", **media, **fields}).encode()
        return {"content": body, "headers": {"content-type": "application/json"}}

    return Case(kind, name, code, param, build)


def raw(
    kind: str, name: str, code: str | frozenset[str], content_type: str | None, body: bytes, param: str | None = None
) -> Case:
    """A body of any bytes."""
    headers = {"content-type": content_type} if content_type is not None else {}
    return Case(kind, name, code, param, lambda _: {"content": body, "headers": headers})


def data_url(data: bytes, kind: str = "") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def cut(data: bytes, *shares: float) -> Sequence[bytes]:
    """The beginnings of a file."""
    return [data[: max(1, int(len(data) * share))] for share in shares]
