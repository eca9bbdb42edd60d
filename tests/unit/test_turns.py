"""The turns of a chat, added one after the other, are the chat as the template writes it whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from routing.errors import ConfigError
from swarm.tokenizer import Tokenizer
from swarm.turns import next_turn
from tests.unit.test_tokenizer import IM_END, byte_level, write
from tests.unit.tiny_gguf import CHAT_TEMPLATE

QUESTIONS = [{"role": "user", "content": text} for text in ("hello", "hell o", "oh")]
ANSWERS = [{"role": "assistant", "content": text} for text in ("he", "lo")]


def load(folder: Path, template: str = CHAT_TEMPLATE) -> Tokenizer:
    eos = f'{{"eos_token_id": {IM_END}}}'
    return Tokenizer.load(write(folder, byte_level(), chat_template__jinja=template, generation_config__json=eos))


@pytest.mark.parametrize("has_ended", [True, False])
def test_turns_add_up_to_the_whole_chat(tmp_path: Path, has_ended: bool) -> None:
    tokenizer = load(tmp_path)
    chat = [QUESTIONS[0]]
    text = next_turn(tokenizer, chat, has_ended=False)
    for answer, question in zip(ANSWERS, QUESTIONS[1:], strict=True):
        text += tokenizer.encode(answer["content"])
        text += [IM_END] if has_ended else []  # an answer that was cut short has no end token
        chat += [answer, question]
        text += next_turn(tokenizer, chat, has_ended=has_ended)
    assert text == tokenizer.chat(chat)


def test_a_template_that_rewrites_earlier_turns_is_refused(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(ConfigError, match="rewrites earlier turns"):
        next_turn(tokenizer, [QUESTIONS[0], ANSWERS[0], QUESTIONS[1]], has_ended=True)


def test_a_template_that_refuses_says_why(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "{{ raise_exception('only one question') }}")
    with pytest.raises(ConfigError, match=r"refuses this chat: .*only one question"):
        next_turn(tokenizer, [QUESTIONS[0]], has_ended=False)
