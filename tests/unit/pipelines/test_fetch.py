"""Remote sources: what is the source's fault, what is the store's, and when to stop asking."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dynamictrl.errors import ConfigError, StoreError
from pipelines.clip import Clip
from pipelines.stage import run_local
from pipelines.stages.fetch import Fetch

CONTENT = bytes(range(256)) * 400
DEAD = "http://127.0.0.1:9"


class Answers(BaseHTTPRequestHandler):
    """Answers as the first part of the path says."""

    broken: int = 0
    """Requests for `/flaky` that were broken off so far."""

    def do_HEAD(self) -> None:  # noqa: N802 (the server's name for it)
        self._head(len(CONTENT))

    def do_GET(self) -> None:  # noqa: N802
        name = self.path.strip("/").split("/")[0]
        if name == "flaky" and Answers.broken < 2:
            Answers.broken += 1
            self._head(len(CONTENT))
            self.wfile.write(CONTENT[:1000])
        elif name == "short":
            self._head(len(CONTENT))
            self.wfile.write(CONTENT[:1000])
        elif self._head(len(CONTENT)):
            for part in range(0, len(CONTENT), 10_000):
                self.wfile.write(CONTENT[part : part + 10_000])
                time.sleep(0.3 if name == "slow" else 0)

    def _head(self, length: int) -> bool:
        name = self.path.strip("/").split("/")[0]
        status = int(name) if name.isdigit() else 200
        self.send_response(status)
        self.send_header("Content-Length", str(length if status == 200 else 0))
        self.end_headers()
        return status == 200

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Answers.broken = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def fetched(uri: str, tmp_path: Path, stage: Fetch | None = None) -> Clip:
    stage = stage or Fetch(wait=0)
    return run_local([stage], [Clip(source=uri, fingerprint=str(abs(hash(uri))), work=str(tmp_path))])[0]


def test_a_remote_source_is_brought_whole(server: str, tmp_path: Path):
    clip = fetched(f"{server}/fine/a.mp4?token=1", tmp_path)
    assert Path(clip.path).read_bytes() == CONTENT
    assert Path(clip.path).name == "a.mp4"


def test_a_download_that_breaks_off_is_begun_again(server: str, tmp_path: Path):
    assert Path(fetched(f"{server}/flaky/a.mp4", tmp_path).path).read_bytes() == CONTENT
    assert Answers.broken == 2


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("404", "not_found", "is not there"),
        ("410", "not_found", "is not there"),
        ("403", "forbidden", "credentials"),
        ("500", "unreachable", "500"),
        ("short", "unreachable", ""),
    ],
)
def test_each_failure_has_its_own_reason(server: str, tmp_path: Path, name: str, code: str, words: str):
    clip = fetched(f"{server}/{name}/a.mp4", tmp_path)
    assert (clip.quarantined, clip.rejected, clip.stage) == (True, code, "fetch")
    assert words in clip.message
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_source_too_large_is_refused_before_it_is_brought(server: str, tmp_path: Path):
    clip = fetched(f"{server}/fine/a.mp4", tmp_path, Fetch(largest_gib=1e-6))
    assert clip.rejected == "too_large"
    assert "--fetch.largest-gib" in clip.message


def test_a_server_that_drips_is_left(server: str, tmp_path: Path):
    clip = fetched(f"{server}/slow/a.mp4", tmp_path, Fetch(seconds=0.2))
    assert clip.rejected == "too_slow"
    assert "--fetch.seconds" in clip.message


def test_a_dead_store_stops_the_run_and_a_missing_object_does_not(server: str, tmp_path: Path):
    stage = Fetch(attempts=1, wait=0, most_silent=3)
    codes = [fetched(f"{DEAD}/{i}.mp4", tmp_path, stage).rejected for i in range(2)]
    assert codes == ["unreachable"] * 2
    assert [fetched(f"{server}/404/{i}.mp4", tmp_path, stage).rejected for i in range(5)] == ["not_found"] * 5
    with pytest.raises(StoreError, match="3 sources of http://127.0.0.1:9 in a row") as caught:
        fetched(f"{DEAD}/2.mp4", tmp_path, stage)
    assert caught.value.code == "store_unreachable"


def test_an_answer_in_between_shows_that_the_store_lives(server: str, tmp_path: Path):
    stage = Fetch(attempts=1, wait=0, most_silent=2)
    for name in ("500", "fine", "500", "404", "500"):
        fetched(f"{server}/{name}/a.mp4", tmp_path, stage)


def test_limits_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="attempts is 0"):
        Fetch(attempts=0)
