"""The turns of a chat as tokens to add, so that only what is new is computed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from routing.errors import ConfigError
from swarm.tokenizer import Tokenizer

Message = Mapping[str, str]


def next_turn(tokenizer: Tokenizer, messages: Sequence[Message], *, has_ended: bool) -> list[int]:
    """What has to be added to the text before it for the last message of a chat.

    Args:
        tokenizer: of the model.
        messages: the whole chat; the last one is the user's new one.
        has_ended: did the answer before end with its end token, which then is part of the text already?

    Raises:
        ConfigError: the chat template writes earlier turns anew for every new one, or refuses the messages.
    """
    try:
        whole = tokenizer.chat(messages)
        if len(messages) == 1 or messages[-2]["role"] != "assistant":
            return whole
        before = tokenizer.chat(messages[:-1], add_generation_prompt=False)
    except ValueError as error:
        raise ConfigError(f"the model's chat template refuses this chat: {error}") from None
    if whole[: len(before)] != before:
        raise ConfigError("the model's chat template rewrites earlier turns: start a new chat for every question")
    ends = [index for index, token in enumerate(before) if token in tokenizer.eos_ids]
    end = ends[-1] if ends else len(before)
    return whole[end + 1 if has_ended else end :]
