"""Files that clients sent ahead (POST /v1/files), to be named by id in later jobs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, delete, insert, select

from serving.jobs.database import files
from serving.results.blobs import Blobs, is_id, new_id
from serving.tenants.admission import admit_file
from serving.tenants.tenant import LOCAL, Tenant


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
    tenant: str


class Uploads:
    """The files table and its bytes."""

    def __init__(self, engine: Engine, blobs: Blobs):
        self.engine = engine
        self.blobs = blobs

    def add(
        self, received: Path, *, filename: str, purpose: str, sha256: str, tenant: Tenant = LOCAL
    ) -> Upload:  # fmt: skip
        """Keeps a received file under a fresh id: bytes first, then the row that makes it exist.

        QuotaError where the tenant's storage does not suffice.
        """
        file_id, size, now = new_id("file"), received.stat().st_size, time.time()
        with self.engine.begin() as connection:
            admit_file(connection, tenant, added_bytes=size, now=now)
        self.blobs.keep_file(file_id, received)
        row = {"id": file_id, "filename": filename[:512], "purpose": purpose, "bytes": size, "sha256": sha256,
               "created_at": now, "tenant": tenant.id}  # fmt: skip
        with self.engine.begin() as connection:
            # Once more: others of the same tenant may have sent theirs meanwhile.
            admit_file(connection, tenant, added_bytes=size, now=now)
            connection.execute(insert(files).values(row))
        upload = self.get(file_id)
        assert upload is not None
        return upload

    def get(self, file_id: str, tenant: str | None = None) -> Upload | None:
        """One file; with a tenant only where it is his."""
        if not is_id(file_id, "file"):
            return None
        query = select(files).where(files.c.id == file_id, *_of(tenant))
        with self.engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        return Upload(**row) if row else None

    def page(
        self, *, after: str | None, limit: int, descending: bool, purpose: str | None, tenant: str | None = None
    ) -> tuple[list[Upload], bool]:
        """Up to `limit` files beyond the cursor, and whether there are more. KeyError where the cursor is unknown."""
        query = select(files).order_by(files.c.place.desc() if descending else files.c.place).limit(limit + 1)
        query = query.where(*_of(tenant))
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        with self.engine.connect() as connection:
            if after is not None:
                place = connection.execute(select(files.c.place).where(files.c.id == after, *_of(tenant))).scalar()
                if place is None:
                    raise KeyError(after)
                query = query.where(files.c.place < place if descending else files.c.place > place)
            rows = connection.execute(query).mappings().all()
        return [Upload(**row) for row in rows[:limit]], len(rows) > limit

    def ids(self) -> list[str]:
        with self.engine.connect() as connection:
            return list(connection.execute(select(files.c.id)).scalars())

    def delete(self, file_id: str) -> bool:
        """Forgets a file and removes its bytes; jobs made from it keep their own link."""
        if not is_id(file_id, "file"):
            return False
        # The bytes first: where their storage is away, the file is still there to be deleted again.
        self.blobs.drop_file(file_id)
        with self.engine.begin() as connection:
            return connection.execute(delete(files).where(files.c.id == file_id)).rowcount == 1


def _of(tenant: str | None) -> list[Any]:
    return [] if tenant is None else [files.c.tenant == tenant]
