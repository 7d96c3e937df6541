"""Fetches a medium that a client names by URL, into a file of ours, within bounds.

| code | the medium |
|---|---|
| url_redirects | is behind more redirects than are followed, or one without a place |
| url_status | is not there: the server answered otherwise than 200 |
| url_encoded | comes compressed, although asked for as it is |
| too_large | has more bytes than are taken |
| empty_file | has none |
and those of `safe_connect`.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import httpcore
import httpx

from dynamictrl.errors import InputError
from serving.media.safe_connect import Reach, call

MOST_REDIRECTS = 3
_AGENT = ("User-Agent", "DynamiCtrl-fetch/1")


@dataclass(frozen=True)
class Fetcher:
    """The bounds of every fetch."""

    reach: Reach
    media_bytes: int
    seconds: float
    """For the whole of it, redirects and the last byte included."""
    idle_s: float = 10.0

    def fetch(self, url: str, target: Path) -> str:
        """Writes the medium to `target` and returns its sha256; InputError with a code, and then no file stays."""
        deadline = time.monotonic() + self.seconds
        try:
            for _ in range(MOST_REDIRECTS + 1):
                left = deadline - time.monotonic()
                with call(url, self.reach, headers=[_AGENT], seconds=left, idle_s=self.idle_s) as answer:
                    onwards = _redirect(url, answer)
                    if onwards is None:
                        return self._keep(answer, target)
                url = onwards
            raise InputError(f"the URL leads through more than {MOST_REDIRECTS} redirects", code="url_redirects")
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def _keep(self, answer: httpcore.Response, target: Path) -> str:
        headers = httpx.Headers(answer.headers)
        if answer.status != 200:
            raise InputError(f"the URL answered with status {answer.status}", code="url_status")
        if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise InputError("the URL answered with compressed bytes, unasked; serve the file as it is",
                             code="url_encoded")  # fmt: skip
        stated = headers.get("content-length", "")
        if stated.isdigit() and int(stated[:20]) > self.media_bytes:
            raise self._too_large()
        size, digest = 0, hashlib.sha256()
        with target.open("wb") as out:
            for chunk in answer.iter_stream():
                size += len(chunk)
                if size > self.media_bytes:
                    raise self._too_large()
                digest.update(chunk)
                out.write(chunk)
        if size == 0:
            raise InputError("the URL has no bytes", code="empty_file")
        return digest.hexdigest()

    def _too_large(self) -> InputError:
        return InputError(f"the URL has more than {self.media_bytes} bytes, the most that are taken", code="too_large")


def _redirect(url: str, answer: httpcore.Response) -> str | None:
    """Where an answer sends us, None where it is the medium itself."""
    if answer.status not in (301, 302, 303, 307, 308):
        return None
    place = httpx.Headers(answer.headers).get("location", "")
    try:
        onwards = str(httpx.URL(url).join(place))
    except (httpx.InvalidURL, ValueError):
        onwards = ""
    if not place or not onwards:
        raise InputError("the URL is a redirect to nowhere", code="url_redirects")
    return onwards
