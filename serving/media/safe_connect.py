"""Calls to addresses that strangers name: media to be fetched, webhooks to be told. The one door out of the service.

A name is resolved once, every address it has must be a public one, and the connection goes to the address that was
looked at: a name that answers otherwise a moment later (DNS rebinding) gains nothing. The server's name still goes into
TLS and the Host header. Nothing is redirected here: whoever follows a redirect asks for the next address anew.

| code | the call |
|---|---|
| bad_url | is no URL: no host, user names or passwords in it, control characters, too long |
| url_scheme | is neither http nor https |
| url_port | is to a port that no web server should be on |
| url_not_public | leads into a private, loopback, link-local or otherwise reserved network |
| url_unreachable | finds no such name, no server, or a certificate that is not the server's |
| url_timeout | takes longer than it may, all of it or between two bytes |
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as ResolvingTooLongError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from dynamictrl.errors import InputError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]
"""A host's name and a port to its addresses; OSError where there are none."""

LONGEST_URL = 4096
PORTS = (80, 443, 8080, 8443)
CONNECT_S = 5.0
"""Seconds for a name's resolution, a connection, and a TLS handshake, each."""

_REFUSED = tuple(
    ipaddress.ip_network(text)
    for text in (
        # Beyond what `is_global` says, which has changed from one Python to the next.
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        # Of IPv6 only 2000::/3 is in use; in it stand Teredo and ORCHID, documentation, 6to4, and SRv6.
        "2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20",
    )
)  # fmt: skip
_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
_resolvers = ThreadPoolExecutor(16, thread_name_prefix="resolve")


def is_public(address: Address) -> bool:
    """Whether an address is some machine of the open internet, and cannot be one of ours.

    IPv6 addresses that wrap an IPv4 one (mapped, compatible, NAT64, 6to4, Teredo) are none, whatever they wrap.
    """
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_IPV6:
        return False
    return address.is_global and not any(address in network for network in _REFUSED)


@dataclass(frozen=True)
class Reach:
    """Who may be called."""

    private_hosts: tuple[str, ...] = ()
    """Hosts ("media.local", "10.0.0.7") or hosts with a port ("localhost:9000") that may be in a private network and on
    any port: on-premise stores and tests."""
    resolve: Resolve | None = None
    """Asks the names' server; the system's by default."""
    tls: ssl.SSLContext | None = None
    """Which certificates are believed; the system's and certifi's by default."""

    def trusts(self, host: str, port: int) -> bool:
        return host in self.private_hosts or f"{host}:{port}" in self.private_hosts

    def addresses(self, host: str, port: int) -> list[str]:
        """Where `host` is, after a look at every answer; InputError url_not_public, url_unreachable, url_timeout."""
        future: Future[Sequence[str]] = _resolvers.submit(self.resolve or system_addresses, host, port)
        try:
            found = list(dict.fromkeys(future.result(CONNECT_S)))
        except ResolvingTooLongError:
            future.cancel()
            raise InputError(f"the name {host} was not resolved within {CONNECT_S:g} s", code="url_timeout") from None
        except (OSError, UnicodeError) as problem:
            raise InputError(f"the name {host} cannot be resolved", code="url_unreachable") from problem
        if not found:
            raise InputError(f"the name {host} has no address", code="url_unreachable")
        # One private address among public ones is a trap as well: which of them is called would be chance.
        if not self.trusts(host, port) and not all(is_public(ipaddress.ip_address(a.partition("%")[0])) for a in found):
            raise InputError(
                f"{host} is in a private or reserved network, which this service does not call", code="url_not_public"
            )
        return found


