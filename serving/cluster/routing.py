"""Serve's choice of a replica: any that is free, out of all of them.

The default looks at two replicas drawn by lot and, if both are busy, again after up to half a second: with one request
a replica and most of them busy, a job would wait while another engine idles.
"""

from __future__ import annotations

from typing import Any

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import (
    FIFOMixin,
    PendingRequest,
    ReplicaID,
    ReplicaResult,
    RequestRouter,
    RunningReplica,
)


class AnyFreeReplica(FIFOMixin, RequestRouter):
    """Offers every replica, and tells `seats.SEATS` who is there and who is busy.

    Serve pickles this module's content by value: what is shared with the process has to be imported in the methods.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        return [candidate_replicas]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        from serving.cluster.seats import SEATS

        super().update_replicas(replicas)
        SEATS.opened(self.curr_replicas)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        from serving.cluster.seats import SEATS

        super().on_replica_actor_died(replica_id)
        SEATS.closed(replica_id)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: ReplicaResult) -> None:
        from serving.cluster.seats import SEATS

        request = pending_request.metadata.internal_request_id
        SEATS.taken(request, replica_id)
        # And not in on_request_completed, which a short job's end may reach first.
        result.add_done_callback(lambda _: SEATS.freed(request))


def any_free_replica() -> RequestRouterConfig:
    """For a deployment whose replicas take one request at a time."""
    settings: dict[str, Any] = {
        "request_router_class": "serving.cluster.routing.AnyFreeReplica",
        "max_backoff_s": 0.1,  # seconds between two looks while all are busy
    }
    return RequestRouterConfig(**settings)
