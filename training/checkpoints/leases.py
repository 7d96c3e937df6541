"""Marks that keep a checkpoint on disk while somebody reads it: `checkpoints/step-X/.reading-HOST-PID`.

Whoever prunes checkpoints passes by those for which `is_held`; a mark that was not renewed for a while is of a reader
that was killed, and holds nothing.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

STALE_SECONDS = 900.0
"""Age at which a mark counts no more; readers renew theirs every minute or so."""


def hold(checkpoint: Path) -> None:
    """Keeps a checkpoint folder from being pruned for the next STALE_SECONDS; call again to renew.

    Raises FileNotFoundError where the folder is gone already.
    """
    _mark(checkpoint).touch()


def release(checkpoint: Path) -> None:
    """Takes this process's mark away."""
    _mark(checkpoint).unlink(missing_ok=True)


def is_held(checkpoint: Path) -> bool:
    """Whether anybody reads the checkpoint."""
    return any(_age(mark) < STALE_SECONDS for mark in checkpoint.glob(".reading-*"))


def _mark(checkpoint: Path) -> Path:
    return checkpoint / f".reading-{socket.gethostname()}-{os.getpid()}"


def _age(mark: Path) -> float:
    try:
        return time.time() - mark.stat().st_mtime
    except FileNotFoundError:  # released meanwhile
        return STALE_SECONDS
