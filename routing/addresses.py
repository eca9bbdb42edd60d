"""The addresses that people type: multiaddrs, checked before anything is started.

A place to listen is ``/ip4/0.0.0.0/tcp/4001``, a peer to join is such a place and who must be there:
``/ip4/203.0.113.7/tcp/4001/p2p/12D3KooW...``.
"""

from __future__ import annotations

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from routing.domain import PeerId
from routing.errors import ConfigError

_LISTEN_EXAMPLE = "/ip4/0.0.0.0/tcp/4001"
_ANNOUNCE_EXAMPLE = "/ip4/203.0.113.7/tcp/4001"
_PEER_EXAMPLE = "/ip4/203.0.113.7/tcp/4001/p2p/12D3KooW..."
_MACHINES = {"ip4", "ip6", "dns", "dns4", "dns6"}


def check_listen(text: str) -> str:
    """An address where this machine can listen, as typed but for blanks around it; port 0 is any free port.

    Raises:
        ConfigError: the text is none; the message says how one is written.
    """
    text, parts = _parse(text, "an address to listen at", _LISTEN_EXAMPLE)
    if parts[0][0] not in ("ip4", "ip6") or not _has_port(parts) or parts[-1][0] == "p2p":
        raise _refused(text, "an address to listen at", _LISTEN_EXAMPLE)
    return text


def check_announce(text: str) -> str:
    """An address where others can dial this machine: like one to listen at, but a name will do and port 0 won't.

    Raises:
        ConfigError: the text is none; the message says how one is written.
    """
    text, parts = _parse(text, "an address to announce", _ANNOUNCE_EXAMPLE)
    if parts[0][0] not in _MACHINES or not _has_port(parts) or parts[1][1] == "0" or parts[-1][0] == "p2p":
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
    if parts[0][0] not in _MACHINES or not _has_port(parts) or parts[-1][0] != "p2p":
        raise _refused(text, "a peer's address", _PEER_EXAMPLE)
    address, _, peer = text.rpartition("/p2p/")
    return PeerId(peer), address


def is_loopback(address: str) -> bool:
    """Does nobody but this machine reach the address?"""
    return address.startswith(("/ip4/127.", "/ip6/::1/"))


def _parse(text: str, what: str, example: str) -> tuple[str, list[tuple[str, str | None]]]:
    text = text.strip()
    try:
        parts = [(protocol.name, value) for protocol, value in Multiaddr(text).items()]
    except (MultiaddrError, ValueError) as error:
        raise _refused(text, what, example) from error
    if not parts or "," in text or text.endswith("/"):
        raise _refused(text, what, example)
    return text, parts


def _has_port(parts: list[tuple[str, str | None]]) -> bool:
    names = [name for name, _ in parts]
    return names[1:2] == ["tcp"] or names[1:3] == ["udp", "quic-v1"]


def _refused(text: str, what: str, example: str) -> ConfigError:
    return ConfigError(f"{text[:200]!r} is not {what}: write it like {example}")
