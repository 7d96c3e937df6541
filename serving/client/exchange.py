"""What both clients share: requests, answers, events, and when to try again. No input and no output happens here."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from dynamictrl.errors import DynamiCtrlError

Medium = str | Path
"""A file on this machine, or as text: a path, an id of a file sent ahead (`file_...`), an http(s) or data URL."""

KEY_VARIABLE = "DYNAMICTRL_API_KEY"
TRIES = 5
"""Times that a request is sent at most: where it is safe to send it again, and the service may answer yet."""
CONNECT_S, READ_S = 10.0, 60.0
"""Seconds: for a connection, and for the next bytes of an answer (an event stream speaks every 15)."""
FINAL = ("completed", "failed", "cancelled")
MEDIA = ("input_reference", "driving_video", "pose_video", "mask")


class ApiError(DynamiCtrlError):
    """The service refused, or could not; `status` is HTTP's, 0 where there was no answer."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None, request_id: str = ""):
        super().__init__(message, code=code, param=param)
        self.status = status
        self.request_id = request_id


class JobFailedError(DynamiCtrlError):
    """The job came to no clip; `code` says why, or that it was cancelled."""

    def __init__(self, job: Job):
        super().__init__(f"{job.id} {job.status}: {job.error_message or 'no clip'}", code=job.error_code or job.status)
        self.job = job


class JobTimeoutError(DynamiCtrlError):
    """The job did not end in time; it was told to stop."""


@dataclass(frozen=True)
class Job:
    """A job as the service showed it last; `raw` has every field."""

    id: str
    status: str
    stage: str
    progress: int
    queue_position: int | None
    eta_s: float | None
    size: str
    seconds: str
    num_frames: int
    seed: int
    error_code: str | None
    error_message: str | None
    raw: dict[str, Any] = field(repr=False, compare=False)

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Job:
        error = raw.get("error") or {}
        return cls(
            id=raw["id"], status=raw["status"], stage=raw["stage"], progress=raw["progress"],
            queue_position=raw["queue_position"], eta_s=raw["eta_s"], size=raw["size"], seconds=raw["seconds"],
            num_frames=raw["num_frames"], seed=raw["seed"], error_code=error.get("code"),
            error_message=error.get("message"), raw=raw
        )  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One request."""

    method: str
    path: str
    json: dict[str, Any] | None = None
    params: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    repeatable: bool = True
    """Whether sending it twice is as good as once."""


def options(url: str, api_key: str | None, transport: Any) -> dict[str, Any]:  # noqa: ANN401 - httpx's, of two kinds
    """Arguments of either httpx client."""
    key = api_key if api_key is not None else os.environ.get(KEY_VARIABLE, "")
    base = url.rstrip("/").removesuffix("/v1")
    if httpx.URL(base).scheme not in ("http", "https"):
        raise ApiError(0, "bad_url", f"the service's URL is {url!r}; give one such as http://127.0.0.1:8000", "url")
    return {
        "base_url": base,
        "headers": {"authorization": f"Bearer {key}"} if key else {},
        "timeout": httpx.Timeout(READ_S, connect=CONNECT_S),
        "transport": transport,
    }


def create(fields: Mapping[str, Any], media: Mapping[str, str | None], idempotency_key: str) -> Call:
    """POST /v1/videos, with media that the service has or fetches."""
    return Call(
        "POST", "/v1/videos", json=_given(fields, media), headers={"idempotency-key": idempotency_key}
    )  # fmt: skip


def preflight(fields: Mapping[str, Any], media: Mapping[str, str | None]) -> Call:
    return Call("POST", "/v1/videos/preflight", json=_given(fields, media))


def _given(fields: Mapping[str, Any], media: Mapping[str, str | None]) -> dict[str, Any]:
    return {name: value for name, value in {**fields, **media}.items() if value is not None}


def place_of(medium: Medium) -> Path | str:
    """The file on this machine that a medium is, or the text by which the service knows it."""
    if isinstance(medium, str) and medium.startswith(("http://", "https://", "data:", "file_")):
        return medium
    path = Path(medium)
    if not path.is_file():
        raise ApiError(0, "not_found", f"{medium}: there is no such file", None)
    return path


def checked(response: httpx.Response) -> httpx.Response:
    """The answer, or ApiError with the service's own code and words; its body must have been read."""
    if response.is_success:
        return response
    try:
        error = response.json()["error"]
        code, message, param = str(error["code"]), str(error["message"]), error.get("param")
    except (ValueError, KeyError, TypeError):
        code, message, param = "bad_answer", f"{response.request.url} answered {response.status_code}", None
    raise ApiError(response.status_code, code, message, param, response.headers.get("x-request-id", ""))


def unreachable(call: Call, problem: httpx.HTTPError) -> ApiError:
    return ApiError(0, "unreachable", f"{call.path}: the service did not answer ({type(problem).__name__}: {problem})")


def pause(attempt: int, call: Call, answer: httpx.Response | None) -> float | None:
    """Seconds after which to send it again; None where that is no use, or not safe."""
    if attempt + 1 >= TRIES:
        return None
    if answer is None:
        return _backoff(attempt) if call.repeatable else None
    if answer.headers.get("x-should-retry") == "false" or answer.status_code not in (408, 429, 500, 502, 503, 504):
        return None
    if answer.status_code == 500 and not call.repeatable:
        return None
    stated = answer.headers.get("retry-after", "")
    return min(60.0, float(stated)) if stated.replace(".", "", 1).isdigit() else _backoff(attempt)


def _backoff(attempt: int) -> float:
    return min(8.0, 0.25 * 2**attempt) * random.uniform(0.75, 1.25)


class EventReader:
    """Server-sent events, line by line."""

    def __init__(self):
        self.last_id = ""
        self._data: list[str] = []

    def feed(self, line: str) -> dict[str, Any] | None:
        """The data of an event that this line ends."""
        if line.startswith("data:"):
            self._data.append(line[5:].strip())
        elif line.startswith("id:"):
            self.last_id = line[3:].strip()
        elif not line and self._data:
            text, self._data = "\n".join(self._data), []
            return json.loads(text)
        return None

    @property
    def headers(self) -> dict[str, str]:
        """Where to go on after a lost connection."""
        return {"last-event-id": self.last_id} if self.last_id else {}
