"""What the parts of a service share: one database, one data folder. Each process opens its own."""

from __future__ import annotations

from dataclasses import dataclass

from serving.config import Service
from serving.jobs.database import open_database
from serving.jobs.presence import Presence
from serving.jobs.store import JobStore
from serving.results.blobs import Blobs
from serving.results.uploads import Uploads
from serving.rollout.registry import followed_name
from serving.rollout.store import Rollouts
from serving.tenants.keyring import Keyring, RunningCap


@dataclass(frozen=True)
class Backend:
    """The durable half of a service."""

    service: Service
    blobs: Blobs
    store: JobStore
    uploads: Uploads
    presence: Presence
    rollouts: Rollouts | None = None
    """Where the model is an alias of the registry that is followed."""


def open_backend(service: Service) -> Backend:
    """Opens, or makes, a service's data folder and tables; ConfigError where that cannot be."""
    blobs = Blobs(service.data_folder, service.storage)
    engine = open_database(service.database_url)
    cap = RunningCap(Keyring(engine, quotas=service.quotas))
    name = followed_name(service.model, follow=service.canary.follow)
    rollouts = Rollouts(engine, name) if name else None
    gpus = service.gpus_per_engine or 1.0  # on the CPU an engine's seconds count as they are
    store = JobStore(engine, cap=cap, gpus=gpus)
    if rollouts:
        store.pin = rollouts.pin
    return Backend(service, blobs, store, Uploads(engine, blobs), Presence(engine), rollouts)
