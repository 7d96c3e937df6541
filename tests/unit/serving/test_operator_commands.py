"""`python -m serving key | tenant | usage | audit | webhook` on a store that a service may be using."""

import json
from pathlib import Path

import pytest

from serving.__main__ import main
from serving.jobs.database import open_database
from serving.tenants.keyring import Keyring
from serving.tenants.tenant import Quotas
from serving.webhooks.signing import WebhookSecrets


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    open_database(f"sqlite:///{tmp_path / 'jobs.db'}").dispose()
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> list[dict[str, object]]:
    assert main([*words, "--data-folder", str(folder), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_key_is_made_listed_and_revoked(folder: Path, capsys: pytest.CaptureFixture[str]):
    (made,) = said(capsys, folder, "key", "create", "--tenant", "acme", "--scopes", "files,videos:read", "--note", "ci")
    keyring = Keyring(open_database(f"sqlite:///{folder / 'jobs.db'}"))
    tenant = keyring.find(str(made["key"]))
    assert tenant is not None
    assert (tenant.id, tenant.scopes) == ("acme", {"files", "videos:read"})
    (listed,) = said(capsys, folder, "key", "list", "--tenant", "acme")
    assert (listed["id"], listed["note"], "key" in listed, "hash" in listed) == (made["id"], "ci", False, False)
    assert main(["key", "revoke", "--id", str(made["id"]), "--data-folder", str(folder)]) == 0
    assert keyring.find(str(made["key"])) is None
    capsys.readouterr()
    assert main(["key", "revoke", "--id", str(made["id"]), "--data-folder", str(folder)]) == 2
    assert "no good key" in capsys.readouterr().err
    rows = said(capsys, folder, "audit")
    assert [(row["action"], row["target"]) for row in rows] == [
        ("key.create", made["id"]), ("key.revoke", made["id"])
    ]  # fmt: skip


def test_quotas_are_set_one_by_one(folder: Path, capsys: pytest.CaptureFixture[str]):
    said(capsys, folder, "tenant", "set", "--tenant", "acme", "--jobs-at-once", "3")
    (now,) = said(capsys, folder, "tenant", "set", "--tenant", "acme", "--requests-per-minute", "60")
    assert (now["jobs_at_once"], now["requests_per_minute"], now["storage_bytes"]) == (3, 60, 0)
    engine = open_database(f"sqlite:///{folder / 'jobs.db'}")
    assert Keyring(engine).quotas("acme") == Quotas(jobs_at_once=3, requests_per_minute=60)


def test_a_webhook_secret_is_shown_once(folder: Path, capsys: pytest.CaptureFixture[str]):
    (shown,) = said(capsys, folder, "webhook", "secret", "--tenant", "acme")
    assert WebhookSecrets(open_database(f"sqlite:///{folder / 'jobs.db'}")).of("acme") == [shown["secret"]]
    assert said(capsys, folder, "webhook", "list") == []
    assert said(capsys, folder, "usage") == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("key", "create", "--tenant", "Not A Name"), "is no name"),
        (("key", "create", "--tenant", "acme", "--scopes", "root"), "there are videos:read"),
        (("key", "mislaid"), "create|list|revoke"),
        (("webhook", "replay"), "say which"),
        (("tenant", "set", "--tenant", "acme", "--jobs-at-once", "-1"), "give 0"),
    ],
)
def test_a_wrong_word_changes_nothing_and_exits_with_2(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], reason: str
):
    assert main([*words, *(("--data-folder", str(folder)) if len(words) > 2 or "replay" in words else ())]) == 2
    assert reason in capsys.readouterr().err
    assert said(capsys, folder, "audit") == []


def test_a_mistyped_folder_does_not_become_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["key", "list", "--data-folder", str(tmp_path / "nowhere")]) == 2
    assert "no job store" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
