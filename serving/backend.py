"""What the parts of a service share: one database, one data folder. Each process opens its own."""

from __future__ import annotations

from dataclasses import dataclass

from serving.blobs import Blobs
from serving.config import Service
from serving.database import open_database
from serving.presence import Presence
from serving.store import JobStore
from serving.uploads import Uploads


@dataclass(frozen=True)
class Backend:
    """The durable half of a service."""

    service: Service
    blobs: Blobs
    store: JobStore
    uploads: Uploads
    presence: Presence


def open_backend(service: Service) -> Backend:
    """Opens, or makes, a service's data folder and tables; ConfigError where that cannot be."""
    blobs = Blobs(service.data_folder)
    engine = open_database(service.database_url)
    return Backend(service, blobs, JobStore(engine), Uploads(engine, blobs), Presence(engine))
