"""The addresses that people type and strangers send: multiaddrs, checked before anything is started or dialled.

A place to listen is ``/ip4/0.0.0.0/tcp/4001``, a peer to join is such a place and who must be there:
``/ip4/203.0.113.7/tcp/4001/p2p/12D3KooW...``. TCP only: the libp2p daemon can be crashed by a hostile QUIC server that
it dials, and a WebSocket is a web request to whatever a stranger names.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from routing.domain import PeerId
from routing.errors import ConfigError

LOCAL = "local"
NOWHERE = "nowhere"
_LISTEN_EXAMPLE = "/ip4/0.0.0.0/tcp/4001"
_ANNOUNCE_EXAMPLE = "/ip4/203.0.113.7/tcp/4001"
_PEER_EXAMPLE = "/ip4/203.0.113.7/tcp/4001/p2p/12D3KooW..."
_MACHINES = {"ip4", "ip6", "dns", "dns4", "dns6"}
_OTHER_TRANSPORTS = {"udp", "quic", "quic-v1", "webtransport", "webrtc-direct", "ws", "wss", "tls", "http", "https"}


def check_listen(text: str) -> str:
    """An address where this machine can listen, as typed but for blanks around it; port 0 is any free port.

    Raises:
        ConfigError: the text is none; the message says how one is written.
    """
    text, parts = _parse(text, "an address to listen at", _LISTEN_EXAMPLE)
    if parts[0][0] not in ("ip4", "ip6") or [name for name, _ in parts[1:]] != ["tcp"]:
        raise _refused(text, "an address to listen at", _LISTEN_EXAMPLE)
    return text


def check_announce(text: str) -> str:
    """An address where others can dial this machine: like one to listen at, but a name will do and port 0 won't.

    Raises:
        ConfigError: the text is none; the message says how one is written.
    """
    text, parts = _parse(text, "an address to announce", _ANNOUNCE_EXAMPLE)
    if not _is_reachable(parts) or parts[1][1] == "0" or parts[-1][0] == "p2p":
        raise _refused(text, "an address to announce", _ANNOUNCE_EXAMPLE)
    return text


def check_peer(text: str) -> str:
    """The address of a peer, its id at the end, as typed but for blanks around it.

    Raises:
        ConfigError: the text is none; the message says how one is written.
    """
    peer, address = split_peer(text)
    return f"{address}/p2p/{peer}"


def split_peer(text: str) -> tuple[PeerId, str]:
    """Who a peer is and where: the id at the end, and the address before ``/p2p/``.

    Raises:
        ConfigError: the text is no peer's address; the message says how one is written.
    """
    text, parts = _parse(text, "a peer's address", _PEER_EXAMPLE)
    if not _is_reachable(parts) or parts[-1][0] != "p2p":
        raise _refused(text, "a peer's address", _PEER_EXAMPLE)
    address, _, peer = text.rpartition("/p2p/")
    return PeerId(peer), address


def is_dialled(address: str) -> bool:
    """Would we dial this? It may be what a stranger made up."""
    try:
        return _is_reachable([(protocol.name, value) for protocol, value in Multiaddr(address).items()])
    except (MultiaddrError, ValueError):
        return False


def is_loopback(address: str) -> bool:
    """Does nobody but this machine reach the address?"""
    return address.startswith(("/ip4/127.", "/ip6/::1/"))


def place_of(addresses: Iterable[str]) -> str:
    """Where in the network a peer says that it is: many ids are free, many places are not.

    The place of the first public address: the first 16 bits of IPv4, the first 32 of IPv6, the last two labels of a
    name. ``LOCAL`` if all are private or loopback, ``NOWHERE`` if there is none that could be dialled.
    """
    found = NOWHERE
    for address in addresses:
        _, kind, host, *_ = (*address.split("/"), "", "")
        place = _place_of_host(kind, host)
        if place not in (LOCAL, NOWHERE):
            return place
        if place == LOCAL:
            found = LOCAL
    return found


@functools.lru_cache(maxsize=8192)
def _place_of_host(kind: str, host: str) -> str:
    if kind in ("dns", "dns4", "dns6") and host.strip("."):
        return ".".join(host.lower().strip(".").split(".")[-2:])
    if kind not in ("ip4", "ip6"):
        return NOWHERE
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        return NOWHERE
    if isinstance(number, ipaddress.IPv6Address) and number.ipv4_mapped is not None:
        number = number.ipv4_mapped
    if not number.is_global or number.is_multicast:
        return LOCAL
    return str(ipaddress.ip_network((number, 16 if number.version == 4 else 32), strict=False))


def _parse(text: str, what: str, example: str) -> tuple[str, list[tuple[str, str | None]]]:
    text = text.strip()
    try:
        parts = [(protocol.name, value) for protocol, value in Multiaddr(text).items()]
    except (MultiaddrError, ValueError) as error:
        raise _refused(text, what, example) from error
    if not parts or "," in text or text.endswith("/"):
        raise _refused(text, what, example)
    if others := [name for name, _ in parts if name in _OTHER_TRANSPORTS]:
        raise ConfigError(f"{text[:200]!r} is for {others[-1]}, and only TCP is spoken here: write it like {example}")
    return text, parts


def _is_reachable(parts: list[tuple[str, str | None]]) -> bool:
    """A machine and a TCP port, at most behind a relay."""
    names = [name for name, _ in parts]
    return bool(names) and names[0] in _MACHINES and names[1:2] == ["tcp"] and set(names[2:]) <= {"p2p", "p2p-circuit"}


def _refused(text: str, what: str, example: str) -> ConfigError:
    return ConfigError(f"{text[:200]!r} is not {what}: write it like {example}")
