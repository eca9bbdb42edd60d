"""Imports a GGUF of the Llama architecture once, into a folder as transformers has it.

The folder gets ``config.json``, ``model.safetensors`` (float32, Hugging Face's names), ``tokenizer.json``,
``generation_config.json`` and ``chat_template.jinja``.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from routing.errors import ConfigError
from swarm.gguf_file import GgufFile
from swarm.gguf_tokenizer import tokenizer_json

FORMAT_VERSION = 1  # of what is written: a newer import never takes an older one's folder for its own

_AT_ENDS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def import_gguf(path: Path, cache_dir: Path, name: str, progress: Callable[[str], None]) -> Path:
    """The folder ``cache_dir/NAME-vFORMAT`` with the model of ``path``; written unless it is there.

    It is written beside and renamed when whole, so two processes that import at once both end with a whole folder.

    Raises:
        ConfigError: ``path`` is no GGUF that can be imported, or the cache can't be written.
    """
    folder = cache_dir / f"{name}-v{FORMAT_VERSION}"
    if folder.is_dir():
        return folder
    progress(f"import: {path.name} into {folder} (only once)")
    file = GgufFile(path)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache_dir) as temporary:
            whole = Path(temporary) / folder.name
            whole.mkdir()
            _write(file, whole)
            _rename(whole, folder)
    except OSError as error:
        raise ConfigError(
            f"can't write the model to {cache_dir}: {error.strerror}; give another cache folder"
        ) from error
    return folder


def _rename(whole: Path, folder: Path) -> None:
    try:
        whole.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster, and its folder is as whole as ours
            raise


def _write(file: GgufFile, folder: Path) -> None:
    """Metadata first: what is unknown is refused before the long work."""
    config = _config(file)
    _write_json(folder / "config.json", config)
    ends = {token for kind in ("eos", "eot") if (token := _token_id(file, kind)) is not None}
    _write_json(folder / "generation_config.json", {"eos_token_id": sorted(ends)})
    tokenizer = tokenizer_json(
        model=file.get("tokenizer.ggml.model", str),
        pre=file.get("tokenizer.ggml.pre", str, "default"),
        tokens=file.get_list("tokenizer.ggml.tokens", str),
        types=file.get_list("tokenizer.ggml.token_type", int),
        merges=file.get_list("tokenizer.ggml.merges", str),
    )
    (folder / "tokenizer.json").write_bytes(tokenizer.encode())
    if "tokenizer.chat_template" in file:
        (folder / "chat_template.jinja").write_bytes(file.get("tokenizer.chat_template", str).encode())
    save_file(_weights(file), folder / "model.safetensors", metadata={"format": "pt"})


def _config(file: GgufFile) -> dict[str, object]:
    """config.json of a Llama model.

    Raises:
        ConfigError: another architecture, or positions that are scaled.
    """
    architecture = file.get("general.architecture", str)
    if architecture != "llama":
        raise ConfigError(
            f"{file.path} has the architecture {architecture!r}; known is 'llama': give a folder of safetensors instead"
        )
    scaling = file.get("llama.rope.scaling.type", str, "none")
    if scaling != "none":
        raise ConfigError(f"{file.path} scales its positions ({scaling!r}): give a folder of safetensors instead")
    hidden_size, (num_heads, num_kv_heads) = file.count("llama.embedding_length"), _heads(file)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden_size,
        "intermediate_size": file.count("llama.feed_forward_length"),
        "num_hidden_layers": file.count("llama.block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": file.count("llama.attention.key_length", hidden_size // num_heads),
        "max_position_embeddings": file.count("llama.context_length"),
        "vocab_size": file.count("llama.vocab_size", len(file.get_list("tokenizer.ggml.tokens", str))),
        "rms_norm_eps": _as_written(file.get("llama.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": _as_written(file.get("llama.rope.freq_base", float, 10000.0)),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in file.tensor_names(),
        "bos_token_id": _token_id(file, "bos"),
        "eos_token_id": _token_id(file, "eos"),
        "dtype": "float32",
    }


def _heads(file: GgufFile) -> tuple[int, int]:
    """Query heads, KV heads."""
    num_heads = file.count("llama.attention.head_count")
    return num_heads, file.count("llama.attention.head_count_kv", num_heads)


def _token_id(file: GgufFile, kind: str) -> int | None:
    key = f"tokenizer.ggml.{kind}_token_id"
    return file.get(key, int) if key in file else None


def _as_written(value: float) -> float:
    """1e-05 for the float32 nearest to it: the number that a person wrote before it became float32."""
    return float(str(np.float32(value)))


def _weights(file: GgufFile) -> dict[str, NDArray[np.float32]]:
    """Every tensor under Hugging Face's name, the rows of q and k in its order.

    Raises:
        ConfigError: a tensor is missing, or the Llama architecture doesn't have it.
    """
    names = dict(_AT_ENDS)
    for block in range(file.count("llama.block_count")):
        for ours, theirs in _IN_BLOCK.items():
            names[f"blk.{block}.{ours}.weight"] = f"model.layers.{block}.{theirs}.weight"
    unknown, missing = file.tensor_names() - names.keys(), names.keys() - file.tensor_names() - {"output.weight"}
    if unknown or missing:
        raise ConfigError(
            f"{file.path} is no plain Llama (unknown tensors: {sorted(unknown)[:3]}, missing: {sorted(missing)[:3]}): "
            "give a folder of safetensors instead"
        )
    num_heads, num_kv_heads = _heads(file)
    weights: dict[str, NDArray[np.float32]] = {}
    for name, values in file.tensors():
        if name.endswith(".attn_q.weight"):
            values = _halves_apart(values, num_heads, file.path)
        elif name.endswith(".attn_k.weight"):
            values = _halves_apart(values, num_kv_heads, file.path)
        weights[names[name]] = values
    return weights


def _halves_apart(values: NDArray[np.float32], num_heads: int, path: Path) -> NDArray[np.float32]:
    """Rows of q or k in Hugging Face's order: the two that rotate together lie half a head apart, not side by side.

    Args:
        values: float32 [num_heads * head_dim, hidden_size].
        num_heads: heads of this matrix.
        path: for the error.
    """
    num_rows, num_columns = values.shape
    if num_rows % (2 * num_heads):
        raise ConfigError(f"{path}: {num_rows} rows of attention don't make {num_heads} heads; download it again")
    pairs = values.reshape(num_heads, num_rows // num_heads // 2, 2, num_columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_bytes((json.dumps(value, indent=2) + "\n").encode())
