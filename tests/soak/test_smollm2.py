"""Ten prompts of several kinds on SmolLM2, over three spans in memory: plain transformers, token for token."""

from __future__ import annotations

import asyncio

import pytest
from transformers import PreTrainedModel

from swarm.models import EMBEDDED, ModelFolder, resolve
from swarm.tokenizer import Tokenizer
from tests.memory_swarm import generate, memory_swarm
from tests.tiny_models import assert_greedy, plain

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "1, 2, 4, 8, 16,",
    "Once upon a time, in a village by the sea,",
    "Dear Sir or Madam,\n\nI am writing to",
    "| name | age |\n|---|---|\n| Ann | 31 |\n",
    "Q: What is heavier, a ton of feathers or a ton of iron?\nA:",
    "La rivière coule",
    '{"city": "Rome", "country": "Italy"}\n{"city": "Madrid",',
    "The quick brown fox jumps over the lazy dog. The quick brown fox",
)
NUM_TOKENS = 64


@pytest.fixture(scope="module")
def folder() -> ModelFolder:
    return resolve(EMBEDDED, None, print)


@pytest.fixture(scope="module")
def oracle(folder: ModelFolder) -> PreTrainedModel:
    return plain(folder.path)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_smollm2_says_what_plain_transformers_says(folder: ModelFolder, oracle: PreTrainedModel, prompt: str) -> None:
    tokens = Tokenizer.load(folder.path).encode(prompt)

    async def answers() -> list[list[int]]:
        async with memory_swarm(folder.path, (0, 10, 20, 30), delay_seconds=0.0) as swarm:
            return [(await generate(swarm, tokens, NUM_TOKENS, speculation=size))[0] for size in (0, 8, None)]

    texts = asyncio.run(answers())
    assert texts[0] == texts[1] == texts[2]
    assert len(texts[0]) == NUM_TOKENS
    assert_greedy(oracle, tokens, texts[0])
