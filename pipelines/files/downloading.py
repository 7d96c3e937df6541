"""Remote sources brought to this machine, with limits and finite patience, and dead stores told from dead files.

What goes wrong with one source is a MediaError with one of these codes:

| code | meaning |
|---|---|
| not_found | the store says that there is no such object |
| forbidden | the store says that these credentials may not read it |
| too_large | more bytes than the limit |
| too_slow | not complete within the time limit |
| unreachable | no usable answer, however often it was tried |
"""

from __future__ import annotations

import errno
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from dynamictrl.errors import DynamiCtrlError, MediaError, StoreError
from pipelines.files import storage

logger = logging.getLogger(__name__)

GIB = 2**30


@dataclass
class Downloads:
    """Fetches one remote source after another and remembers which stores have fallen silent."""

    largest_gib: float
    seconds: float
    """That one download may take."""
    attempts: int
    wait: float
    """Seconds before the second attempt; four times as long before each further one."""
    most_silent: int
    """Sources of one store in a row that may be unreachable before the store is taken for dead."""
    _silent: Counter[str] = field(default_factory=Counter)

    def fetch(self, uri: str, path: Path) -> None:
        """Writes the object to `path`, whole or not at all.

        Raises MediaError (table above), and StoreError (`store_unreachable`) where the store, and not the source, is
        at fault.
        """
        store = store_of(uri)
        try:
            self._persist(uri, path)
        except MediaError as problem:
            self._silent[store] = self._silent[store] + 1 if problem.code == "unreachable" else 0
            if self._silent[store] >= self.most_silent:
                raise StoreError(
                    f"{self._silent[store]} sources of {store} in a row could not be reached; the last: {problem}. "
                    f"The run stops instead of quarantining the rest. When the store answers again, the same command "
                    f"goes on, and `quarantine retry` takes up those that were given up before.",
                    code="store_unreachable",
                ) from problem
            raise
        self._silent[store] = 0

    def _persist(self, uri: str, path: Path) -> None:
        for attempt in range(1, self.attempts + 1):
            try:
                return self._copy(uri, path)
            except MediaError as problem:
                if problem.code != "unreachable" or attempt == self.attempts:
                    raise
                logger.warning("%s (attempt %d of %d)", problem, attempt, self.attempts)
                time.sleep(self.wait * 4 ** (attempt - 1))
        raise AssertionError("there is at least one attempt")

    def _copy(self, uri: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        try:
            with storage.open_remote(uri) as source, part.open("wb") as target:
                stated, written, deadline = _stated_size(source), 0, time.monotonic() + self.seconds
                self._check_size(uri, stated)
                while chunk := source.read(storage.CHUNK):
                    written += len(chunk)
                    self._check_size(uri, written)
                    target.write(chunk)
                    if time.monotonic() > deadline:
                        raise _error(uri, "too_slow", f"took longer than {self.seconds:g} s (--fetch.seconds)")
            if written < stated:
                raise _error(uri, "unreachable", f"broke off after {written} of {stated} bytes")
            part.replace(path)
        except DynamiCtrlError:
            raise
        except Exception as problem:
            if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _classified(uri, problem) from problem
        finally:
            part.unlink(missing_ok=True)

    def _check_size(self, uri: str, size: int) -> None:
        if size > self.largest_gib * GIB:
            raise _error(
                uri, "too_large", f"is {size / GIB:.3g} GiB or more; at most {self.largest_gib:g} (--fetch.largest-gib)"
            )


def store_of(uri: str) -> str:
    """The part of a URI that fails as a whole: a server, or a bucket."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}"


def _stated_size(source: object) -> int:
    """Bytes that the other side has announced; 0 where it has not."""
    size = getattr(source, "size", None)
    return size if isinstance(size, int) else 0


def _classified(uri: str, problem: BaseException) -> MediaError:
    # fsspec says FileNotFoundError of all that a web server does; what it did is the cause behind that.
    root = problem
    while isinstance(root, FileNotFoundError) and (root.__cause__ or root.__context__):
        root = root.__cause__ or root.__context__ or root
    status, text = getattr(root, "status", 0), f"{type(root).__name__}: {str(root)[:200]}"
    if isinstance(root, FileNotFoundError) or status in (404, 410):
        return _error(uri, "not_found", f"is not there ({text})")
    if isinstance(root, PermissionError) or status in (401, 403) or "ACCESS_DENIED" in text:
        return _error(uri, "forbidden", f"may not be read with the credentials of this environment ({text})")
    return _error(uri, "unreachable", f"cannot be downloaded ({text})")


def _error(uri: str, code: str, message: str) -> MediaError:
    return MediaError(f"{uri}: {message}", code=code)
