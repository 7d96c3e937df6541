"""Media that are named instead of sent: ids, URLs, data URLs, and what a path would look like."""

from __future__ import annotations

from collections.abc import Iterator

from tests.unit.serving.malformed.calls import FILE, VIDEO
from tests.unit.serving.malformed.case import Case, data_url, with_fields, with_json
from tests.unit.serving.malformed.pictures import bomb, saved


def cases() -> Iterator[Case]:
    yield from _references()
    yield from _media_as_text()


def _references() -> Iterator[Case]:
    kind = "reference"
    for text in (
        "/etc/passwd",
        "../../../etc/passwd",
        "C:\\Windows\\win.ini",
        "\\\\server\\share\\a",
        "~/.ssh/id_rsa",
        "a\0b",
        "file_../../../../etc/passwd",
        "file_" + "0" * 31 + "/",
        "file_" + "0" * 33,
        "file_" + "٠" * 32,
        "FILE_" + "0" * 32,
        VIDEO,
        "file:/etc/passwd",
        "a.mp4",
        "-i",
        "@/etc/passwd",
        "|ls",
        "$(ls)",
        "%2e%2e%2f",
        "・" * 50,
    ):
        yield with_json(kind, f"driving_video {text!r}", "bad_media_reference", "driving_video", driving_video=text)
    yield with_json(kind, "a file that is not there", "file_not_found", "driving_video", driving_video=FILE)
    for name, value in {
        "a number": 1,
        "true": True,
        "an array": ["a"],
        "an empty object": {},
        "two keys": {"file_id": FILE, "url": "x"},
        "a path": {"path": "/etc/passwd"},
        "a number for an id": {"file_id": 5},
        "an object in an object": {"url": {"url": "x"}},
        "an id that is a path": {"file_id": "../x"},
    }.items():
        code = "file_not_found" if name == "an id that is a path" else "bad_media_reference"
        yield with_json(kind, f"driving_video is {name}", code, "driving_video", driving_video=value)
    for text in ("b'\\x89PNG'", "bytearray(b'a')", "<_io.BytesIO object at 0x7f>"):
        yield with_fields(kind, f"the text of {text[:10]}", "bytes_as_text", "mask", mask=text)
    yield with_fields(kind, "JSON in a field, cut", "bad_media_reference", "mask", mask='{"file_id": ')
    for url, code in {
        "file:///etc/passwd": "url_scheme",
        "ftp://example.com/a.mp4": "url_scheme",
        "gopher://127.0.0.1:6379/_": "url_scheme",
        "rtsp://127.0.0.1/a": "url_scheme",
        "concat://etc/passwd": "url_scheme",
        "http://127.0.0.1/a.mp4": "url_not_public",
        "http://localhost/a.mp4": "url_not_public",
        "http://[::1]/a.mp4": "url_not_public",
        "http://0/a.mp4": "url_not_public",
        "http://2130706433/a.mp4": "url_not_public",
        "http://0x7f.1/a.mp4": "url_not_public",
        "http://169.254.169.254/latest/meta-data/": "url_not_public",
        "http://[::ffff:10.0.0.1]/": "url_not_public",
        "https://user:word@example.com/": "bad_url",
        "https://example.com\\@127.0.0.1/": "bad_url",
        "https:///a": "bad_url",
        "https://exa mple.com/": "bad_url",
        "http://127.0.0.1:22/": "url_port",
        "http://example.com:6379/": "url_port",
        "https://example.com/" + "a" * 5000: "bad_url",
    }.items():
        yield with_json("URL", f"URL {url}", code, "driving_video", driving_video={"url": url})


def _media_as_text() -> Iterator[Case]:
    kind = "data URL"
    for name, url, code in (
        ("without a comma", "data:image/png;base64", "bad_data_url"),
        ("with no base64", "data:image/png;base64,###", "bad_data_url"),
        ("of nothing", "data:image/png;base64,", "empty_file"),
        ("of letters outside ASCII", "data:image/png;base64,ÄÖÜ", "bad_data_url"),
        ("of a text", data_url(b"hello", "image/png"), "not_media"),
        ("of a bomb", data_url(bomb(9_000, 9_000), "image/png"), "image_too_large"),
        ("of a picture cut in half", data_url(saved("PNG")[:900], "image/png"), "decode_error"),
        ("too long", "data:image/png;base64," + "A" * 9_000_000, "data_url_too_long"),
        ("in percent signs", "data:text/html,%3Cscript%3E", "not_media"),
    ):
        yield with_json(kind, f"data URL {name}", code, "input_reference", input_reference=url)
