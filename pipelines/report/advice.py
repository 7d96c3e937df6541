"""What a person can do about a source or a clip that was put aside, by reason code."""

from __future__ import annotations

ADVICE = {
    "not_found": "The file went away after the list was made. Check the URI; then `quarantine retry`.",
    "unreachable": "Check the network and the credentials of the workers; then `quarantine retry`.",
    "unreadable": "Check the permissions, and that it is a file.",
    "empty_file": "Zero bytes: copy or download it again.",
    "not_media": "No video container, often an error page saved under a video's name, or a file without its index "
    "(moov). Download it again.",
    "still_image": "A picture. Take it off the list.",
    "no_video_stream": "Sound or cover art only. Take it off the list, or fetch it with its video stream.",
    "unsupported_codec": "No decoder for this codec here. Convert it to H.264, HEVC, VP9 or AV1.",
    "encrypted": "It is protected by encryption. Take it off the list.",
    "no_frames": "It opens and nothing decodes. Download it again.",
    "decode_error": "Damaged in the middle. Download it again; the message says how much came before.",
    "truncated": "It ends before the length it states: a download that broke off. Download it again.",
    "damaged_stream": "All frames come, some not as filmed. Download it again; where damage is bearable, raise "
    "shots.most_complaints.",
    "bad_timestamps": "Its clock is broken: write its stream into a new file (remux). shots.most_mended sets how much "
    "is borne.",
    "timestamp_gap": "Pictures are missing in its middle; what lies around is kept.",
    "frozen": "Long runs of the same picture: a broken recording; what lies around is kept.",
    "too_large": "It does not fit in memory or passes the limit of a download. Convert it to a smaller picture.",
    "no_such_span": "The file is shorter than the list says. Correct the list's times.",
    "time_limit": "Raise --time-limit, or look at the file: some never end. Then `quarantine retry`.",
    "out_of_memory": "Raise --memory-gib, or convert it to a smaller picture. Then `quarantine retry`.",
    "cpu_limit": "Raise --cpu-limit, or look at the file. Then `quarantine retry`.",
    "output_flood": "The decoder wrote text without end about it. Take it off the list, or convert it.",
    "forbidden": "The store refuses these credentials. Let the workers read it; then `quarantine retry`.",
    "too_slow": "It did not arrive in time. Raise fetch's time limit, or copy it nearer; then `quarantine retry`.",
    "crashed": "The decoder died of it. Convert it with another program; do not retry as it is.",
    "stage_error": "A fault of a stage, not of the file: its message and the run's log say where. Report it; after a "
    "fix, `quarantine retry`.",
    "vanished": "The file went away while it was read. Check where it lies; then `quarantine retry`.",
}
ELSE = "Look at the file. `quarantine retry --reason {reason}` has it taken again by the next run."


def advice(reason: str) -> str:
    """A sentence for a reason code; a general one where the code is not known here."""
    return ADVICE.get(reason, ELSE.format(reason=reason))
