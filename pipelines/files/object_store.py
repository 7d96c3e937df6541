"""The connection to an object store: which endpoint, region and credentials an `s3://` or `gs://` URI means."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from dynamictrl.errors import ConfigError

if TYPE_CHECKING:
    from pyarrow import fs

S3_OPTIONS = ("endpoint_override", "scheme", "region")
"""What may follow the `?` of an s3 URI."""


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of an object store's URI and the path in it; one connection per process and endpoint."""
    from pyarrow import fs

    parts = urlsplit(uri)
    if parts.scheme.lower() != "s3":
        return fs.FileSystem.from_uri(uri)
    if "@" in parts.netloc:
        raise ConfigError(
            f"s3://...@{parts.netloc.split('@')[-1]}{parts.path} holds credentials, which would end in logs and "
            f"descriptions; give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment",
            code="credentials_in_uri",
        )
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    unknown = sorted(options.keys() - set(S3_OPTIONS))
    if unknown:
        raise ConfigError(f"an s3 URI has no option {unknown[0]!r}; there are {', '.join(S3_OPTIONS)}")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if endpoint and "endpoint_override" not in options:
        scheme, _, host = endpoint.rpartition("://")
        options = {"scheme": scheme or "https", **options, "endpoint_override": host.rstrip("/")}
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    system = _s3(options.get("endpoint_override", ""), options.get("scheme", "https"), region, parts.netloc)
    return system, f"{parts.netloc}{parts.path}".rstrip("/")


@lru_cache(maxsize=16)
def _s3(endpoint: str, scheme: str, region: str, bucket: str) -> fs.FileSystem:
    from pyarrow import fs

    if not region:
        # Another maker's store takes any region; the cloud's own must be asked where the bucket is.
        region = "us-east-1" if endpoint else fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        endpoint_override=endpoint or None,
        scheme=scheme,
        region=region,
        connect_timeout=10,
        request_timeout=120,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=4),
    )
