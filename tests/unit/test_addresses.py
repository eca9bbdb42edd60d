from __future__ import annotations

import pytest

from routing.addresses import check_announce, check_listen, check_peer, is_dialled, is_loopback, place_of, split_peer
from routing.errors import ConfigError

PEER = "12D3KooWBsEshNZ7hxqzVJGqqAYeuKnxv6nNVyfP3pAEdDRCGJ9Z"


@pytest.mark.parametrize("text", ["/ip4/0.0.0.0/tcp/0", "/ip6/::1/tcp/4001"])
def test_an_address_to_listen_at_is_kept_as_it_is(text: str) -> None:
    assert check_listen(f" {text}\n") == text


@pytest.mark.parametrize(
    "text",
    [
        "", "/", "localhost:4001", "/ip4/127.0.0.1", "/ip4/127.0.0.1/tcp/99999", "/ip4/300.0.0.1/tcp/1",
        "/dns4/a.org/tcp/1", "/unix/tmp/x", "/ip4/127.0.0.1/tcp/1,/ip4/127.0.0.1/tcp/2",
        f"/ip4/127.0.0.1/tcp/1/p2p/{PEER}",
    ],
)  # fmt: skip
def test_what_is_no_address_to_listen_at_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not an address to listen at: write it like /ip4/0.0.0.0/tcp/4001"):
        check_listen(text)


def test_an_announced_address_may_have_a_name_and_must_have_a_port() -> None:
    assert check_announce("/dns4/example.org/tcp/4001") == "/dns4/example.org/tcp/4001"
    with pytest.raises(ConfigError, match="is not an address to announce"):
        check_announce("/ip4/203.0.113.7/tcp/0")


def test_the_address_of_a_peer_is_split_into_who_and_where() -> None:
    assert split_peer(f" /dns4/example.org/tcp/4001/p2p/{PEER} ") == (PEER, "/dns4/example.org/tcp/4001")
    assert check_peer(f" /ip4/203.0.113.7/tcp/4001/p2p/{PEER} ") == f"/ip4/203.0.113.7/tcp/4001/p2p/{PEER}"


def test_a_peer_behind_a_relay_is_named_by_the_last_id() -> None:
    relay = f"/ip4/203.0.113.7/tcp/4001/p2p/{PEER}/p2p-circuit"
    assert split_peer(f"{relay}/p2p/{PEER}") == (PEER, relay)


@pytest.mark.parametrize(
    "text",
    [
        "", "nonsense", "/ip4/203.0.113.7/tcp/4001", f"/p2p/{PEER}", f"/ip4/203.0.113.7/p2p/{PEER}",
        "/ip4/203.0.113.7/tcp/4001/p2p/abc", "/ip4/203.0.113.7/tcp/4001/p2p/", f"/ip4/203.0.113.7/tcp/4001/p2p/{PEER}/",
        PEER,
    ],
)  # fmt: skip
def test_what_is_no_peers_address_is_refused_and_told_how_it_ends(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a peer's address: write it like .*/tcp/4001/p2p/12D3KooW"):
        check_peer(text)


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/203.0.113.7/udp/4001/quic-v1", "/ip4/203.0.113.7/udp/4001/quic", "/ip4/203.0.113.7/udp/4001",
        "/ip4/203.0.113.7/tcp/80/ws", "/dns4/example.org/tcp/443/wss", "/dns4/example.org/tcp/443/tls/ws",
        "/ip4/203.0.113.7/tcp/80/http",
    ],
)  # fmt: skip
def test_only_tcp_is_spoken(address: str) -> None:
    for check, text in ((check_listen, address), (check_announce, address), (check_peer, f"{address}/p2p/{PEER}")):
        with pytest.raises(ConfigError, match=r"is for \S+, and only TCP is spoken here: write it like /ip4"):
            check(text)
    assert not is_dialled(address)


def test_what_a_stranger_made_up_is_not_dialled() -> None:
    for address in (
        "",
        "/",
        "nonsense",
        "/ip4/1",
        "/unix/tmp/x",
        "/ip4/127.0.0.1",
        "/dnsaddr/example.org",
        f"/p2p/{PEER}",
    ):
        assert not is_dialled(address)
    for address in ("/ip4/203.0.113.7/tcp/4001", f"/ip6/::1/tcp/1/p2p/{PEER}/p2p-circuit", "/dns/example.org/tcp/1"):
        assert is_dialled(address)


def test_loopback_is_told_from_the_rest() -> None:
    assert is_loopback("/ip4/127.0.0.1/tcp/0")
    assert is_loopback("/ip6/::1/tcp/0")
    assert not is_loopback("/ip4/0.0.0.0/tcp/0")


@pytest.mark.parametrize(
    ("addresses", "place"),
    [
        ([], "nowhere"),
        (["nonsense", "/ip4", "/ip4/999.1.1.1/tcp/1", "/unix/x", "/dns/./tcp/1"], "nowhere"),
        (["/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.2/tcp/1", "/ip6/fe80::1/tcp/1", "/ip4/100.64.0.1/tcp/1"], "local"),
        (["/ip4/10.0.0.1/tcp/1", "/ip4/8.8.4.4/tcp/1", "/ip4/9.9.9.9/tcp/1"], "8.8.0.0/16"),
        (["/ip6/2a01:4f8:1:2::3/tcp/1"], "2a01:4f8::/32"),
        (["/ip6/::ffff:8.8.4.4/tcp/1"], "8.8.0.0/16"),
        (["/dns4/peer7.Example.ORG./tcp/1"], "example.org"),
    ],
)
def test_a_place_is_that_of_the_first_public_address(addresses: list[str], place: str) -> None:
    assert place_of(addresses) == place
