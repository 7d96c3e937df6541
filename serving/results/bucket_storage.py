"""Storage in a bucket: S3 (also MinIO, R2, Ceph and the like), Google Cloud Storage, Azure, through `obstore`.

Credentials, region and endpoint come from the environment as each vendor's own tools read them, such as AWS_PROFILE's
keys in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from dynamictrl.errors import ConfigError
from serving.results.storage import CHUNK, Stored, away

RETRIES = 6
RETRY_S = 20.0
"""A request that fails by the network or a 5xx is tried again so often, and so many seconds at most."""
REQUEST_S = 300.0
"""Seconds that one request, its body included, may take."""

_Answer = TypeVar("_Answer")


class BucketStorage:
    """Objects under a prefix of one bucket."""

    is_local = False

    def __init__(self, url: str):
        """Opens the bucket, without a request; ConfigError where the URL or the environment is no good."""
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        client: dict[str, Any] = {
            "timeout": timedelta(seconds=REQUEST_S),
            "connect_timeout": timedelta(seconds=5),
            "allow_http": endpoint.startswith("http://"),
        }
        retry: dict[str, Any] = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_S)}
        try:
            self._store: Any = from_url(url, client_options=client, retry_config=retry)  # type: ignore[arg-type]
        except (BaseError, ValueError) as problem:
            raise ConfigError(
                f"the storage {url!r} cannot be opened ({_first_line(problem)}); give s3://BUCKET/PREFIX, "
                "gs://BUCKET/PREFIX or az://CONTAINER/PREFIX, and its credentials in the environment",
                code="storage",
                param="storage",
            ) from problem

    def adopt(self, source: Path, key: str, *, content_type: str = "") -> None:
        # Whoever holds a presigned URL may look at it; no cache on the way may keep it.
        attributes = {"Cache-Control": "private, no-store", "Content-Type": content_type or "application/octet-stream"}
        self._ask(lambda: obstore.put(self._store, key, source, attributes=attributes))  # type: ignore[arg-type]

    def copy(self, key: str, to: str) -> None:
        self._ask(lambda: obstore.copy(self._store, key, to))

    def fetch(self, key: str, target: Path) -> None:
        partial = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")

        def download() -> None:
            with partial.open("wb") as out:
                for chunk in obstore.get(self._store, key).stream(min_chunk_size=CHUNK):
                    out.write(chunk)

        try:
            self._ask(download)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def look(self, key: str) -> Stored | None:
        try:
            return _stored(self._ask(lambda: obstore.head(self._store, key)))
        except FileNotFoundError:
            return None

    def read(self, stored: Stored, start: int, end: int) -> Iterator[bytes]:
        # Held to the version that the headers spoke of.
        options: Any = {"range": (start, end), "if_match": stored.etag}
        result = self._ask(lambda: obstore.get(self._store, stored.key, options=options))
        stream = iter(result.stream(min_chunk_size=CHUNK))
        while (chunk := self._ask(lambda: next(stream, None))) is not None:
            yield bytes(chunk)

    def walk(self, prefix: str) -> Iterator[Stored]:
        pages = iter(obstore.list(self._store, prefix.rstrip("/"), chunk_size=1000))
        while (page := self._ask(lambda: next(pages, None))) is not None:
            yield from (_stored(meta) for meta in page)

    def drop(self, keys: Iterable[str]) -> None:
        wanted = list(keys)
        for start in range(0, len(wanted), 1000):
            batch = wanted[start : start + 1000]
            try:
                self._ask(lambda batch=batch: obstore.delete(self._store, batch))
            except FileNotFoundError:
                # Some services complain about one that is gone, and then may have left the rest.
                for key in batch:
                    self._drop_one(key)

    def _drop_one(self, key: str) -> None:
        try:
            self._ask(lambda: obstore.delete(self._store, key))
        except FileNotFoundError:
            return

    def presign(self, method: str, key: str, seconds: float) -> str | None:
        return self._ask(
            lambda: obstore.sign(self._store, method, key, timedelta(seconds=seconds))  # type: ignore[arg-type]
        )

    @staticmethod
    def _ask(request: Callable[[], _Answer]) -> _Answer:
        try:
            return request()
        except FileNotFoundError:
            raise
        except (BaseError, OSError) as problem:
            raise away(f"the bucket does not do as asked: {_first_line(problem)}") from problem


def _stored(meta: Any) -> Stored:  # noqa: ANN401 - a TypedDict of obstore that is not there at run time
    tag = meta["e_tag"] or ""
    tag = tag if tag.startswith('"') else f'"{tag}"'
    return Stored(meta["path"], meta["size"], tag, meta["last_modified"].timestamp())


def _first_line(problem: BaseException) -> str:
    return str(problem).strip().partition("\n")[0][:300]
