"""Files that clients sent ahead (POST /v1/files), to be named by id in later jobs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine, delete, insert, select

from serving.blobs import Blobs, is_id, new_id
from serving.database import files


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One stored file. `filename` is what its sender called it: shown, never used as a path."""

    id: str
    place: int
    filename: str
    purpose: str
    bytes: int
    sha256: str
    created_at: float


class Uploads:
    """The files table and its bytes."""

    def __init__(self, engine: Engine, blobs: Blobs):
        self.engine = engine
        self.blobs = blobs

    def add(self, received: Path, *, filename: str, purpose: str, sha256: str) -> Upload:
        """Keeps a received file under a fresh id: bytes first, then the row that makes it exist."""
        file_id = new_id("file")
        target = self.blobs.file(file_id)
        received.replace(target)
        row = {"id": file_id, "filename": filename[:512], "purpose": purpose, "bytes": target.stat().st_size,
               "sha256": sha256, "created_at": time.time()}  # fmt: skip
        with self.engine.begin() as connection:
            connection.execute(insert(files).values(row))
        upload = self.get(file_id)
        assert upload is not None
        return upload

    def get(self, file_id: str) -> Upload | None:
        if not is_id(file_id, "file"):
            return None
        with self.engine.connect() as connection:
            row = connection.execute(select(files).where(files.c.id == file_id)).mappings().first()
        return Upload(**row) if row else None

    def page(
        self, *, after: str | None, limit: int, descending: bool, purpose: str | None
    ) -> tuple[list[Upload], bool]:
        """Up to `limit` files beyond the cursor, and whether there are more. KeyError where the cursor is unknown."""
        query = select(files).order_by(files.c.place.desc() if descending else files.c.place).limit(limit + 1)
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        with self.engine.connect() as connection:
            if after is not None:
                place = connection.execute(select(files.c.place).where(files.c.id == after)).scalar()
                if place is None:
                    raise KeyError(after)
                query = query.where(files.c.place < place if descending else files.c.place > place)
            rows = connection.execute(query).mappings().all()
        return [Upload(**row) for row in rows[:limit]], len(rows) > limit

    def delete(self, file_id: str) -> bool:
        """Forgets a file and removes its bytes; jobs made from it keep their own link."""
        if not is_id(file_id, "file"):
            return False
        with self.engine.begin() as connection:
            found = connection.execute(delete(files).where(files.c.id == file_id)).rowcount == 1
        if found:
            self.blobs.file(file_id).unlink(missing_ok=True)
        return found
