from __future__ import annotations

from pathlib import Path

import pytest

from peer.capacity import (
    MAX_KV_TOKENS,
    MIN_KV_TOKENS,
    check_fits,
    format_bytes,
    free_bytes,
    kv_tokens_that_fit,
    num_blocks_that_fit,
    parse_bytes,
    weights_bytes,
)
from peer.checkpoint import Checkpoint
from routing.domain import Span
from routing.errors import ConfigError
from tests.unit.tiny_checkpoint import block, ends, write_config, write_safetensors

NUM_BLOCKS = 4
BLOCK = 96 * 4
FIRST, LAST = 80 * 4, (80 + 8) * 4
KV = 2 * 2 * 2 * 4  # keys and values, two heads of two, of one token in one block


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    write_config(tmp_path, num_hidden_layers=NUM_BLOCKS)
    blocks = [block(number) for number in range(NUM_BLOCKS)]
    write_safetensors(
        tmp_path / "model.safetensors", {name: t for part in [*blocks, ends()] for name, t in part.items()}
    )
    return Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("6G", 6 << 30), ("512MiB", 512 << 20), ("2.5 GB", 5 << 29), ("100", 100), ("1t", 1 << 40), (" 7k ", 7 << 10)],
)
def test_sizes_are_read_as_people_write_them(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "G", "-1G", "1X", "1G2", "half"])
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="write it like 6G or 512M"):
        parse_bytes(text)


def test_sizes_are_written_as_people_read_them() -> None:
    assert [format_bytes(3 << 29), format_bytes(100 << 20)] == ["1.5 GiB", "100 MiB"]


def test_this_machine_has_some_memory() -> None:
    assert free_bytes("cpu") > 1 << 20


def test_a_span_weighs_its_blocks_and_the_ends_that_it_has(checkpoint: Checkpoint) -> None:
    assert weights_bytes(checkpoint, Span(0, 1), 4) == BLOCK + FIRST
    assert weights_bytes(checkpoint, Span(1, 3), 4) == 2 * BLOCK
    assert weights_bytes(checkpoint, Span(3, 4), 4) == BLOCK + LAST
    assert weights_bytes(checkpoint, Span(1, 3), 2) == BLOCK


def test_as_many_blocks_are_served_as_fit_anywhere(checkpoint: Checkpoint) -> None:
    one = BLOCK + MIN_KV_TOKENS * KV
    whole = NUM_BLOCKS * one + FIRST + LAST
    assert num_blocks_that_fit(checkpoint, whole, 4) == NUM_BLOCKS
    assert num_blocks_that_fit(checkpoint, LAST + 2 * one, 4) == 2
    assert num_blocks_that_fit(checkpoint, LAST + 2 * one - 1, 4) == 1
    with pytest.raises(ConfigError, match=r"hold no block of this model: one needs .*; give more with --max-memory"):
        num_blocks_that_fit(checkpoint, LAST + one - 1, 4)


@pytest.mark.parametrize("max_bytes", range(LAST + BLOCK + MIN_KV_TOKENS * KV, 5 * MIN_KV_TOKENS * KV, 40_009))
def test_whatever_is_chosen_fits_wherever_it_lies(checkpoint: Checkpoint, max_bytes: int) -> None:
    count = num_blocks_that_fit(checkpoint, max_bytes, 4)
    for start in range(NUM_BLOCKS - count + 1):
        check_fits(checkpoint, Span(start, start + count), max_bytes, 4)


def test_what_the_weights_leave_is_kv_cache(checkpoint: Checkpoint) -> None:
    span = Span(1, 3)
    assert kv_tokens_that_fit(checkpoint, span, 2 * BLOCK + 9000 * 2 * KV, 4) == 9000
    assert kv_tokens_that_fit(checkpoint, span, 1 << 40, 4) == MAX_KV_TOKENS
    with pytest.raises(ConfigError, match="the blocks 1:3 need"):
        kv_tokens_that_fit(checkpoint, span, 2 * BLOCK + (MIN_KV_TOKENS - 1) * 2 * KV, 4)


def test_blocks_that_the_model_does_not_have_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match=r"the model has the blocks 0:4, 3:5 is not among them"):
        check_fits(checkpoint, Span(3, 5), 1 << 40, 4)