def system_addresses(host: str, port: int) -> list[str]:
    """What the system's resolver says, numbers in every notation included (0x7f.1 is 127.0.0.1 here, too)."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def checked_url(text: str, reach: Reach) -> httpx.URL:
    """A URL that may be called as far as its text can say; InputError bad_url, url_scheme, url_port. No network."""
    if len(text) > LONGEST_URL or any(ord(c) < 33 or ord(c) == 127 for c in text) or "\\" in text:
        raise InputError(f"a URL has at most {LONGEST_URL} characters, no blanks and no backslashes", code="bad_url")
    try:
        url = httpx.URL(text)
        host, port = url.raw_host.decode("ascii"), url.port
    except (httpx.InvalidURL, UnicodeError, ValueError, TypeError) as problem:
        raise InputError(f"{text[:100]!r} is no URL", code="bad_url") from problem
    if url.scheme not in ("http", "https"):
        raise InputError(f"the URL begins with {url.scheme[:20]!r}; only http and https are called", code="url_scheme")
    if not host or url.userinfo:
        raise InputError("the URL must have a host, and no user name or password in it", code="bad_url")
    port = port or (443 if url.scheme == "https" else 80)
    if port not in PORTS and not (port < 65536 and reach.trusts(host, port)):
        raise InputError(
            f"the URL's port is {port}; only {', '.join(map(str, PORTS))} are called", code="url_port"
        )  # fmt: skip
    return url


@contextmanager
def call(
    text: str,
    reach: Reach,
    *,
    method: str = "GET",
    headers: Iterable[tuple[str, str]] = (),
    content: bytes = b"",
    seconds: float = 30.0,
    idle_s: float = 10.0,
) -> Iterator[httpcore.Response]:
    """One request and its answer, whose body is read inside the block with `read_body` or `iter_stream`.

    `seconds` bounds all of it, to the last byte read in the block; `idle_s` each wait for the next one. Raises
    InputError with a code of the table above, in the block as well. The status is the caller's to judge.
    """
    url = checked_url(text, reach)
    backend = _GuardedNetwork(reach, time.monotonic() + seconds)
    timeouts = {"connect": CONNECT_S, "read": idle_s, "write": idle_s, "pool": 1.0}
    given = [("Host", url.netloc.decode("ascii")), ("Accept-Encoding", "identity"), *headers]
    context = reach.tls or httpx.create_ssl_context(trust_env=False)
    target = httpcore.URL(
        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
    )  # fmt: skip
    with httpcore.ConnectionPool(ssl_context=context, network_backend=backend, max_connections=1) as pool:
        try:
            sent = [(name.encode("ascii"), value.encode("utf-8")) for name, value in given]
            with pool.stream(
                method, target, headers=sent, content=content or None, extensions={"timeout": timeouts}
            ) as response:
                yield response
        except httpcore.TimeoutException as problem:
            raise InputError(f"{url.host} took too long to answer", code="url_timeout") from problem
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol) as problem:
            raise InputError(f"{url.host} cannot be reached: {_reason(problem)}", code="url_unreachable") from problem


def read_body(response: httpcore.Response, most: int) -> bytes:
    """An answer's first bytes, `most` at the most; the rest is not waited for."""
    body = bytearray()
    for chunk in response.iter_stream():
        body += chunk
        if len(body) >= most:
            break
    return bytes(body[:most])


def _reason(problem: Exception) -> str:
    text = str(problem)
    return "its certificate is not believed" if "CERTIFICATE_VERIFY_FAILED" in text else text[:120] or "no answer"


class _GuardedNetwork(httpcore.NetworkBackend):
    """Connections to addresses that were looked at, all of them within one deadline."""

    def __init__(self, reach: Reach, deadline: float):
        self._reach, self._deadline = reach, deadline
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        problem: Exception = httpcore.ConnectError("no address")
        for address in self._reach.addresses(host.strip("[]"), port)[:4]:
            try:
                left = _within(self._deadline, timeout)
                stream = self._inner.connect_tcp(address, port, left, local_address, socket_options)
                return _GuardedStream(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failed:
                problem = failed
        raise problem

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        raise httpcore.UnsupportedProtocol("sockets of this machine are not called")


class _GuardedStream(httpcore.NetworkStream):
    """A connection that ends at a deadline, however little at a time the other side sends."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: float):
        self._inner, self._deadline = inner, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _within(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _within(self._deadline, timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _within(self._deadline, timeout)
        return _GuardedStream(self._inner.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - httpcore's
        return self._inner.get_extra_info(info)


def _within(deadline: float, timeout: float | None) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the whole took too long")
    return left if timeout is None else min(left, timeout)
