"""Text to tokens and back, and a conversation to a prompt; without transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from peer.tensor_files import read_json_object
from routing.errors import ConfigError
from swarm.chat_template import ChatTemplate, read_source
from swarm.token_text import PieceDecoder, TextStream

_SPACE = re.compile(r"\s*")
_PRIVATE_USE = range(0xE000, 0xF900)  # characters that Unicode leaves without meaning


class Tokenizer:
    """A model's tokenizer, made by ``load``. ``eos_ids``: the tokens that end an answer, maybe none."""

    def __init__(self, library: tokenizers.Tokenizer, eos_ids: frozenset[int], folder: Path) -> None:
        self.eos_ids = eos_ids
        self._folder = folder
        self._library = library
        library.encode_special_tokens = True  # for the library they are text like any other; we cut them out
        library.no_truncation()
        library.no_padding()
        # A decoder's pickled state is its part of tokenizer.json.
        self._pieces = PieceDecoder.of(json.loads(library.decoder.__getstate__()) if library.decoder else None)
        added = {number: token for number, token in library.get_added_tokens_decoder().items() if token.special}
        self._special_ids = frozenset(added)
        self._special = {token.content: (number, token) for number, token in added.items()}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._special_text = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read tokenizer.json, and from generation_config.json or config.json which tokens end an answer.

        Raises:
            ConfigError: a file is missing or malformed, or the tokenizer is of a kind that is not known.
        """
        path = folder / "tokenizer.json"
        try:
            library = tokenizers.Tokenizer.from_buffer(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"can't read {path}: {error.strerror}; download this file too") from error
        except Exception as error:  # the library raises plain Exception, whatever is wrong
            raise ConfigError(f"{path} is no tokenizer ({error}); download it again") from error
        return cls(library, _read_eos_ids(folder), folder)

    def encode(self, text: str, parse_special: bool = False) -> list[int]:
        """Tokens of a text, none added. ``<|im_end|>`` and the like are plain text unless ``parse_special``.

        Raises:
            ValueError: the text holds half a surrogate pair, which has no UTF-8.
        """
        if parse_special:
            return list(self._encode_around_special(text, lambda plain: plain))
        try:
            return list(self._library.encode(text, add_special_tokens=False).ids)
        except TypeError as error:
            raise ValueError("the text holds half a surrogate pair: send whole characters") from error

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of tokens; special and unknown ones have none, and bytes that are no UTF-8 become U+FFFD."""
        stream = self.stream()
        return stream.push(tokens) + stream.finish()

    def stream(self) -> TextStream:
        """Decodes an answer while it comes; all pushes and ``finish`` together are what ``decode`` gives."""
        return TextStream(self._bytes_of, self._pieces.drops_first_space)

    def chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> list[int]:
        """Tokens of a conversation (``role``, ``content``) through the model's chat template.

        Only the template writes special tokens. Where a message holds the text of one, the template sees a stand-in,
        two unused characters around a number; when the special tokens are cut out of the whole, the text comes back.
        So a message can't end itself and speak as someone else, and any other message gives the tokens that
        transformers gives.

        Raises:
            ConfigError: the model has no chat template.
            ValueError: the template refuses these messages, or a text holds half a surrogate pair.
        """
        said: list[str] = []
        mark = _unused_character("".join(text for message in messages for text in message.values()))

        def stand_in(match: re.Match[str]) -> str:
            said.append(match[0])
            return f"{mark}{len(said) - 1}{mark}"

        harmless = [{key: self._special_text.sub(stand_in, text) for key, text in item.items()} for item in messages]
        prompt = self._template.render(harmless, add_generation_prompt=add_generation_prompt)
        stands_in = re.compile(f"{mark}([0-9]+){mark}")
        return list(
            self._encode_around_special(prompt, lambda plain: stands_in.sub(lambda match: said[int(match[1])], plain))
        )

    @cached_property
    def _template(self) -> ChatTemplate:
        source = read_source(self._folder)
        if source is None:
            raise ConfigError(
                f"{self._folder} has no chat template; add chat_template.jinja, or take an instruct model"
            )
        config = self._folder / "tokenizer_config.json"
        return ChatTemplate(source, _read_special_texts(config) if config.is_file() else {})

    def _encode_around_special(self, text: str, restore: Callable[[str], str]) -> Iterator[int]:
        """What lies between two special tokens is encoded as one text, after ``restore``."""
        start = 0
        for match in self._special_text.finditer(text):
            number, token = self._special[match[0]]
            plain = text[start : match.start()]
            yield from self.encode(restore(plain.rstrip() if token.lstrip else plain))
            yield number
            swallowed = _SPACE.match(text, match.end()) if token.rstrip else None
            start = swallowed.end() if swallowed else match.end()
        yield from self.encode(restore(text[start:]))

    def _bytes_of(self, token: int) -> bytes:
        if token in self._special_ids or not 0 <= token < 2**32:
            return b""
        piece = self._library.id_to_token(token)
        return b"" if piece is None else self._pieces.to_bytes(piece)


def _unused_character(text: str) -> str:
    return next(chr(code) for code in _PRIVATE_USE if chr(code) not in text)


def _read_eos_ids(folder: Path) -> frozenset[int]:
    for path in (folder / "generation_config.json", folder / "config.json"):
        eos = read_json_object(path).get("eos_token_id") if path.is_file() else None
        if eos is None:
            continue
        ids = eos if isinstance(eos, list) else [eos]
        if not all(type(token) is int for token in ids):
            raise ConfigError(f"{path}: eos_token_id is {eos!r}, no token ids; download it again")
        return frozenset(ids)
    return frozenset()


def _read_special_texts(path: Path) -> dict[str, str]:
    """``bos_token`` and the like of tokenizer_config.json, which templates name."""
    texts: dict[str, str] = {}
    for key, value in read_json_object(path).items():
        match value:
            case str(text) | {"content": str(text)} if key.endswith("_token"):
                texts[key] = text
    return texts
