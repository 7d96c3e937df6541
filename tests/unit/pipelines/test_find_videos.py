"""Every file that a user names is found once, with what is known about it."""

import http.server
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynamictrl.errors import InputError
from pipelines.clip import Clip
from pipelines.files import storage
from pipelines.stages.find_videos import FindVideos


def find(source: object) -> list[Clip]:
    return list(FindVideos().process(Clip(source=str(source))))


def names(clips: list[Clip]) -> list[str]:
    return [Path(c.source).name for c in clips]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.mp4", "a.json", "a.truth.npz", "alone.json", ".hidden", "sub/-c.webm", "notes.md"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "in"


def test_a_folder_gives_every_file_but_hidden_ones_and_side_cars_in_order(folder: Path):
    assert names(find(folder)) == ["a.mp4", "alone.json", "b.mp4", "notes.md", "-c.webm"]


def test_one_file_and_a_glob(folder: Path):
    assert names(find(folder / "b.mp4")) == ["b.mp4"]
    assert names(find(folder / "*.mp4")) == ["a.mp4", "b.mp4"]


def test_a_changed_file_has_another_fingerprint(folder: Path):
    before = find(folder / "a.mp4")[0].fingerprint
    assert find(folder / "a.mp4")[0].fingerprint == before
    (folder / "a.mp4").write_bytes(b"other content")
    assert find(folder / "a.mp4")[0].fingerprint != before


def test_licence_and_consent_travel_from_a_list_and_paths_are_relative_to_it(folder: Path):
    (folder / "list.csv").write_text("path,licence,consent\na.mp4,CC0,yes\nsub/-c.webm,,\n")
    first, second = find(folder / "list.csv")
    assert (first.source, first.licence, first.consent) == (str(folder / "a.mp4"), "CC0", "yes")
    assert (names([second]), second.licence) == (["-c.webm"], "")


def test_jsonl_and_parquet_lists_read_alike(folder: Path):
    rows = [{"uri": "a.mp4", "license": "CC0"}, {"uri": "b.mp4", "license": None}]
    (folder / "list.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    pq.write_table(pa.Table.from_pylist(rows), folder / "list.parquet")
    assert find(folder / "list.jsonl") == find(folder / "list.parquet")
    assert [c.licence for c in find(folder / "list.jsonl")] == ["CC0", ""]


def test_a_list_may_name_what_is_gone_and_it_stays_on_record(folder: Path):
    (folder / "list.csv").write_text("path\ngone.mp4\n")
    assert names(find(folder / "list.csv")) == ["gone.mp4"]


def test_a_list_without_a_column_of_videos_is_refused_by_row_and_column(folder: Path):
    (folder / "list.csv").write_text("name,licence\nx,y\n")
    with pytest.raises(InputError, match=r"row 1 .* uri, url, path, video, file \(has name, licence\)"):
        find(folder / "list.csv")


def test_a_wrong_path_is_refused_with_the_nearest_name(folder: Path):
    with pytest.raises(InputError, match=r"bb\.mp4 does not exist; did you mean .*/b\.mp4\?"):
        find(folder / "bb.mp4")


def test_an_empty_folder_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="holds no file"):
        find(tmp_path)


def test_a_store_that_cannot_be_reached_is_a_clear_error():
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/ cannot be listed"):
        find("http://127.0.0.1:9/")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(folder: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_web_folder_is_listed_and_its_files_come_whole(web: str, tmp_path: Path):
    found = find(f"{web}/")
    assert f"{web}/a.mp4" in [c.source for c in found]
    storage.download(f"{web}/a.mp4", tmp_path / "copy.mp4")
    assert (tmp_path / "copy.mp4").read_bytes() == b"a.mp4"


def test_a_list_on_the_web_may_name_videos_on_the_web(web: str, folder: Path):
    (folder / "list.csv").write_text(f"url\n{web}/a.mp4\n")
    assert [c.source for c in find(f"{web}/list.csv")] == [f"{web}/a.mp4"]
