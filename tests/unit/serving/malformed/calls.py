"""Bodies, forms, fields and paths that are wrong, whatever the media are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from tests.unit.serving.malformed.case import ANY, Case, Good, raw, with_fields, with_json
from tests.unit.serving.malformed.pictures import bomb

FILE = "file_" + "0" * 32
VIDEO = "video_" + "0" * 32
VALUE = frozenset(
    {
        "invalid_value",
        "missing_parameter",
        "quality",
        "seconds_and_num_frames",
        "idempotency_key",
        "too_few_frames",
        "unknown_parameter",
        "bad_prompt",
    }
    | {
        f"bad_{name}"
        for name in ("seed", "num_frames", "num_inference_steps", "guidance_scale", "size", "fps", "seconds", "wait")
    }
)
PLACE = frozenset(
    {"unknown_route", "video_not_found", "file_not_found", "model_not_found", "invalid_value", "unknown_cursor"}
)
UPLOAD = frozenset({"content_type", "missing_parameter", "empty_file", "invalid_value", "bad_form"})
FOLLOW_UP = frozenset({"unknown_parameter", "not_media", "still_image", "image_too_large", "missing_parameter"})
FORM = "multipart/form-data; boundary=x"


def cases() -> Iterator[Case]:
    yield from _bodies()
    yield from _forms()
    yield from _values()
    yield from _paths()
    yield from _other_calls()


def _bodies() -> Iterator[Case]:
    kind = "body"
    yield raw(kind, "no content type", "content_type", None, b"prompt=p")
    for name in ("text/plain", "application/xml", "multipart/mixed; boundary=x", "image/png", "a/b/c"):
        yield raw(kind, f"content type {name!r}", "content_type", name, b"a")
    for name, text in {
        "empty": b"",
        "text": b"hello",
        "an array": b"[]",
        "a number": b"1",
        "null": b"null",
        "a string": b'"prompt"',
        "cut": b'{"prompt": "p',
        "two objects": b"{}{}",
        "no UTF-8": b'{"prompt": "\xff\xfe"}',
        "nested twenty thousand deep": b'{"a":' * 20_000,
        "arrays twenty thousand deep": b"[" * 20_000,
        "a number of a million digits": b'{"seed": ' + b"9" * 1_000_000 + b"}",
    }.items():
        yield raw(kind, f"JSON: {name}", "invalid_json", "application/json", text)
    yield raw(
        kind,
        "JSON of fifty megabytes",
        "text_too_long",
        "application/json",
        b'{"prompt": "' + b"a" * 50_000_000 + b'"}',
    )


def part(name: str, value: bytes, more: str = "") -> bytes:
    return (
        b"--x\r\nContent-Disposition: form-data; name=" + name.encode() + more.encode() + b"\r\n\r\n" + value + b"\r\n"
    )


def _forms() -> Iterator[Case]:
    kind = "form"
    prompt, end = part('"prompt"', b"p"), b"--x--\r\n"
    for name, content_type, body in (
        ("no boundary stated", "multipart/form-data", prompt + end),
        ("a boundary of 1000 characters", "multipart/form-data; boundary=" + "x" * 1000, prompt + end),
        ("another boundary than stated", "multipart/form-data; boundary=y", prompt + end),
        ("a part without a name", FORM, b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n" + end),
        ("a part without headers", FORM, b"--x\r\n\r\na\r\n" + end),
        ("a header without a colon", FORM, b"--x\r\nnonsense\r\n\r\na\r\n" + end),
        ("a header of 100 kB", FORM, b"--x\r\nA: " + b"b" * 100_000 + b"\r\n\r\na\r\n" + end),
        ("a hundred headers in a part", FORM, b"--x\r\n" + b"A: b\r\n" * 100 + b"\r\na\r\n" + end),
        ("a hundred fields", FORM, b"".join(part(f'"f{i}"', b"1") for i in range(100)) + end),
        ("a hundred files", FORM, b"".join(part(f'"f{i}"', b"1", '; filename="a"') for i in range(100)) + end),
        ("a field of ten megabytes", FORM, part('"prompt"', b"a" * 10_000_000) + end),
        ("fields of forty megabytes", FORM, b"".join(part(f'"f{i}"', b"a" * 8_000_000) for i in range(5)) + end),
        (
            "urlencoded, five hundred fields",
            "application/x-www-form-urlencoded",
            b"&".join(b"a%d=1" % i for i in range(500)),
        ),
    ):
        yield raw(kind, name, frozenset({"bad_form", "text_too_long"}), content_type, body)
    nested = part('"prompt"', b"--y\r\n" + part('"prompt"', b"q"))
    urlencoded = "application/x-www-form-urlencoded"
    yield raw(kind, "cut within a part", "missing_parameter", FORM, prompt[:40], "prompt")
    yield raw(kind, "no field at all", "missing_parameter", FORM, end, "prompt")
    yield raw(kind, "a form within a form", "repeated_parameter", FORM, nested + end, "prompt")
    yield raw(kind, "urlencoded, no media", "missing_input_reference", urlencoded, b"prompt=p", "input_reference")
    yield raw(kind, "urlencoded, broken escapes", "unknown_parameter", urlencoded, b"prompt=%zz%&%=%", "%")
    for name in ("prompt", "seed", "input_reference"):
        yield Case(kind, f"{name} twice", "repeated_parameter", name, _twice(name))
    yield Case(
        kind,
        "a file for a plain value",
        "invalid_value",
        "prompt",
        lambda good: {"files": {**good.files(), "prompt": ("p.txt", b"p")}},
    )
    yield Case(
        kind,
        "a plain value for a file",
        "bad_media_reference",
        "input_reference",
        lambda good: {"data": good.fields(input_reference="me"), "files": good.files(input_reference=None)},
    )


def _twice(name: str) -> Any:  # noqa: ANN401
    def build(good: Good) -> Mapping[str, Any]:
        files: list[Any] = [*good.files().items(), ("prompt", (None, b"p")), ("seed", (None, b"1"))]
        return {"files": [*files, next(pair for pair in files if pair[0] == name)]}

    return build


def _values() -> Iterator[Case]:
    kind = "values"
    for name, param, code, fields in (
        ("prompt too long", "prompt", "prompt_too_long", {"prompt": "a" * 5000}),
        ("prompt with a NUL", "prompt", "bad_prompt", {"prompt": "a\0b"}),
        ("seed below zero", "seed", VALUE, {"seed": -1}),
        ("seed no number", "seed", VALUE, {"seed": "lucky"}),
        ("seed beyond 64 bits", "seed", VALUE, {"seed": 2**64}),
        ("seed infinite", "seed", VALUE, {"seed": "1e999"}),
        ("frames none", "num_frames", VALUE, {"num_frames": 0}),
        ("frames no legal count", "num_frames", VALUE, {"num_frames": 6}),
        ("frames a thousand million", "num_frames", VALUE, {"num_frames": 10**9 + 1}),
        ("frames in Thai digits too many", "num_frames", VALUE, {"num_frames": "๙๙๙"}),
        ("frames more than the video's", "num_frames", VALUE, {"num_frames": 33}),
        ("steps none", "num_inference_steps", VALUE, {"num_inference_steps": 0}),
        ("steps a million", "num_inference_steps", VALUE, {"num_inference_steps": 10**6}),
        ("guidance not a number", "guidance_scale", VALUE, {"guidance_scale": "nan"}),
        ("guidance infinite", "guidance_scale", VALUE, {"guidance_scale": "inf"}),
        ("size of nothing", "size", VALUE, {"size": "0x0"}),
        ("size of a pixel", "size", VALUE, {"size": "1x1"}),
        ("size no multiple of 16", "size", VALUE, {"size": "65x97"}),
        ("size of everything", "size", VALUE, {"size": "99999x99999"}),
        ("size of ten thousand digits", "size", VALUE, {"size": "9" * 10_000 + "x16"}),
        ("size in words", "size", VALUE, {"size": "large"}),
        ("size negative", "size", VALUE, {"size": "-64x96"}),
        ("size of a width alone", "size", "bad_size", {"width": 64}),
        ("rate none", "fps", VALUE, {"fps": 0}),
        ("rate not a number", "fps", VALUE, {"fps": "nan"}),
        ("seconds a year", "seconds", VALUE, {"seconds": 31_536_000}),
        ("seconds negative", "seconds", VALUE, {"seconds": -1}),
        ("seconds and frames", "seconds", VALUE, {"seconds": 1, "num_frames": 5}),
        ("wait a day", "wait", VALUE, {"wait": 86_400}),
        ("wait negative", "wait", VALUE, {"wait": -1}),
        ("two clips", "n", "invalid_value", {"n": 2}),
        ("quality unknown", "quality", VALUE, {"quality": "best"}),
        ("model unknown", "model", "model_not_found", {"model": "../../etc/passwd"}),
        ("model of a million characters", "model", "model_not_found", {"model": "a" * 1_000_000}),
        ("control type unknown", "control_type", "control_type", {"control_type": "depth"}),
        ("parameter unknown", "video_path", "unknown_parameter", {"video_path": "/etc/passwd"}),
        ("parameter that would write", "output_path", "unknown_parameter", {"output_path": "/tmp/x"}),
        ("parameter of Python's", "__class__", "unknown_parameter", {"__class__": "x"}),
        ("parameter in another script", "пароль", "unknown_parameter", {"пароль": "x"}),
        ("parameter in brackets twice", "seed[a][b]", "unknown_parameter", {"seed[a][b]": "1"}),
    ):
        yield with_fields(kind, name, code, param, **fields)
    for name, param, fields in (
        ("prompt a number", "prompt", {"prompt": 1}),
        ("prompt null", "prompt", {"prompt": None}),
        ("prompt an object", "prompt", {"prompt": {"a": 1}}),
        ("prompt with half a surrogate", "prompt", {"prompt": "a\ud800b"}),
        ("seed a fraction", "seed", {"seed": 1.5}),
        ("size an array", "size", {"size": [64, 96]}),
        ("keep_audio a word", "keep_audio", {"keep_audio": "perhaps"}),
        ("quality with half a surrogate", "quality", {"quality": "\udfff"}),
        ("parameter with half a surrogate", "\\ud800", {"\ud800": 1}),
    ):
        yield with_json(kind, f"JSON: {name}", VALUE, param, **fields)
    yield Case(kind, "no prompt", VALUE, "prompt", lambda good: {"files": good.files()})
    yield Case(
        kind,
        "no image",
        "missing_input_reference",
        "input_reference",
        lambda good: {"data": good.fields(), "files": good.files(input_reference=None)},
    )
    yield Case(
        kind,
        "no motion",
        "missing_video",
        "driving_video",
        lambda good: {"data": good.fields(), "files": good.files(pose_video=None)},
    )
    yield Case(
        kind,
        "two motions",
        "two_videos",
        "pose_video",
        lambda good: {"data": good.fields(), "files": good.files(driving_video=("d.mp4", good.pose))},
    )
    for name, value in {"empty": "", "of 300 characters": "k" * 300}.items():
        yield Case(
            kind,
            f"idempotency key {name}",
            VALUE,
            "Idempotency-Key",
            lambda good, value=value: {
                "data": good.fields(),
                "files": good.files(),
                "headers": {"Idempotency-Key": value},
            },
        )


def _paths() -> Iterator[Case]:
    kind = "path"
    for name in (
        "..",
        "../../etc/passwd",
        "%00",
        "video_" + "0" * 31,
        "video_" + "g" * 32,
        "é" * 40,
        "a" * 3000,
        FILE,
        VIDEO,
        "video_" + "0" * 32 + "\0",
        "preflight/../..",
    ):
        for method, tail in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            url = "/v1/videos/" + quote(name, safe="%") + tail
            yield Case(kind, f"{method} {url}", PLACE, ANY, lambda _, m=method, u=url: {"method": m, "url": u})
    for url, param in (
        ("/v1/files/..%2f..%2fetc%2fpasswd/content", None),
        (f"/v1/files/{VIDEO}/content", "file_id"),
        (f"/v1/files/{FILE}", "file_id"),
        ("/v1/models/..%2f..%2fetc", "model"),
        ("/v2/videos", None),
        ("/v1/videos?limit=0", "limit"),
        ("/v1/videos?limit=x", "limit"),
        ("/v1/videos?order=up", "order"),
        ("/v1/videos?after=../x", "after"),
        ("/v1/files?after=%00", "after"),
        ("/v1/files?limit=1e9", "limit"),
        (f"/v1/videos/{VIDEO}/content?variant=../../x", "variant"),
    ):
        yield Case(kind, f"GET {url}", PLACE, param, lambda _, u=url: {"method": "GET", "url": u})


def _other_calls() -> Iterator[Case]:
    kind = "other calls"
    for method, url in (
        ("PUT", "/v1/videos"),
        ("PATCH", f"/v1/videos/{VIDEO}"),
        ("POST", "/healthz"),
        ("TRACE", "/v1/videos"),
    ):
        yield Case(
            kind, f"{method} {url}", "method_not_allowed", None, lambda _, m=method, u=url: {"method": m, "url": u}
        )
    for name, body in {
        "no body": b"",
        "an array": b"[]",
        "no prompt": b"{}",
        "a long prompt": json.dumps({"prompt": "a" * 5000}).encode(),
        "another field": b'{"prompt": "p", "seed": 1}',
    }.items():
        yield Case(
            kind,
            f"remix with {name}",
            "video_not_found",
            "video_id",
            lambda _, b=body: {
                "url": f"/v1/videos/{VIDEO}/remix",
                "content": b,
                "headers": {"content-type": "application/json"},
            },
        )
    yield Case(
        kind, "cancel of nothing", "video_not_found", "video_id", lambda _: {"url": f"/v1/videos/{VIDEO}/cancel"}
    )
    for name, build in {
        "no form": {"content": b"a", "headers": {"content-type": "text/plain"}},
        "no file": {"files": {"purpose": (None, b"x")}},
        "an empty file": {"files": {"file": ("a", b"")}},
        "a text for a file": {"data": {"file": "/etc/passwd"}},
        "a purpose of 100 characters": {"files": {"file": ("a", b"a"), "purpose": (None, b"x" * 100)}},
        "three files": {"files": [("file", ("a", b"a"))] * 3},
    }.items():
        yield Case(kind, f"upload with {name}", UPLOAD, ANY, lambda _, b=build: {"url": "/v1/files", **b})
    for path in ("edits", "extensions", "characters"):
        yield Case(
            kind,
            f"{path} without a video",
            FOLLOW_UP,
            ANY,
            lambda _, p=path: {"url": f"/v1/videos/{p}", "data": {"prompt": "p"}, "files": {"none": (None, b"")}},
        )
        for name, data in (("a text", b"hello"), ("a bomb", bomb(9_000, 9_000))):
            yield Case(
                kind,
                f"{path} of {name}",
                FOLLOW_UP,
                ANY,
                lambda good, p=path, d=data: {
                    "url": f"/v1/videos/{p}",
                    "data": {"seconds": "1", "prompt": "p"} if p != "characters" else {"name": "n"},
                    "files": {"video": ("a.mp4", d)}
                    | ({"pose_video": ("p.mp4", good.pose)} if p == "extensions" else {}),
                },
            )
