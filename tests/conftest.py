"""What several test files share: real media where it is at hand, one local Ray, tiny real models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# One thread pool per process: the tests run on small machines, beside Ray workers.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real human clips and broken media, kept outside the project (they may not be redistributed)."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real test media are not on this machine ({SHARED_DATA})")
    return SHARED_DATA


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One local Ray for the whole test session."""
    import ray

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole DynamiCtrl folder (1.5-shaped, PadaLN) of tiny random weights: real classes, random pictures."""
    from dynamictrl.mini.tiny import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny_model"))
