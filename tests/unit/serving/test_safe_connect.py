"""Calls to strangers' URLs: real servers on loopback that redirect, drip, flood, compress and show false names."""

import datetime
import gzip
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dynamictrl.errors import InputError
from serving.media.fetching import Fetcher
from serving.media.safe_connect import Reach, call, checked_url, is_public, read_body

Reply = Callable[[socket.socket], None]


class Server:
    """A socket that does one thing to everyone who asks."""

    def __init__(self, reply: Reply, host: str = "127.0.0.1", port: int = 0):
        self.asked: list[bytes] = []
        self._reply = reply
        self._socket = socket.create_server((host, port))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(5)
            said = connection.recv(65536)
            if said.startswith(b"POST") and said.endswith(b"\r\n\r\n"):
                said += connection.recv(65536)
            self.asked.append(said)
            self._reply(connection)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(reply: Reply | bytes, host: str = "127.0.0.1", port: int = 0) -> Server:
        said = reply if callable(reply) else lambda connection: connection.sendall(reply)
        servers.append(Server(said, host, port))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def answer(body: bytes = b"bytes", status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def fetcher(*, seconds: float = 5.0, resolve: dict[str, Sequence[str]] | None = None, idle_s: float = 5.0) -> Fetcher:
    known = {"media.test": ["127.0.0.1"], **(resolve or {})}

    def ask(host: str, _port: int) -> Sequence[str]:
        if host not in known and not host.replace(".", "").isdigit():
            raise OSError("no such name")
        return known.get(host, [host])

    return Fetcher(Reach(private_hosts=("media.test",), resolve=ask), 10_000, seconds, idle_s)


def refused(fetch: Fetcher, url: str, target: Path) -> str:
    with pytest.raises(InputError) as problem:
        fetch.fetch(url, target)
    assert not target.exists()
    return problem.value.code


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1", "10.1.2.3", "172.31.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "198.18.0.1", "192.0.2.1", "240.0.0.1", "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254",
        "ff02::1", "::ffff:8.8.8.8", "::ffff:127.0.0.1", "::8.8.8.8", "64:ff9b::8.8.8.8", "64:ff9b:1::1",
        "2002:808:808::1", "2001::1", "2001:db8::1", "100::1", "fec0::1", "3fff::1", "5f00::1",
    ],
)  # fmt: skip
def test_reserved_addresses_are_not_public(text: str):
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", ["8.8.8.8", "1.1.1.1", "193.0.6.139", "2606:4700:4700::1111", "2a00:1450:4001::1"])
def test_the_open_internet_is_public(text: str):
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("file:///etc/passwd", "url_scheme"),
        ("ftp://example.com/a", "url_scheme"),
        ("gopher://example.com/", "url_scheme"),
        ("//example.com/a", "url_scheme"),
        ("https://", "bad_url"),
        ("https://user:word@example.com/", "bad_url"),
        ("https://example.com/a b", "bad_url"),
        ("https://example.com\\@evil.test/", "bad_url"),
        ("https://example.com/\r\nHost: x", "bad_url"),
        ("https://example.com:99999/", "url_port"),
        ("https://[::1", "bad_url"),
        ("https://example.com/" + "a" * 5000, "bad_url"),
        ("http://example.com:22/", "url_port"),
        ("http://example.com:6379/", "url_port"),
    ],
)
def test_a_url_that_must_not_be_called_is_told_by_its_text(url: str, code: str):
    with pytest.raises(InputError) as problem:
        checked_url(url, Reach())
    assert problem.value.code == code


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "0", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254",
     "[fe80::1]", "10.0.0.1"],
)  # fmt: skip
def test_private_hosts_are_refused_in_every_notation(host: str, serve: Callable[..., Server], tmp_path: Path):
    with pytest.raises(InputError) as problem, call(f"http://{host}/", Reach()):
        pass
    assert problem.value.code == "url_not_public"


def test_a_file_is_fetched_with_its_servers_name(serve: Callable[..., Server], tmp_path: Path):
    server = serve(answer(b"picture"))
    digest = fetcher().fetch(f"http://media.test:{server.port}/a.png?b=1", tmp_path / "medium")
    assert (tmp_path / "medium").read_bytes() == b"picture"
    assert len(digest) == 64
    head = server.asked[0].decode().split("\r\n")
    assert head[0] == "GET /a.png?b=1 HTTP/1.1"
    assert f"Host: media.test:{server.port}" in head
    assert "Accept-Encoding: identity" in head


@pytest.mark.parametrize("where", ["http://169.254.169.254/", "http://inside.test/", "//127.0.0.1/", "file:///etc/passwd",
                                   "http://media.test:1@127.0.0.1/"])  # fmt: skip
def test_a_redirect_is_looked_at_anew(where: str, serve: Callable[..., Server], tmp_path: Path):
    server = serve(answer(status="302 Found", Location=where))
    code = refused(fetcher(resolve={"inside.test": ["10.0.0.1"]}), f"http://media.test:{server.port}/", tmp_path / "m")
    assert code in ("url_not_public", "url_scheme", "bad_url")


def test_redirects_are_followed_and_counted(serve: Callable[..., Server], tmp_path: Path):
    end = serve(answer(b"there"))
    start = serve(answer(status="307 Temporary Redirect", Location=f"http://media.test:{end.port}/x"))
    fetcher().fetch(f"http://media.test:{start.port}/", tmp_path / "medium")
    assert (tmp_path / "medium").read_bytes() == b"there"
    for location in ("/again", ""):
        loop = serve(answer(status="302 Found", Location=location))
        assert refused(fetcher(), f"http://media.test:{loop.port}/", tmp_path / "n") == "url_redirects"
        assert len(loop.asked) == (4 if location else 1)


