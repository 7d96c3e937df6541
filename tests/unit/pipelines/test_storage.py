"""A data set's root on a disk and in a bucket: the same files by the same names, whole or not there."""

import os
import pickle
from pathlib import Path

import pytest

from dynamictrl.errors import ConfigError, DatasetError
from pipelines.files import storage
from pipelines.files.storage import Store


@pytest.fixture(params=["disk", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty root."""
    return Store(str(tmp_path / "set") if request.param == "disk" else request.getfixturevalue("bucket"))


def test_files_come_back_whole_and_in_parts(store: Store):
    store.put("a/b.bin", b"0123456789")
    assert store.read("a/b.bin") == b"0123456789"
    assert store.read("a/b.bin", 3, 4) == b"3456"
    assert (store.size("a/b.bin"), store.size("a"), store.exists("a/c.bin")) == (10, None, False)
    with store.open("a/b.bin") as stream:
        stream.seek(8)
        assert stream.read() == b"89"
    store.put("a/b.bin", b"new")
    assert store.read("a/b.bin") == b"new"


def test_a_list_has_every_file_below_and_none_beside(store: Store):
    assert store.list() == []
    for name in ("set.json", "shards/1.tar", "shards/deep/2.tar", "shards-old/3.tar"):
        store.put(name, name.encode())
    assert store.list("shards") == [("shards/1.tar", 12), ("shards/deep/2.tar", 17)]
    assert [name for name, _ in store.list()] == sorted(
        ["set.json", "shards/1.tar", "shards/deep/2.tar", "shards-old/3.tar"]
    )
    assert store.list("nothing") == []


def test_a_finished_file_is_moved_in(store: Store, tmp_path: Path):
    content = os.urandom(11 * 2**20)
    (tmp_path / "made").write_bytes(content)
    store.put_file("shards/1.tar", tmp_path / "made")
    assert store.read("shards/1.tar") == content
    assert not (tmp_path / "made").exists()


def test_deleting_twice_is_deleting(store: Store):
    store.put("a", b"a")
    store.delete("a")
    store.delete("a")
    assert store.list() == []


def test_a_store_goes_to_another_process_by_its_name(store: Store):
    store.put("a", b"a")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"a"


def test_what_is_not_there_is_named(store: Store):
    with pytest.raises(DatasetError, match=r"nothing\.json cannot be opened") as problem:
        store.read("nothing.json")
    assert problem.value.code == "file_missing"


def test_a_file_reaches_the_disk_before_its_name_and_the_name_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[str, bool]] = []
    target, real = tmp_path / "set" / "a.json", os.fsync

    def fsync(descriptor: int) -> None:
        seen.append((os.path.realpath(f"/proc/self/fd/{descriptor}"), target.exists()))
        real(descriptor)

    monkeypatch.setattr(storage.os, "fsync", fsync)
    Store(str(tmp_path / "set")).put("a.json", b"a")
    (file, named_before), (folder, named_after) = seen
    assert file.endswith(".tmp")
    assert (named_before, folder, named_after) == (False, str(tmp_path / "set"), True)


def test_the_work_folder_is_not_of_the_data_set(tmp_path: Path):
    (tmp_path / ".work" / "clips").mkdir(parents=True)
    (tmp_path / ".work" / "clips" / "a").write_bytes(b"a")
    assert Store(str(tmp_path)).list() == []


def test_a_bucket_that_is_not_there_and_a_server_that_does_not_answer_are_said(bucket: str):
    with pytest.raises(DatasetError, match="there is no bucket nobody"):
        Store("s3://nobody/set").check()
    Store(bucket).check()
    with pytest.raises(DatasetError, match="cannot be reached.*Check the name, the network") as problem:
        Store("s3://tests/set?endpoint_override=127.0.0.1:1&scheme=http").check()
    assert problem.value.code == "unreachable"


def test_an_endpoint_in_the_uri_goes_before_the_environments(bucket: str, s3_server: str, monkeypatch):
    Store(bucket).put("a", b"a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    scheme, _, host = s3_server.partition("://")
    named = Store(f"{bucket}?endpoint_override={host}&scheme={scheme}")
    assert named.read("a") == b"a"
    assert named.uri("a").startswith(f"{bucket}/a?endpoint_override=")


def test_sources_are_listed_and_downloaded_from_the_same_endpoint(bucket: str, tmp_path: Path):
    Store(bucket).put("videos/a.mp4", b"moving")
    ((uri, size, mark),) = storage.list_remote(f"{bucket}/videos")
    assert (uri, size) == (f"{bucket}/videos/a.mp4", 6)
    assert mark
    storage.download(uri, tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == b"moving"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://name:hunter2@bucket/set", "holds credentials"),
        ("s3://bucket/set?endpoint=x", "no option 'endpoint'; there are endpoint_override"),
        ("https://example.org/set", "cannot be written"),
    ],
)
def test_a_root_that_cannot_be_used_is_refused_with_the_way_out(uri: str, words: str):
    with pytest.raises(ConfigError, match=words) as problem:
        Store(uri).check()
    assert "hunter2" not in str(problem.value)
