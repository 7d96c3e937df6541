"""When a video's frames are shown, read from its index without decoding a picture."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from dynamictrl.errors import MediaError


def frame_times(path: Path) -> NDArray[np.float64]:
    """Seconds since the first frame, [frames], in order of showing; counts coded pictures, so for sound files only.

    Meant for files that this project wrote: a damaged picture inside a whole file is not seen. Raises MediaError where
    the file cannot be opened.
    """
    try:
        with av.open(f"file:{Path(path).absolute()}") as container:
            stream = container.streams.video[0]
            ticks = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None and packet.size)
            base = float(stream.time_base or 0)
    except (av.FFmpegError, IndexError, OSError) as problem:
        raise MediaError(f"{path} cannot be opened: {problem}", code="unreadable") from problem
    times = np.array(ticks, np.float64) * base
    return times - times[0] if len(times) else times
