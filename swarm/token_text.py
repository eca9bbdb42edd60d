"""Tokens to text, also while they come: each token is some bytes, and the bytes are UTF-8.

With that a stream is linear in the length of an answer and exact: no window of old tokens is ever decoded again.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from routing.errors import ConfigError

_PRINTABLE = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
# GPT-2's alphabet: printable bytes stand for themselves, the others for characters from 256 on.
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + number): byte for number, byte in enumerate(sorted(set(range(256)) - _PRINTABLE))
}
_SENTENCEPIECE = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


@dataclass(frozen=True, slots=True)
class PieceDecoder:
    """How a vocabulary writes bytes; ``drops_first_space``: the text's first space is not part of it."""

    to_bytes: Callable[[str], bytes]
    drops_first_space: bool

    @classmethod
    def of(cls, decoder: object) -> PieceDecoder:
        """Read the field ``decoder`` of tokenizer.json.

        Raises:
            ConfigError: a kind that is not known; byte-level and SentencePiece are.
        """
        parts = _parts(decoder)
        kinds = {part.get("type") for part in parts}
        if kinds == {"ByteLevel"}:
            return cls(_byte_level, drops_first_space=False)
        space = next((mark for part in parts if (mark := _space_mark(part))), None)
        if space is None or not kinds <= _SENTENCEPIECE:
            raise ConfigError(f"the tokenizer's decoder {sorted(map(str, kinds))} is unknown: take another model")

        def sentencepiece(piece: str) -> bytes:
            if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
                return bytes.fromhex(piece[3:5])
            return piece.replace(space, " ").encode()

        return cls(sentencepiece, drops_first_space=any(map(_drops_space, parts)))


class TextStream:
    """Text of an answer while its tokens come. ``push`` gives only what no later token can change."""

    def __init__(self, to_bytes: Callable[[int], bytes], drops_first_space: bool) -> None:
        self._to_bytes = to_bytes
        self._may_drop_space = drops_first_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, tokens: Iterable[int]) -> str:
        """The text that these tokens complete; a character still in pieces waits."""
        data = b"".join(map(self._to_bytes, tokens))
        if self._may_drop_space and data:
            self._may_drop_space = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def finish(self) -> str:
        """What is left: empty, or U+FFFD for a character that never became whole."""
        return self._utf8.decode(b"", final=True)


def _byte_level(piece: str) -> bytes:
    try:
        return bytes([_BYTE_OF[character] for character in piece])
    except KeyError:  # an added token is written as it is
        return piece.encode()


def _parts(decoder: object) -> list[Mapping[str, object]]:
    match decoder:
        case {"type": "Sequence", "decoders": list(parts)}:
            return [part for part in parts if isinstance(part, dict)]
        case dict():
            return [decoder]
        case _:
            return []


def _space_mark(part: Mapping[str, object]) -> str | None:
    match part:
        case {"type": "Replace", "pattern": {"String": str(mark)}, "content": " "}:
            return mark
        case {"type": "Metaspace", "replacement": str(mark)}:
            return mark
        case _:
            return None


def _drops_space(part: Mapping[str, object]) -> bool:
    match part:
        case {"type": "Strip", "content": " ", "start": 1}:
            return True
        case {"type": "Metaspace"}:
            return part.get("prepend_scheme", "always") != "never"
        case _:
            return False
