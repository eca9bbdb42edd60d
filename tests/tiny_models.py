"""Random models of a few thousand weights, and plain transformers as the oracle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

VOCAB_SIZE = 256
NUM_BLOCKS = 6
NEAR_TIE = 1e-3
"""Below this gap of the two best logits rounding may decide."""


def make_llama(folder: Path, *, seed: int = 0, num_blocks: int = NUM_BLOCKS, **changes: object) -> Path:
    """A random Llama whose gaps between logits are far above the noise of float32, with a tokenizer of bytes."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": num_blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.15,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).save_pretrained(folder)
    write_byte_tokenizer(folder)
    return folder


def write_byte_tokenizer(folder: Path) -> None:
    """One token a byte: token ids 0 to 255."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)


def set_config(folder: Path, **changes: object) -> None:
    """Change what config.json says."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def plain(folder: Path) -> PreTrainedModel:
    """The whole model as plain transformers runs it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return cast(PreTrainedModel, model.eval())


@torch.inference_mode()
def assert_greedy(model: PreTrainedModel, prompt: Sequence[int], output: Sequence[int]) -> None:
    """Is the output what plain transformers would have said, token for token?

    One pass over prompt and output gives the logits that greedy decoding would have seen as long as it agrees. Where
    the two best lie closer than rounding, either is right.
    """
    logits = model(torch.tensor([[*prompt, *output]])).logits[0, len(prompt) - 1 : -1]
    best = logits.max(-1).values
    for index, token in enumerate(output):
        two = logits[index].topk(2).values
        if float(two[0] - two[1]) > NEAR_TIE:
            assert token == int(logits[index].argmax()), f"token {index} of {list(output)}"
        assert float(logits[index, token]) >= float(best[index]) - NEAR_TIE, f"token {index} of {list(output)}"


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What plain transformers generates greedily."""
    generated = cast(Any, model).generate(
        torch.tensor([list(prompt)]), max_new_tokens=num_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return [int(token) for token in generated[0, len(prompt) :]]
