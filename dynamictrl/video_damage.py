"""Damage that decodes without an error: pictures come out, some of them wrong, and only FFmpeg's log knows.

Three overwritten bytes of an H.264 file gave every frame, no exception and no `is_corrupt` flag; one line of the log
was the trace. It is kept here, file by file, for curation to weigh. Where the damage
happens to be legal video (five of nine places tried) there is no trace at all.
"""

from __future__ import annotations

import threading

import av.logging

from dynamictrl.video_stream import FrameStream, VideoSource

_ONE_AT_A_TIME = threading.Lock()
"""FFmpeg has one log for the whole process."""


def decoder_complaints(source: VideoSource) -> list[str]:
    """Decodes a whole video and returns what its decoder reported as errors, in order; empty for a sound file.

    Raises MediaError (see `dynamictrl.video`) only where not one frame comes. Costs a full decoding on one thread.
    """
    with _ONE_AT_A_TIME:
        before = av.logging.get_level()
        av.logging.set_level(av.logging.ERROR)
        try:
            with av.logging.Capture(local=False) as lines, FrameStream(source, threads=1) as stream:
                for _ in stream.frames(partial=True):
                    pass
                return [f"{part}: {text.strip()}" for level, part, text in lines if level <= av.logging.ERROR]
        finally:
            av.logging.set_level(before)
