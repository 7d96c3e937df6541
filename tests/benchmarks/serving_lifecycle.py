"""What a service's changes cost its jobs: redeploy, fewer engines, none and back, a model promoted, one rolled back.

    python -m tests.benchmarks.serving_lifecycle [--parts redeploy ...] [--jobs 100] [--pace 2]

A tiny model of the real classes behind the real HTTP surface on a local Ray Serve. Each part sends `--jobs` jobs at
`--pace` a second, but no more than a dozen ahead of the engines; makes its change when a third of them are sent; goes
on sending until the change is through; and waits for them all. Counted: jobs that did not complete, submits that were
not answered 200, and health checks (ten a second) that were refused or answered 5xx. `zero` begins with no engine at
all and a burst of eight, and tells how long the decision for more took.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from serving.config import Canary, Scaling, Service
from serving.recipes import mini

PARTS = ("redeploy", "shrink", "zero", "promote", "rollback")
PATIENCE_S = 420.0
"""Seconds without an ended job after which a part gives up."""
BURST = 8
AHEAD = 12
"""Jobs that may be sent and not done while a part still sends."""


@dataclass
class Toll:
    """What a change cost."""

    name: str
    sent: int = 0
    refused: list[str] = field(default_factory=list)
    """Submits that were not answered 200."""
    ended: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    pings: int = 0
    lost_pings: int = 0
    seconds: float = 0.0
    note: str = ""

    @property
    def failed(self) -> int:
        return self.sent - self.ended["completed"]


class Client:
    """Sends jobs and health checks, and counts."""

    def __init__(self, url: str, media: Path):
        self.url, self.http = url, httpx.Client(timeout=60)
        self._files = [self._upload(media / name) for name in ("person.png", "pose.mp4")]
        self._seed = 0

    def _upload(self, path: Path) -> str:
        answer = self.http.post(
            f"{self.url}/v1/files", files={"file": (path.name, path.read_bytes())}, data={"purpose": "user_data"}
        )
        return answer.raise_for_status().json()["id"]

    def send(self, toll: Toll) -> str | None:
        self._seed += 1
        image, pose = self._files
        job = {
            "prompt": "a figure", "size": "64x96", "num_frames": 5, "num_inference_steps": 2, "seed": self._seed,
            "input_reference": {"file_id": image}, "pose_video": {"file_id": pose}
        }  # fmt: skip
        toll.sent += 1
        try:
            answer = self.http.post(f"{self.url}/v1/videos", json=job)
        except httpx.HTTPError as problem:
            toll.refused.append(type(problem).__name__)
            return None
        if answer.status_code != 200:
            toll.refused.append(str(answer.status_code))
            return None
        return answer.json()["id"]

    def look(self, toll: Toll, left: set[str]) -> None:
        """Takes out of `left` what has ended."""
        for video_id in sorted(left):
            try:
                video = self.http.get(f"{self.url}/v1/videos/{video_id}").json()
            except (httpx.HTTPError, ValueError):
                return
            if video["status"] in ("completed", "failed", "cancelled"):
                left.discard(video_id)
                toll.ended[video["status"]] += 1
                toll.versions[video.get("model_version") or "-"] += 1
                if video["error"]:
                    toll.errors[video["error"]["code"]] += 1

    def wait(self, toll: Toll, left: set[str], most: int = 0) -> None:
        """Until all but `most` have ended, or none does any more."""
        count, moved = len(left), time.monotonic()
        while len(left) > most and time.monotonic() - moved < PATIENCE_S:
            self.look(toll, left)
            if len(left) < count:
                count, moved = len(left), time.monotonic()
            time.sleep(0.1)
        if not most:
            toll.ended["stuck"] += len(left)

    def ping(self, toll: Toll, stop: threading.Event) -> None:
        with httpx.Client(timeout=10) as http:
            while not stop.wait(0.1):
                toll.pings += 1
                try:
                    toll.lost_pings += http.get(f"{self.url}/healthz").status_code >= 500
                except httpx.HTTPError:
                    toll.lost_pings += 1


class Bench:
    """One service on a Ray of its own."""

    def __init__(self, folder: Path, arguments: argparse.Namespace):
        from dynamictrl.mini.tiny import write_tiny_model

        self.folder, self.arguments = folder, arguments
        one = write_tiny_model(folder / "one")
        self.models = [one, _with_other_weights(one, folder / "two")]
        _write_media(folder)
        tracking = f"sqlite:///{folder / 'mlflow.db'}"
        os.environ["MLFLOW_TRACKING_URI"] = tracking
        if set(arguments.parts) & {"promote", "rollback"}:
            self._register(tracking)
            model = "models:/tiny@champion"
        else:
            model = str(self.models[0])
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.service = replace(
            mini(), model=model, port=port, data_folder=folder / "data", threads=1, person_check="render", lease_s=5.0,
            min_engines=2, max_engines=2, num_cpus=4,
            scaling=Scaling(clear_within_s=10.0, shrink_after_s=2.0, to_zero_after_s=3.0),
            canary=Canary(poll_s=1.0, percent=40, jobs=15, seconds=600.0),
        )  # fmt: skip
        if arguments.parts[0] == "zero":
            self.service = self.asleep()

    def _register(self, tracking: str) -> None:
        import mlflow

        self.registry = mlflow.MlflowClient(tracking, registry_uri=tracking)
        self.registry.create_registered_model("tiny")
        for model in self.models:
            self.registry.create_model_version("tiny", str(model))
        self.registry.set_registered_model_alias("tiny", "champion", "1")

    def asleep(self) -> Service:
        """The service of the part `zero`."""
        scaling = replace(self.service.scaling, clear_within_s=2.0)
        return replace(self.service, min_engines=0, max_engines=3, scaling=scaling)

    def start(self) -> Client:
        import ray
        from ray import serve
        from ray.serve.config import HTTPOptions

        ray.init(address="local", num_cpus=self.service.num_cpus, include_dashboard=False, log_to_driver=False)
        http = HTTPOptions(host="127.0.0.1", port=self.service.port, request_timeout_s=None)
        serve.start(proxy_location="HeadOnly", http_options=http)
        self.deploy()
        url = f"http://127.0.0.1:{self.service.port}"
        self.until(lambda: self.warm(url) >= self.service.min_engines)
        return Client(url, self.folder)

    def warm(self, url: str) -> int:
        state = httpx.get(f"{url}/readyz", timeout=30).json()
        assert state["status"] != "failing", state
        return state["workers"]

    def deploy(self, **changes: object) -> None:
        from ray import serve

        from serving.cluster.app import APP, application

        self.service: Service = replace(self.service, **changes)  # type: ignore[arg-type]
        target = serve.RunTarget(application(self.service), name=APP, route_prefix="/")
        serve.run_many([target], wait_for_applications_running=False)

    def engines(self) -> Counter[str]:
        """Renderer replicas by state, as Serve's controller has them now."""
        from ray import serve

        from serving.cluster.app import APP

        status = serve.status().applications[APP].deployments["renderer"]
        return Counter({str(getattr(state, "value", state)): count for state, count in status.replica_states.items()})

    def until(self, true: Callable[[], bool], seconds: float = 400.0) -> float:
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            try:
                if true():
                    return time.monotonic() - start
            except (httpx.HTTPError, ValueError, KeyError):
                pass
            time.sleep(0.05)
        raise TimeoutError(f"not so after {seconds:.0f} s")

    # The changes

    def redeploy(self, toll: Toll) -> None:
        """Every actor is replaced: another field of the service is another version of the code to Serve."""
        self.deploy(longest_job_s=self.service.longest_job_s + 1)

    def shrink(self, toll: Toll) -> None:
        self.deploy(min_engines=1, max_engines=1)

    def promote(self, toll: Toll) -> None:
        self.registry.set_registered_model_alias("tiny", "champion", "2")

    def rollback(self, toll: Toll) -> None:
        """A third version that cannot be loaded is rejected; then by hand from the second one to the first."""
        from serving.rollout.command import RolloutRollback

        empty = self.folder / "broken"
        empty.mkdir()
        version = self.registry.create_model_version("tiny", str(empty)).version
        self.registry.set_registered_model_alias("tiny", "champion", version)
        self.until(lambda: self.rollout()["rejected"] == f"tiny/{version}")
        toll.note = f"tiny/{version} rejected: {self.rollout()['why'][:90]}"
        list(RolloutRollback(data_folder=self.service.data_folder).run())

    def rollout(self) -> dict[str, Any]:
        from serving.rollout.command import RolloutStatus

        (line,) = RolloutStatus(data_folder=self.service.data_folder, json=True).run()
        return json.loads(line)

    def through(self, name: str) -> bool:
        """Whether a part's change is complete."""
        wanted = {"promote": "tiny/2", "rollback": "tiny/1"}.get(name)
        return wanted is None or self.rollout()["stable"] == wanted

    def zero(self, toll: Toll, client: Client) -> list[str]:
        """From no engine, a burst; returns its jobs."""
        if self.service != self.asleep():
            self.service = self.asleep()
            self.deploy()
        self.until(lambda: self.engines().total() == 0)
        start = time.monotonic()
        ids = [video_id for _ in range(BURST) if (video_id := client.send(toll))]
        self.until(lambda: self.engines().total() >= 1)
        decided = time.monotonic() - start
        state = httpx.get(f"{client.url}/readyz", timeout=30).json()["status"]
        self.until(lambda: self.engines().total() >= 2)
        more = time.monotonic() - start
        self.until(lambda: self.engines()["RUNNING"] >= 1)
        warm = time.monotonic() - start
        toll.note = (
            f"burst of {BURST} at none: first engine decided after {decided:.2f} s, more than one after {more:.2f} s, "
            f"first warm after {warm:.0f} s; meanwhile /readyz said {state!r}"
        )
        return ids

    def run(self, name: str, client: Client) -> Toll:
        toll, stop = Toll(name), threading.Event()
        pinging = threading.Thread(target=client.ping, args=(toll, stop), daemon=True)
        pinging.start()
        start = time.monotonic()
        left = set(self.zero(toll, client)) if name == "zero" else set[str]()
        change = None if name == "zero" else getattr(self, name)
        jobs = self.arguments.jobs
        while toll.sent < jobs or (toll.sent < 4 * jobs and not self.through(name)):
            if toll.sent == jobs // 3 and change is not None:
                threading.Thread(target=change, args=(toll,), daemon=True).start()
            time.sleep(1 / self.arguments.pace)
            client.wait(toll, left, most=AHEAD)
            if video_id := client.send(toll):
                left.add(video_id)
        client.wait(toll, left)
        if name in ("promote", "rollback"):
            state = self.rollout()
            toll.note += f"  now {state['stable']} serves ({state['why']})"
        toll.seconds = time.monotonic() - start
        stop.set()
        pinging.join()
        return toll


