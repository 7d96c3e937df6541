"""Keys, rates, admission and the ledger: on SQLite and on a real PostgreSQL, with rivals at the same moment."""

import secrets
import threading
import time
from dataclasses import replace

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DatabaseError

from dynamictrl.errors import ConfigError
from serving.jobs.job import Settings
from serving.jobs.store import JobStore, new_video_id
from serving.tenants import ledger
from serving.tenants.admission import QuotaError, admit_file, admit_job, stored_bytes
from serving.tenants.audit import AuditLog, Entry
from serving.tenants.keyring import KeyCache, Keyring, RunningCap, digest
from serving.tenants.rates import RateLimiter
from serving.tenants.tenant import Quotas, Tenant
from tests.unit.serving.conftest import Clock

NOW = 1_780_000_000.0
SETTINGS = Settings(
    prompt="p", width=64, height=96, num_frames=9, fps=12.0, resample=False, num_inference_steps=3, guidance_scale=3.0,
    seed=1
)  # fmt: skip


def add(store: JobStore, tenant: Tenant, *, estimate: float = 10.0, size: int = 0) -> str:
    video, _ = store.add(
        video_id=new_video_id(), model="m", settings=SETTINGS, inputs={}, content_hash=secrets.token_hex(8),
        tenant=tenant.id, gpu_seconds_estimate=estimate, stored_bytes=size,
        admit=lambda connection, seconds: admit_job(
            connection, tenant, gpu_seconds=seconds, added_bytes=size, now=store.clock()
        ),
    )  # fmt: skip
    return video.id


def at_once(work, count: int) -> list[object]:  # noqa: ANN001
    """What `count` calls of `work` came to, all of them let go at the same moment."""
    start, found = threading.Barrier(count), []

    def one() -> None:
        start.wait()
        try:
            found.append(work())
        except QuotaError as problem:
            found.append(problem)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_key_is_kept_as_a_hash_and_opens_what_its_scopes_say(engine: Engine):
    key, row = Keyring(engine).create("acme", ("videos:read", "files"), note="ci")
    with engine.connect() as connection:
        kept = connection.execute(text("SELECT * FROM api_keys")).mappings().one()
    assert key not in str(dict(kept))
    assert kept["hash"] == digest(key)
    tenant = Keyring(engine).find(key)
    assert tenant is not None
    assert (tenant.id, tenant.key_id) == ("acme", row.id)
    assert tenant.may("files")
    assert not tenant.may("videos:write")
    changed = key[:-1] + ("A" if key[-1] != "A" else "B")
    assert Keyring(engine).find(changed) is None
    assert Keyring(engine).find("") is None


def test_a_revoked_or_expired_key_opens_nothing(engine: Engine):
    clock = Clock(NOW)
    keyring = Keyring(engine, clock=clock)
    revoked, row = keyring.create("acme", ("admin",))
    expiring, _ = keyring.create("acme", ("admin",), expires_at=clock.now + 60)
    assert keyring.revoke(row.id)
    assert not keyring.revoke(row.id)
    assert keyring.find(revoked) is None
    assert keyring.find(expiring) is not None
    clock.now += 61
    assert keyring.find(expiring) is None
    assert {key.id for key in keyring.list("acme") if key.revoked_at} == {row.id}


def test_bad_names_and_scopes_are_refused_before_a_key_is_made(engine: Engine):
    for tenant, scopes in (("Acme Inc", ("files",)), ("local", ("files",)), ("acme", ("root",)), ("acme", ())):
        with pytest.raises(ConfigError):
            Keyring(engine).create(tenant, scopes)
    assert Keyring(engine).list() == []


