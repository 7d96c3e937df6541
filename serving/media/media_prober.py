"""The process that opens strangers' files; `prober_process.py` starts it, feeds it and kills what it makes.

It loads the decoders once, and makes a process of its own for each file by a fork: a few milliseconds, and whatever a
file did to it (leaks, crashes, a decoder turned against us) ends with the file. The fork gets the file and a pipe as
open descriptors and is then confined (`confinement.py`): it can open, write, call and start nothing.

Over the socket come datagrams: a question in JSON with the descriptors of the file, the pipe for the answer, and a
place for pixels where some are wanted; back goes the number of the process, or 0 where none could be made.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

from serving.media import media_opening
from serving.media.confinement import confine, die_with_parent

LONGEST_QUESTION = 2**16


def main(descriptor: int) -> None:
    """Answers until the other end of the socket is gone."""
    load_decoders()
    # Ended children are nobody's to bury: the kernel forgets them at once.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    with socket.socket(fileno=descriptor) as asker:
        asker.send(b"ready")
        while True:
            words, descriptors, _, _ = socket.recv_fds(asker, LONGEST_QUESTION, 3)
            if not words:
                return
            try:
                number = os.fork()
            except OSError:
                number = -1
            if number == 0:
                asker.detach()
                _be_the_child(descriptor, nowhere, json.loads(words), descriptors)
            for one in descriptors:
                os.close(one)
            _report(asker, number)


def _report(asker: socket.socket, number: int) -> None:
    """Tells the child's number, with a handle on it that no other process can ever inherit."""
    if number < 0:
        asker.send(b"0")
        return
    try:
        handle = os.pidfd_open(number)
    except (OSError, AttributeError):
        # It is at its end already.
        asker.send(str(number).encode())
        return
    socket.send_fds(asker, [str(number).encode()], [handle])
    os.close(handle)


def load_decoders() -> None:
    """Imports now what would be looked for in files later, when there are none any more."""
    import encodings.cp437
    import encodings.idna
    import encodings.latin_1
    import encodings.utf_16
    import encodings.utf_16_be
    import encodings.utf_16_le  # noqa: F401

    import av
    import cv2
    from PIL import Image

    cv2.setNumThreads(1)
    Image.init()
    for module in pkgutil.walk_packages(av.__path__, "av."):
        with suppress(ImportError):
            importlib.import_module(module.name)


def _be_the_child(asker: int, nowhere: int, words: dict[str, Any], descriptors: list[int]) -> None:
    """Answers one question and ends; never returns."""
    try:
        os.setsid()
        die_with_parent()
        os.close(asker)
        for standard in (0, 1, 2):
            os.dup2(nowhere, standard)
        limits = words.pop("limits")
        missing = confine(**limits)
        medium, pipe, *place = descriptors
        payload = os.fdopen(place[0], "wb", buffering=0) if place else None
        question = media_opening.Question(**words)
        said = media_opening.answer(question, os.fdopen(medium, "rb"), payload)
        said["unconfined"] = missing
        with os.fdopen(pipe, "wb") as answers:
            answers.write(json.dumps(said).encode())
    finally:
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