def _with_other_weights(model: Path, target: Path) -> Path:
    """The same text encoder and VAE, another transformer: what a second training run comes to."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, target)
    (weights,) = (target / "transformer").glob("*.safetensors")
    save_file({name: tensor * 1.02 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    return target


def _write_media(folder: Path) -> None:
    from dynamictrl.media.video import write_video
    from dynamictrl.poses.pose import NUM_KEYPOINTS, RIGHT_WRIST, PoseSequence
    from dynamictrl.poses.pose_drawing import draw_pose

    generator, frames = np.random.default_rng(7), 5
    keypoints = np.repeat(generator.uniform(0.3, 0.7, (1, 1, NUM_KEYPOINTS, 2)), frames, axis=0).astype(np.float32)
    keypoints[:, 0, RIGHT_WRIST, 0] = np.linspace(0.1, 0.9, frames)
    boxes = np.tile(np.array([0.1, 0.1, 0.9, 0.9], np.float32), (frames, 1, 1))
    pose = PoseSequence(keypoints, np.ones((frames, 1, NUM_KEYPOINTS), np.float32), boxes, np.array([1], np.int32))
    write_video(folder / "pose.mp4", draw_pose(pose, 96, 64), 12)
    Image.fromarray(generator.integers(0, 255, (96, 64, 3), dtype=np.uint8)).save(folder / "person.png")


def show(toll: Toll) -> None:
    print(
        f"{toll.name:<10}{toll.sent:>5} sent  {toll.failed:>3} failed  {len(toll.refused):>3} not accepted  "
        f"{toll.lost_pings:>3} of {toll.pings} health checks lost  {toll.seconds:>6.0f} s",
        flush=True,
    )
    for what, counts in (("ended", toll.ended), ("errors", toll.errors), ("versions", toll.versions)):
        if counts:
            print(f"          {what}: " + ", ".join(f"{word} {count}" for word, count in counts.items() if count))
    if toll.refused:
        print(f"          not accepted: {dict(Counter(toll.refused))}")
    if toll.note:
        print(f"          {toll.note}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--pace", type=float, default=2.0)
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
    print(f"on {platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="lifecycle-") as name:
        bench = Bench(Path(name), arguments)
        client = bench.start()
        print(f"{bench.service.min_engines} engines warm, load {os.getloadavg()[0]:.1f}", flush=True)
        try:
            tolls = []
            for part in arguments.parts:
                tolls.append(bench.run(part, client))
                show(tolls[-1])
            print(f"{sum(toll.failed for toll in tolls)} of {sum(toll.sent for toll in tolls)} failed")
        finally:
            from ray import serve

            serve.shutdown()


if __name__ == "__main__":
    main()