def test_a_looked_up_key_is_believed_for_two_seconds_at_no_cost(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    keyring = Keyring(engine)
    key, row = keyring.create("acme", ("files",))
    cache = KeyCache(keyring)
    assert cache.find(key) is not None
    assert cache.keys_are_required
    keyring.revoke(row.id)
    assert cache.remembered(key) == (True, cache.find(key))
    now[0] += 2.1
    assert cache.remembered(key) == (False, None)
    assert cache.find(key) is None


def test_configured_hashes_are_keys_of_the_default_tenant_with_every_scope(engine: Engine):
    cache = KeyCache(Keyring(engine), (digest("old key"),))
    tenant = cache.find("old key")
    assert tenant is not None
    assert (tenant.id, tenant.may("admin")) == ("default", True)
    assert cache.find("other") is None


def test_without_any_key_everybody_is_local_until_the_first_is_made(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    cache = KeyCache(Keyring(engine))
    anybody = cache.find("")
    assert anybody is not None
    assert anybody.id == "local"
    Keyring(engine).create("acme", ("files",))
    now[0] += 2.1
    assert cache.find("") is None
    assert cache.keys_are_required


def test_replicas_share_one_bucket_and_a_refused_tenant_costs_the_database_nothing(engine: Engine):
    clock = Clock(NOW)
    tenant = Tenant(id="acme", quotas=Quotas(requests_per_minute=60, burst=20))
    replicas = [RateLimiter(engine, clock=clock) for _ in range(3)]
    answers = [replicas[i % 3].ask(tenant) for i in range(60)]
    granted = sum(answer.is_granted for answer in answers)
    # Never more than the burst; less by what the other replicas still hold of it.
    assert 20 - 2 * 2 <= granted <= 20
    refused = replicas[0].ask(tenant)
    assert not refused.is_granted
    assert 0 < refused.wait_s <= 1.0
    assert refused.headers()["retry-after"] == "1"
    assert replicas[0].try_locally(tenant) is not None
    clock.now += 10
    again = sum(replicas[i % 3].ask(tenant).is_granted for i in range(60))
    assert 10 - 4 <= again <= 10 + 2 * 3
    other = Tenant(id="other", quotas=tenant.quotas)
    assert replicas[0].ask(other).is_granted
    assert replicas[0].ask(Tenant(id="unbounded")).headers() == {}


def test_over_twenty_seconds_a_tenant_gets_its_limit(engine: Engine):
    clock = Clock(NOW)
    tenant = Tenant(id="acme", quotas=Quotas(requests_per_minute=600, burst=50))
    replicas = [RateLimiter(engine, clock=clock) for _ in range(2)]
    granted = 0
    for tick in range(100):
        clock.now += 0.2
        granted += sum(replicas[(tick + i) % 2].ask(tenant).is_granted for i in range(3))
    assert 200 * 0.95 <= granted <= 200 + 50 + 2 * 5


def test_of_many_jobs_at_once_only_so_many_are_taken_as_there_are_places(engine: Engine):
    store = JobStore(engine)
    tenant = Tenant(id="acme", quotas=Quotas(jobs_at_once=3))
    outcomes = at_once(lambda: add(store, tenant), 8)
    refusals = [outcome for outcome in outcomes if isinstance(outcome, QuotaError)]
    assert len(refusals) == 5
    assert {(r.code, r.status, r.retry_after_s is None) for r in refusals} == {("too_many_jobs", 429, False)}
    add(store, Tenant(id="other", quotas=tenant.quotas))
    taken = next(outcome for outcome in outcomes if isinstance(outcome, str))
    store.cancel(taken)
    add(store, tenant)


def test_a_budget_is_pledged_at_submit_and_settled_at_the_end(engine: Engine):
    clock = Clock(NOW)
    store = JobStore(engine, clock=clock)
    tenant = Tenant(id="acme", quotas=Quotas(gpu_seconds_per_month=100))
    first = add(store, tenant, estimate=60)
    with pytest.raises(QuotaError) as refused:
        add(store, tenant, estimate=50)
    assert (refused.value.code, refused.value.status, refused.value.retry_after_s) == ("gpu_budget_exceeded", 402, None)
    lease = store.lease("worker", 60.0, 3)
    assert lease is not None
    clock.now += 30  # it takes half of what was thought
    assert store.complete(first, lease.token, model_version="1", expires_at=clock.now)
    with engine.connect() as connection:
        assert ledger.used_this_month(connection, "acme", clock.now) == pytest.approx(30)
    add(store, tenant, estimate=70)
    store.delete(first)
    with engine.connect() as connection:
        assert ledger.used_this_month(connection, "acme", clock.now) == pytest.approx(30)
        assert ledger.used_this_month(connection, "acme", ledger.next_month(clock.now)) == 0
    (row,) = ledger.report(engine, tenant="acme")
    assert (row["jobs"], row["outcome"], row["quality"], row["model"]) == (1, "completed", "exact", "m")


def test_an_engine_of_two_gpus_costs_two_gpu_seconds_a_second(engine: Engine):
    clock = Clock(NOW)
    store = JobStore(engine, clock=clock, gpus=2.0)
    tenant = Tenant(id="acme", quotas=Quotas(gpu_seconds_per_month=100))

    def admitted(connection: Connection, seconds: float) -> None:
        admit_job(connection, tenant, gpu_seconds=seconds, added_bytes=0, now=clock.now, gpus=store.gpus)

    def job(estimate: float) -> None:
        store.add(video_id=new_video_id(), model="m", settings=SETTINGS, inputs={}, content_hash=secrets.token_hex(8),
                  tenant="acme", gpu_seconds_estimate=estimate, admit=admitted)  # fmt: skip

    job(30)
    with pytest.raises(QuotaError, match="60 are"):
        job(21)
    lease = store.lease("worker", 60.0, 3)
    assert lease is not None
    clock.now += 10
    store.fail(lease.video.id, lease.token, code="c", message="m")
    (row,) = ledger.report(engine)
    assert (row["outcome"], row["gpu_seconds"]) == ("failed", pytest.approx(20))


def test_a_deleted_running_job_is_paid_for_what_it_took(engine: Engine):
    clock = Clock(NOW)
    store = JobStore(engine, clock=clock)
    video = add(store, Tenant(id="acme"))
    assert store.lease("worker", 60.0, 3) is not None
    clock.now += 12
    store.delete(video)
    (row,) = ledger.report(engine)
    assert (row["outcome"], row["gpu_seconds"]) == ("deleted", pytest.approx(12))


def test_storage_counts_inputs_and_files(engine: Engine):
    store = JobStore(engine)
    tenant = Tenant(id="acme", quotas=Quotas(storage_bytes=1000))
    add(store, tenant, size=600)
    with engine.begin() as connection:
        assert stored_bytes(connection, "acme") == 600
        admit_file(connection, tenant, added_bytes=400, now=0)
        with pytest.raises(QuotaError, match="Delete"):
            admit_file(connection, tenant, added_bytes=401, now=0)
    with pytest.raises(QuotaError) as refused:
        add(store, tenant, size=500)
    assert (refused.value.code, refused.value.status) == ("storage_full", 403)


def test_quotas_of_a_tenant_stand_over_the_services_own(engine: Engine):
    keyring = Keyring(engine, quotas=Quotas(jobs_at_once=2, jobs_running=1))
    assert keyring.set_quotas("acme", {"jobs_at_once": 9}) == Quotas(jobs_at_once=9, jobs_running=1)
    keyring.set_quotas("acme", {"requests_per_minute": 60})
    assert keyring.quotas("acme") == Quotas(jobs_at_once=9, jobs_running=1, requests_per_minute=60)
    assert keyring.quotas("other") == Quotas(jobs_at_once=2, jobs_running=1)
    with pytest.raises(ConfigError):
        keyring.set_quotas("acme", {"jobs_at_once": -1})
    assert RunningCap(keyring)("acme") == 1
    assert RunningCap(Keyring(engine))("nobody") is None


def test_no_more_jobs_of_a_tenant_run_than_its_quota_says(engine: Engine):
    keyring = Keyring(engine, quotas=Quotas(jobs_running=1))
    store = JobStore(engine, cap=RunningCap(keyring))
    add(store, Tenant(id="acme"))
    add(store, Tenant(id="acme"))
    other = add(store, Tenant(id="other"))
    taken = [store.lease("worker", 60.0, 3) for _ in range(3)]
    assert [lease.video.tenant for lease in taken if lease] == ["acme", "other"]
    assert taken[1] is not None
    assert taken[1].video.id == other


def test_the_audit_log_can_be_added_to_and_read_and_nothing_else(engine: Engine):
    log = AuditLog(engine)
    entry = Entry(tenant="acme", action="POST /v1/videos", key_id="abc", target="video_1", address="10.1.2.3",
                  status=200, request_id="req_1", at=5.0)  # fmt: skip
    log.add([entry, replace(entry, tenant="other")])
    assert log.read(tenant="acme") == [entry]
    assert log.read(since=6.0) == []
    assert log.read(action="DELETE") == []
    for statement in ("DELETE FROM audit_log", "UPDATE audit_log SET tenant = 'x'"):
        with pytest.raises(DatabaseError, match="only ever added"), engine.begin() as connection:
            connection.execute(text(statement))
    assert len(log.read()) == 2
