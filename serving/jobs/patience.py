"""A database that is away for a while: who must get through tries again, who only asks goes on as before."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

logger = logging.getLogger(__name__)

AWAY = (OperationalError, InterfaceError, PoolTimeoutError)
"""What SQLAlchemy raises where the database cannot be reached, went away, is locked or does not answer in time."""
LONGEST_S = 900.0
"""Seconds for which a finished job waits for its database, so that its work is not lost."""

Answer = TypeVar("Answer")


def is_away(problem: BaseException) -> bool:
    """Whether the same call may succeed once the database is back."""
    return isinstance(problem, AWAY) or (isinstance(problem, DBAPIError) and problem.connection_invalidated)


def get_through(call: Callable[[], Answer], *, seconds: float = LONGEST_S) -> Answer:
    """Calls until the database answers; raises its last error after so many seconds. The call must bear repeating."""
    end, pause = time.monotonic() + seconds, 0.1
    while True:
        try:
            return call()
        except Exception as problem:
            if not is_away(problem) or time.monotonic() + pause > end:
                raise
            logger.warning("the job store is away (%s); trying again", type(problem).__name__)
            time.sleep(pause)
            pause = min(2.0, 2 * pause)


def or_else(call: Callable[[], Answer], otherwise: Answer) -> Answer:
    """The database's answer, or another one while it is away."""
    try:
        return call()
    except Exception as problem:
        if not is_away(problem):
            raise
        logger.warning("the job store is away (%s); going on without it", type(problem).__name__)
        return otherwise
