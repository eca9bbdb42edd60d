"""A model's chat template, run in jinja2's sandbox the way transformers runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from jinja2 import Template, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from peer.tensor_files import read_json_object
from routing.errors import ConfigError


class ChatTemplate:
    """Messages to text.

    Raises:
        ConfigError: the source is no template.
    """

    def __init__(self, source: str, special_texts: Mapping[str, str]) -> None:
        """``special_texts``: ``bos_token`` and the like, which templates name."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        self._special_texts = dict(special_texts)
        try:
            self._template: Template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ConfigError(f"line {error.lineno} of the chat template: {error.message}; correct it") from error

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        """The text of a conversation, with the opening of the answer if ``add_generation_prompt``.

        Raises:
            ValueError: the template refuses these messages, for example a role that it doesn't know.
        """
        try:
            return self._template.render(
                self._special_texts, messages=messages, tools=None, add_generation_prompt=add_generation_prompt
            )
        except (TemplateError, TypeError, ArithmeticError, LookupError) as error:
            raise ValueError(f"the model's chat template refuses these messages: {error}") from error


def read_source(folder: Path) -> str | None:
    """chat_template.jinja, else ``chat_template`` of tokenizer_config.json, else None.

    Raises:
        ConfigError: a file can't be read or holds no text.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"can't read {path} ({error}); download it again") from error
    if not (folder / "tokenizer_config.json").is_file():
        return None
    match read_json_object(folder / "tokenizer_config.json").get("chat_template"):
        case str(source):
            return source
        case list(named):  # several, for chat, tools and so on
            for item in named:
                match item:
                    case {"name": "default", "template": str(source)}:
                        return source
    return None


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Jinja's own filter would write ``<`` as HTML wants it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
