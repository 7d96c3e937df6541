"""What can be told from the coded bytes themselves, without decoding.

H.264 and H.265 keep start codes out of their pictures: wherever two zero bytes would be followed by a small one, the
encoder writes a 3 between (ITU-T H.264 section 7.4.1, H.265 section 7.4.2). So a run of zeros inside a picture is no
picture: it is a hole, as half-finished downloads and sparse files have them. Decoders pass over many without a word.
"""

from __future__ import annotations

_HOLE = bytes(8)
"""Three zeros would do, were there not muxers that leave a start code (00 00 00 01) inside a unit (seen)."""
_PICTURES = {"h264": range(1, 6), "hevc": range(32)}
"""By codec: the unit types that hold parts of pictures."""


def nal_length_size(codec: str, header: bytes) -> int:
    """Bytes of the length before each unit, by the codec's header in mp4 or Matroska; 0 where there are start codes."""
    place = {"h264": 4, "hevc": 21}.get(codec)
    if place is None or len(header) <= place or header[0] != 1:
        return 0
    return (header[place] & 3) + 1


def has_hole(codec: str, packet: bytes, length_size: int) -> bool:
    """Whether a picture's bytes hold zeros that no encoder writes."""
    at = 0
    while at + length_size < len(packet):
        begin = at + length_size
        at = begin + int.from_bytes(packet[at:begin], "big")
        kind = packet[begin] & 31 if codec == "h264" else packet[begin] >> 1 & 63
        # Some encoders pad the end with zeros.
        if kind in _PICTURES[codec] and _HOLE in packet[begin:at].rstrip(b"\0"):
            return True
    return False
