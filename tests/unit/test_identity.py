from __future__ import annotations

import stat
from pathlib import Path

import pytest

from routing.errors import ConfigError
from routing.identity import Identity, is_signed, peer_id_of


def test_a_peer_id_is_libp2ps() -> None:
    """The id that go-libp2p gives to the key whose seed is 32 zero bytes."""
    identity = Identity(bytes(32))
    assert identity.peer_id == "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN"
    assert peer_id_of(identity.public_key) == identity.peer_id


def test_a_signature_is_good_for_one_key_and_one_text() -> None:
    owner, stranger = Identity(bytes(32)), Identity(bytes([1]) * 32)
    signature = owner.sign(b"text")
    assert is_signed(b"text", owner.public_key, signature)
    assert not is_signed(b"texT", owner.public_key, signature)
    assert not is_signed(b"text", stranger.public_key, signature)
    assert not is_signed(b"text", b"short", signature)
    assert not is_signed(b"text", owner.public_key, b"")


def test_a_key_file_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "peer.key"
    first = Identity.load_or_create(file)
    assert Identity.load_or_create(file).peer_id == first.peer_id
    assert stat.S_IMODE(file.stat().st_mode) == 0o400
    assert file.read_bytes()[:4] == bytes((8, 1, 18, 64))


def test_a_folder_that_is_not_there_is_taken_for_a_typing_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder must be there"):
        Identity.load_or_create(tmp_path / "keys" / "peer.key")


@pytest.mark.parametrize("content", [b"", b"hello", bytes((8, 1, 18, 64)) + bytes(64)], ids=repr)
def test_a_file_that_is_no_key_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "peer.key"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"peer\.key"):
        Identity.load_or_create(file)
    assert file.read_bytes() == content
