"""`python -m serving.rendering.follower_process`: started by a team's leader, and ends with it.

The leader's end closes this process's standard input, which is watched from the first moment: before torch is imported,
while models load, and inside an exchange that nobody answers any more.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import Any


def main() -> None:
    """Watches, then imports what is heavy and follows."""
    orders: queue.Queue[Any] = queue.Queue()
    threading.Thread(target=_read, args=(orders,), name="orders", daemon=True).start()
    from serving.rendering.follower import follow

    follow(orders)


def _read(orders: queue.Queue[Any]) -> None:
    for line in sys.stdin.buffer:
        orders.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main()
