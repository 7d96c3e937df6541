"""Which storage a service's media and clips lie in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from serving.results.local_storage import LocalStorage

if TYPE_CHECKING:
    from serving.results.storage import Storage


def open_storage(url: str, folder: Path) -> Storage:
    """The storage that a service is configured with: `folder` itself where no bucket is named."""
    if not url:
        return LocalStorage(folder)
    from serving.results.bucket_storage import BucketStorage

    return BucketStorage(url)
