from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from routing.errors import ConfigError
from swarm.gguf_import import FORMAT_VERSION, import_gguf
from tests.unit.tiny_gguf import CHAT_TEMPLATE, HEAD_DIM, TOKENS, hf_weights, write_gguf


def imported(path: Path) -> Path:
    return import_gguf(path, path.parent / "cache", "tiny", lambda _: None)


def test_every_weight_comes_back_as_it_was_before_the_gguf_under_hugging_faces_name(tmp_path: Path) -> None:
    found = load_file(imported(write_gguf(tmp_path / "tiny.gguf")) / "model.safetensors")
    expected = hf_weights()
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_quantized_weights_become_float32(tmp_path: Path) -> None:
    folder = imported(write_gguf(tmp_path / "tiny.gguf", is_quantized=True))
    found = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, hf_weights()["model.embed_tokens.weight"], atol=32 / 127)


def test_the_config_says_the_shape_in_the_numbers_that_a_person_wrote(tmp_path: Path) -> None:
    config = json.loads((imported(write_gguf(tmp_path / "tiny.gguf")) / "config.json").read_text())
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 64,
        "vocab_size": len(TOKENS),
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float32",
    }


def test_an_output_matrix_unties_the_embeddings(tmp_path: Path) -> None:
    folder = imported(write_gguf(tmp_path / "tiny.gguf", hf_weights(is_tied=False)))
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    expected = hf_weights(is_tied=False)["lm_head.weight"]
    np.testing.assert_array_equal(load_file(folder / "model.safetensors")["lm_head.weight"], expected)


def test_the_tokenizer_splits_digits_merges_and_knows_control_tokens(tmp_path: Path) -> None:
    folder = imported(write_gguf(tmp_path / "tiny.gguf"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoding = tokenizer.encode("<|im_start|>hello hello12 1<|im_end|>")
    assert encoding.tokens == ["<|im_start|>", "hello", "Ġhello", "1", "2", "Ġ", "1", "<|im_end|>"]
    assert encoding.ids == [TOKENS.index(token) for token in encoding.tokens]
    assert tokenizer.decode(encoding.ids) == "hello hello12 1"
    assert tokenizer.decode(tokenizer.encode("çà 水 🙂\n").ids) == "çà 水 🙂\n"


def test_the_template_and_the_ends_of_an_answer_are_kept(tmp_path: Path) -> None:
    folder = imported(write_gguf(tmp_path / "tiny.gguf"))
    assert (folder / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    assert json.loads((folder / "generation_config.json").read_text()) == {"eos_token_id": [2]}


def test_a_gguf_without_a_template_is_imported_without(tmp_path: Path) -> None:
    folder = imported(write_gguf(tmp_path / "tiny.gguf", has_template=False))
    assert not (folder / "chat_template.jinja").exists()


def test_a_gguf_in_parts_is_read_whole(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny-00001-of-00002.gguf", num_tensors_of_part_1=5)
    assert load_file(imported(path) / "model.safetensors").keys() == hf_weights().keys()
    (tmp_path / "tiny-00002-of-00002.gguf").unlink()
    with pytest.raises(ConfigError, match=r"can't read .*00002-of-00002"):
        import_gguf(path, tmp_path / "other", "tiny", lambda _: None)


def test_a_second_import_takes_the_folder_that_is_there(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    said: list[str] = []
    folder = import_gguf(path, tmp_path, "tiny", said.append)
    assert folder == tmp_path / f"tiny-v{FORMAT_VERSION}"
    assert said == [f"import: tiny.gguf into {folder} (only once)"]
    path.unlink()
    assert import_gguf(path, tmp_path, "tiny", said.append) == folder
    assert len(said) == 1


def test_of_two_imports_at_once_the_slower_takes_the_faster_ones_folder_and_leaves_nothing(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    cache = tmp_path / "cache"

    def import_meanwhile(_: str) -> None:
        import_gguf(path, cache, "tiny", lambda _: None)
        (cache / f"tiny-v{FORMAT_VERSION}" / "faster").touch()

    folder = import_gguf(path, cache, "tiny", import_meanwhile)
    assert (folder / "faster").exists()
    assert list(cache.iterdir()) == [folder]


def test_two_imports_write_the_same_bytes(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    folders = [import_gguf(path, tmp_path / name, "tiny", lambda _: None) for name in ("one", "two")]
    one, two = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders)
    assert one == two


def test_an_import_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", pre="moon")
    with pytest.raises(ConfigError, match="pre-tokenizer 'moon'; known is 'gpt2' with smollm"):
        imported(path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="architecture 'qwen2'; known is 'llama'"):
        imported(write_gguf(tmp_path / "tiny.gguf", architecture="qwen2"))


def test_scaled_positions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"scales its positions \('yarn'\)"):
        imported(write_gguf(tmp_path / "tiny.gguf", scaling=gguf.RopeScalingType.YARN))


def test_a_tensor_that_no_llama_has_is_named(tmp_path: Path) -> None:
    weights = hf_weights() | {"rope_freqs.weight": np.ones(2, np.float32)}
    with pytest.raises(ConfigError, match=r"unknown tensors: \['rope_freqs.weight'\], missing: \[\]"):
        imported(write_gguf(tmp_path / "tiny.gguf", weights))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    weights = hf_weights()
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ConfigError, match=r"unknown tensors: \[\], missing: \['blk.1.ffn_up.weight'\]"):
        imported(write_gguf(tmp_path / "tiny.gguf", weights))


def test_merges_of_unknown_tokens_make_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="make no tokenizer"):
        imported(write_gguf(tmp_path / "tiny.gguf", merges=["zz yy"]))


@pytest.mark.parametrize("num_bytes", [0, 3, 8, 24, 30, 100, 5000])
def test_a_file_cut_short_is_refused(tmp_path: Path, num_bytes: int) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(ConfigError, match="is no whole GGUF"):
        imported(path)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't read .*nowhere\.gguf"):
        imported(tmp_path / "nowhere.gguf")


def test_a_cache_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "taken").touch()
    with pytest.raises(ConfigError, match=r"can't write the model to .*taken: .*; give another cache folder"):
        import_gguf(path, tmp_path / "taken", "tiny", lambda _: None)
