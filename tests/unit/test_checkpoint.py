from __future__ import annotations

import json
import struct
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.checkpoint import Checkpoint
from routing.errors import ConfigError
from tests.unit.tiny_checkpoint import block, ends, write_config, write_raw, write_safetensors

NORM = np.array([1.5, -2, 0.25, 8, 0, -0.5, 3, 100], np.float32)


def write_model(folder: Path, is_tied: bool = True) -> Path:
    write_safetensors(folder / "model.safetensors", ends(is_tied) | block(0) | block(1, "BF16"))
    return write_config(folder)


def write_shards(folder: Path) -> Path:
    shards = {"a.safetensors": ends(), "b.safetensors": block(0), "c.safetensors": block(1)}
    for name, tensors in shards.items():
        write_safetensors(folder / name, tensors)
    weight_map = {name: shard for shard, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return write_config(folder)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("model.layers.12.self_attn.q_proj.weight", 12),
        ("transformer.h.3.mlp.c_fc.bias", 3),
        ("h.0.ln_1.weight", 0),
        ("model.embed_tokens.weight", None),
        ("model.norm.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_the_block_of_a_tensor_is_read_from_its_name(name: str, number: int | None) -> None:
    assert Checkpoint.block_of(name) == number


def test_a_header_tells_where_every_tensor_lies(tmp_path: Path) -> None:
    entry = Checkpoint.open(write_model(tmp_path)).tensors["model.layers.1.self_attn.k_proj.weight"]
    assert (entry.file, entry.dtype, entry.shape) == (tmp_path / "model.safetensors", "BF16", (3, 8))
    assert (entry.num_bytes, entry.num_elements) == (48, 24)


def test_a_block_weighs_its_elements_in_the_width_they_are_held_in(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_model(tmp_path))
    assert checkpoint.block_bytes(0, 4) == checkpoint.block_bytes(1, 4) == 96 * 4
    assert checkpoint.block_bytes(1, 2) == 96 * 2
    assert checkpoint.block_bytes(1, 0.5) == 48


@pytest.mark.parametrize(
    ("is_tied", "first", "last", "elements"),
    [
        (True, False, False, 0),
        (True, True, False, 80),
        (True, False, True, 88),
        (True, True, True, 168),
        (False, True, False, 80),
        (False, False, True, 104),
    ],
)
def test_the_ends_weigh_embedding_norm_and_head(
    tmp_path: Path, is_tied: bool, first: bool, last: bool, elements: int
) -> None:
    checkpoint = Checkpoint.open(write_model(tmp_path, is_tied))
    assert checkpoint.end_bytes(first, last, element_bytes=2) == elements * 2


def test_an_embedding_inside_a_block_is_part_of_the_block(tmp_path: Path) -> None:
    extra = {"model.layers.1.embed_tokens.weight": ("F32", (10, 8), None)}
    write_safetensors(tmp_path / "model.safetensors", ends() | block(1) | extra)
    checkpoint = Checkpoint.open(write_config(tmp_path))
    assert checkpoint.end_bytes(first=True, last=False, element_bytes=1) == 80
    assert checkpoint.block_bytes(1, 1) == 96 + 80


def test_keys_and_values_of_a_token_take_two_rows_of_kv_heads_a_block(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_model(tmp_path))
    assert checkpoint.kv_bytes_per_token(num_blocks=3, element_bytes=4) == 2 * 3 * (2 * 2) * 4


def test_every_shard_of_the_index_is_read_also_when_the_first_holds_no_block(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_shards(tmp_path))
    assert checkpoint.block_bytes(1, 1) == 96
    assert checkpoint.end_bytes(first=True, last=True, element_bytes=1) == 168


def test_without_an_index_every_safetensors_file_is_read(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert Checkpoint.open(tmp_path).block_bytes(1, 1) == 96


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        write_safetensors(tmp_path / name, ends())
    with pytest.raises(ConfigError, match=r"lies in a\.safetensors and in b\.safetensors: remove one"):
        Checkpoint.open(write_config(tmp_path))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"b\.safetensors: No such file or directory; download this file again"):
        Checkpoint.open(tmp_path)


def test_a_shard_that_lacks_a_tensor_of_the_index_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path)
    write_safetensors(tmp_path / "b.safetensors", block(5))
    with pytest.raises(ConfigError, match=r"b\.safetensors lacks model\.layers\.0\."):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("shard", ["../b.safetensors", "/etc/passwd", "..", 7, ""])
def test_an_index_that_points_out_of_its_folder_is_refused(tmp_path: Path, shard: object) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ConfigError, match="is no name of a file in its folder"):
        Checkpoint.open(write_config(tmp_path))


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ([], "its header is no JSON object"),
        ({"a": 5}, "the entry of a lacks dtype"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "the entry of a lacks dtype"),
        ({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, "unknown dtype F99"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "the shape of a is"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, r"a has 4 bytes, which is not \[2\] of F32"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, "lie outside the file"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, "lie outside the file"),
    ],
)
def test_a_malformed_header_is_refused_with_the_reason(tmp_path: Path, header: object, says: str) -> None:
    write_raw(tmp_path / "model.safetensors", header, bytes(4))
    with pytest.raises(ConfigError, match=says):
        Checkpoint.open(write_config(tmp_path))