def test_a_name_is_resolved_once_and_the_address_that_was_looked_at_is_called(
    serve: Callable[..., Server], tmp_path: Path
):
    first = serve(answer(b"first"), host="127.0.0.2")
    second = serve(answer(b"second"), host="127.0.0.3", port=first.port)
    answers = iter([["127.0.0.2"], ["127.0.0.3"]])
    reach = Reach(private_hosts=("rebinding.test",), resolve=lambda *_: next(answers))
    Fetcher(reach, 1000, 5.0).fetch(f"http://rebinding.test:{first.port}/", tmp_path / "medium")
    assert (tmp_path / "medium").read_bytes() == b"first"
    assert second.asked == []


def test_one_private_address_among_public_ones_is_enough_to_refuse(tmp_path: Path):
    two_faced = fetcher(resolve={"two.test": ["93.184.215.14", "127.0.0.1"]})
    assert refused(two_faced, "http://two.test/", tmp_path / "m") == "url_not_public"
    assert refused(fetcher(), "http://nowhere.test/", tmp_path / "m") == "url_unreachable"
    assert refused(fetcher(resolve={"none.test": []}), "http://none.test/", tmp_path / "m") == "url_unreachable"


@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"])
def test_a_server_that_drips_is_cut_off(before: bytes, serve: Callable[..., Server], tmp_path: Path):
    def drip(connection: socket.socket) -> None:
        connection.sendall(before)
        while True:
            connection.sendall(b"H" if not before else b"a")
            time.sleep(0.02)

    server, began = serve(drip), time.monotonic()
    assert refused(fetcher(seconds=0.4), f"http://media.test:{server.port}/", tmp_path / "m") == "url_timeout"
    assert time.monotonic() - began < 10


def test_a_server_that_falls_silent_is_cut_off(serve: Callable[..., Server], tmp_path: Path):
    server = serve(lambda connection: time.sleep(2))
    url = f"http://media.test:{server.port}/"
    assert refused(fetcher(idle_s=0.2), url, tmp_path / "m") == "url_timeout"


def test_an_endless_or_too_long_body_is_cut_off(serve: Callable[..., Server], tmp_path: Path):
    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"400\r\n" + b"a" * 1024 + b"\r\n")

    for server in (serve(endless), serve(answer(b"a" * 20_000)), serve(b"HTTP/1.0 200 OK\r\n\r\n" + b"a" * 20_000)):
        assert refused(fetcher(), f"http://media.test:{server.port}/", tmp_path / "m") == "too_large"


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (answer(gzip.compress(b"0" * 10**6), Content_Encoding="gzip"), "url_encoded"),
        (answer(b"", status="200 OK"), "empty_file"),
        (answer(b"gone", status="404 Not Found"), "url_status"),
        (answer(b"part", status="206 Partial Content"), "url_status"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "url_unreachable"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\nshort", "url_unreachable"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: " + b"b" * 200_000 + b"\r\n\r\n", "url_unreachable"),
        (b"", "url_unreachable"),
    ],
)
def test_an_answer_that_is_no_medium_is_refused(reply: bytes, code: str, serve: Callable[..., Server], tmp_path: Path):
    server = serve(reply)
    assert refused(fetcher(), f"http://media.test:{server.port}/", tmp_path / "m") == code


def certificate(folder: Path, name: str) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = folder / f"{name}.pem"
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, *form) + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_a_certificate_must_be_the_servers_own(serve: Callable[..., Server], tmp_path: Path):
    pem = certificate(tmp_path, "good.test")
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(pem)
    shown: list[str | None] = []
    server_side.sni_callback = lambda _socket, name, _context: shown.append(name)
    listener = socket.create_server(("127.0.0.1", 0))

    def talk() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with suppress(OSError), server_side.wrap_socket(connection, server_side=True) as secure:
                    secure.recv(65536)
                    secure.sendall(answer(b"secret"))

    threading.Thread(target=talk, daemon=True).start()
    port = listener.getsockname()[1]
    reach = Reach(private_hosts=("good.test", "bad.test"), resolve=lambda *_: ["127.0.0.1"],
                  tls=ssl.create_default_context(cafile=str(pem)))  # fmt: skip
    with call(f"https://good.test:{port}/", reach) as reply:
        assert read_body(reply, 3) == b"sec"
    with pytest.raises(InputError, match="certificate") as problem, call(f"https://bad.test:{port}/", reach):
        pass
    assert problem.value.code == "url_unreachable"
    with pytest.raises(InputError, match="certificate"), call(f"https://good.test:{port}/", replace_tls(reach)):
        pass
    assert shown == ["good.test", "bad.test", "good.test"]
    listener.close()


def replace_tls(reach: Reach) -> Reach:
    return Reach(private_hosts=reach.private_hosts, resolve=reach.resolve)


def test_a_message_is_posted_and_no_redirect_followed(serve: Callable[..., Server]):
    server = serve(answer(status="307 Temporary Redirect", Location="http://169.254.169.254/"))
    reach = Reach(private_hosts=(f"127.0.0.1:{server.port}",))
    with call(f"http://127.0.0.1:{server.port}/hook", reach, method="POST", headers=[("webhook-id", "1")],
              content=b"{}") as reply:  # fmt: skip
        assert reply.status == 307
    assert server.asked[0].startswith(b"POST /hook HTTP/1.1")
    assert server.asked[0].endswith(b"\r\n\r\n{}")
