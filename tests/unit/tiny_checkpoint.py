"""Writes checkpoints of a few bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 8,
    "vocab_size": 10,
}


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes | None]]) -> None:
    """``tensors``: name -> dtype, shape, values (None: zeros)."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, (dtype, shape, values) in tensors.items():
        data = bytes(prod(shape) * ITEM_BYTES[dtype]) if values is None else values
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    write_raw(path, header, body)


def write_raw(path: Path, header: object, body: bytes = b"") -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def write_config(folder: Path, **changes: object) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def block(number: int, dtype: str = "F32") -> dict[str, tuple[str, tuple[int, ...], bytes | None]]:
    """96 elements."""
    return {
        f"model.layers.{number}.self_attn.q_proj.weight": (dtype, (8, 8), None),
        f"model.layers.{number}.self_attn.k_proj.weight": (dtype, (3, 8), None),
        f"model.layers.{number}.input_layernorm.weight": (dtype, (8,), None),
    }


def ends(is_tied: bool = True) -> dict[str, tuple[str, tuple[int, ...], bytes | None]]:
    """Embedding 10 x 8, final norm 8, head 12 x 8 unless tied."""
    head: dict[str, tuple[str, tuple[int, ...], bytes | None]] = {"lm_head.weight": ("F32", (12, 8), None)}
    return {
        "model.embed_tokens.weight": ("F32", (10, 8), None),
        "model.norm.weight": ("F32", (8,), None),
    } | ({} if is_tied else head)
