"""Who a peer is: its key, its id, and what it signs.

A peer is an Ed25519 key. Its id is base58 of the libp2p "identity" multihash of the public key, so the id itself holds
the key: what is signed by the key of the peer that it names needs no other proof. The key file is the one that the
libp2p daemon reads: a protobuf of key type 1 (Ed25519) and 64 bytes, seed and public key.

Source: libp2p's specification of peer ids, https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md
"""

from __future__ import annotations

import os
from pathlib import Path

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from routing.domain import PeerId
from routing.errors import ConfigError

_KEY_HEAD = bytes((0x08, 0x01, 0x12, 0x40))  # protobuf: key type 1, then 64 bytes
_ID_HEAD = bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20))  # multihash: identity, 36 bytes; protobuf: type 1, 32 bytes


class Identity:
    """A peer's own key.

    Args:
        seed: 32 bytes; the key follows from them.
    """

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._public = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> Identity:
        """A new key that nobody else has."""
        return cls(os.urandom(32))

    @classmethod
    def load_or_create(cls, file: Path) -> Identity:
        """The key in ``file``; a new one is written there, readable by its owner alone, if there is none.

        Raises:
            ConfigError: the file is no key of this kind, or can't be read or written.
        """
        try:
            if not file.exists():
                identity = cls.generate()
                identity.save(file)
                return identity
            data = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"identity file {file}: {error.strerror}; its folder must be there already") from None
        if len(data) != 68 or not data.startswith(_KEY_HEAD):
            raise ConfigError(f"{file} is no Ed25519 key of libp2p: name a file that does not exist to get a new one")
        identity = cls(data[4:36])
        if identity._public != data[36:]:
            raise ConfigError(f"{file} is damaged: its two halves do not belong together")
        return identity

    def save(self, file: Path) -> None:
        """Write the key for ``load_or_create`` and the libp2p daemon; refuses to replace a file."""
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
        with os.fdopen(descriptor, "wb") as out:
            out.write(_KEY_HEAD + self._seed + self._public)

    @property
    def peer_id(self) -> PeerId:
        """The id that follows from the key."""
        return peer_id_of(self._public)

    @property
    def public_key(self) -> bytes:
        """The 32 bytes that everybody may know."""
        return self._public

    def sign(self, data: bytes) -> bytes:
        """A signature, 64 bytes. ``data`` begins with what it is for, so that it is good for nothing else."""
        return self._key.sign(data)


def peer_id_of(public_key: bytes) -> PeerId:
    """The peer id of a public Ed25519 key (32 bytes)."""
    return PeerId(base58.b58encode(_ID_HEAD + public_key).decode("ascii"))


def is_signed(data: bytes, public_key: bytes, signature: bytes) -> bool:
    """Did the owner of this key (32 bytes) sign these bytes?"""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True
