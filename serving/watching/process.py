"""What every process of a service does for those who watch it: log lines, spans and numbers under its role's name."""

from __future__ import annotations

from serving.backend import Backend
from serving.config import Service
from serving.watching import logs, tracing
from serving.watching.processes import Publisher


def name_it(service: Service, role: str) -> None:
    """From here on this process's log lines and spans say that it is an ingress, a dispatcher or a worker."""
    tracing.set_up(role)
    logs.set_up(service.log_format, process=role)


def begin(backend: Backend, role: str) -> Publisher:
    """The same, and its numbers are published until the returned one is stopped. The ingress publishes its own."""
    name_it(backend.service, role)
    publisher = Publisher(backend.store.engine, role)
    publisher.start()
    return publisher
