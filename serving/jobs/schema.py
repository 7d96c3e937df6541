"""Every table of the service on one MetaData: what the migrations must come to."""

from __future__ import annotations

# A room with tables of its own adds its module here; the import registers them.
from serving.jobs import database, estimates, record
from serving.rollout import store as rollout_store
from serving.tenants import tables
from serving.watching import processes
from serving.webhooks import outbox, signing

ROOMS = (database, record, estimates, rollout_store, tables, outbox, signing, processes)
METADATA = database.METADATA