@given(cut=st.integers(min_value=0, max_value=900))
def test_a_file_cut_short_is_refused_wherever_it_was_cut(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = write_model(tmp_path_factory.mktemp("cut"))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ConfigError, match="is no whole safetensors file"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"config\.json .*; download this file again"):
        Checkpoint.open(tmp_path)


def test_a_folder_that_is_none_or_holds_no_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no folder; give the folder"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"can't read .*config\.json"):
        Checkpoint.open(tmp_path)


def test_a_config_knows_the_names_of_other_families(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"n_layer": 3, "n_head": 4, "n_embd": 8, "vocab_size": 7}')
    config = Checkpoint.open(tmp_path).config
    assert (config.num_blocks, config.num_kv_heads, config.head_dim) == (3, 4, 2)
    assert (config.hidden_size, config.vocab_size, config["n_embd"]) == (8, 7, 8)
    assert set(config) == {"n_layer", "n_head", "n_embd", "vocab_size"}
    assert len(config) == 4


def test_a_config_that_says_a_head_width_is_believed(tmp_path: Path) -> None:
    assert Checkpoint.open(write_config(tmp_path, head_dim=16)).config.head_dim == 16
    assert Checkpoint.open(write_config(tmp_path, head_dim=None)).config.head_dim == 2
    with pytest.raises(ConfigError, match="3 heads don't divide 8; add head_dim"):
        _ = Checkpoint.open(write_config(tmp_path, num_attention_heads=3)).config.head_dim


@pytest.mark.parametrize("value", [0, -1, True, "30", 2.0, None])
def test_a_config_without_a_count_of_blocks_says_which_key_it_wants(tmp_path: Path, value: object) -> None:
    config = Checkpoint.open(write_config(tmp_path, num_hidden_layers=value)).config
    with pytest.raises(ConfigError, match="num_hidden_layers"):
        _ = config.num_blocks


def stored_norm(dtype: str, values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> bytes:
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype("<f4" if dtype == "F32" else "<f2").tobytes()


def test_the_weights_hash_is_of_values_whatever_dtype_stores_them(tmp_path: Path) -> None:
    hashes = {}
    for dtype in ("F32", "F16", "BF16"):
        tensors = ends() | {"model.norm.weight": (dtype, (8,), stored_norm(dtype, NORM))}
        write_safetensors(tmp_path / "model.safetensors", tensors)
        hashes[dtype] = Checkpoint.open(write_config(tmp_path)).weights_hash()
    expected = sha256(struct.pack("<8f", 1.5, -2, 0.25, 8, 0, -0.5, 3, 100)).hexdigest()[:8]
    assert hashes == dict.fromkeys(hashes, expected)


def test_another_norm_has_another_weights_hash(tmp_path: Path) -> None:
    other = NORM + np.float32(2**-10)
    hashes = set()
    for values in (NORM, other):
        tensors = ends() | {"model.norm.weight": ("F32", (8,), values.tobytes())}
        write_safetensors(tmp_path / "model.safetensors", tensors)
        hashes.add(Checkpoint.open(write_config(tmp_path)).weights_hash())
    assert len(hashes) == 2


def test_a_norm_in_whole_numbers_has_no_hash(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "model.safetensors", {"model.norm.weight": ("I64", (8,), None)})
    with pytest.raises(ConfigError, match="a norm in I64; use a checkpoint"):
        Checkpoint.open(write_config(tmp_path)).weights_hash()


def test_two_final_norms_are_refused(tmp_path: Path) -> None:
    tensors = ends() | {"other.norm.weight": ("F32", (8,), None)}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    with pytest.raises(ConfigError, match="has 2 final norms"):
        Checkpoint.open(write_config(tmp_path)).weights_hash()


def test_a_client_without_weights_computes_the_config_hash_and_is_told_what_the_rest_needs(tmp_path: Path) -> None:
    client, peer = tmp_path / "client", tmp_path / "peer"
    client.mkdir()
    peer.mkdir()
    checkpoint = Checkpoint.open(write_config(client))
    assert checkpoint.config_hash() == Checkpoint.open(write_model(peer)).config_hash()
    with pytest.raises(ConfigError, match="has no weights of the final norm; download"):
        checkpoint.weights_hash()
    with pytest.raises(ConfigError, match="has no weights of block 0; download"):
        checkpoint.block_bytes(0, 4)


def test_the_config_hash_ignores_order_spacing_and_who_wrote_the_file(tmp_path: Path) -> None:
    before = Checkpoint.open(write_config(tmp_path)).config_hash()
    values = json.loads((tmp_path / "config.json").read_text())
    shuffled = dict(reversed(values.items())) | {"transformers_version": "5.0", "dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(
        json.dumps(shuffled | {"torch_dtype": "float16", "_name_or_path": "somewhere"}, indent=4)
    )
    assert Checkpoint.open(tmp_path).config_hash() == before


def test_the_config_hash_changes_with_a_value_or_the_tokenizer(tmp_path: Path) -> None:
    before = Checkpoint.open(write_config(tmp_path)).config_hash()
    assert Checkpoint.open(write_config(tmp_path, vocab_size=11)).config_hash() != before
    write_config(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{ }")
    assert Checkpoint.open(tmp_path).config_hash() != before
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"tokenizer\.json.*download this file too"):
        Checkpoint.open(tmp_path).config_hash()
