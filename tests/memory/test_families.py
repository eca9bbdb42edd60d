"""Families of models beyond Llama, each cut in three and verified with trees: plain transformers, token for token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from peer.spans import SpanModel
from routing.domain import Span
from routing.errors import ConfigError
from tests.memory_swarm import generate, memory_swarm
from tests.proposers import Knowing
from tests.tiny_models import greedy, plain, write_byte_tokenizer

PROMPT = list(b"A swarm answers, one two one two one.")
COMMON = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
SLIDING = ["sliding_attention", "full_attention"] * 3
FAMILIES: dict[str, dict[str, object]] = {
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 8},
    "phi3": {},
    "olmo2": {},
    "granite": {},
    "glm4": {},
    "starcoder2": {"sliding_window": None},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": SLIDING, "sliding_window": 8},
}


def make(folder: Path, family: str) -> Path:
    torch.manual_seed(1)
    config = AutoConfig.for_model(family, **COMMON, **FAMILIES[family])
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    write_byte_tokenizer(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
async def test_the_text_is_plain_transformers_own(family: str, tmp_path: Path) -> None:
    folder = make(tmp_path / family, family)
    reference = greedy(plain(folder), PROMPT, 20)
    async with memory_swarm(folder, (0, 2, 5, 6)) as swarm:
        proposer = Knowing([*PROMPT, *reference], siblings=1)
        tokens, stats = await generate(swarm, PROMPT, 20, speculation=32, proposer=proposer)
    assert tokens == reference
    assert stats.mean_acceptance_length > 3


def test_a_family_whose_files_name_the_weights_otherwise_is_refused(tmp_path: Path) -> None:
    config = AutoConfig.for_model("mixtral", **COMMON, num_local_experts=2, num_experts_per_tok=1)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"lacks model\.layers\.0\.mlp.*mixtral keeps its weights under other names"):
        SpanModel(tmp_path, Span(0, 2))


def test_a_family_with_buffers_that_no_file_holds_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = AutoConfig.for_model("gemma3_text", **COMMON, layer_types=SLIDING, sliding_window=8)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="gemma3_text"):
        SpanModel(tmp_path, Span(0, 2))
