"""Writes a Llama of a few hundred numbers as a GGUF, the way llama.cpp's converter does."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel

NUM_BLOCKS, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, HIDDEN, INNER = 2, 4, 2, 8, 32, 8
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ hello", "Ċ Ċ", "Ġ 1"]  # the last one never happens: digits stand alone
TOKENS = [*CONTROL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HF_NAMES = {
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
Weights = dict[str, NDArray[np.float32]]


def hf_weights(is_tied: bool = True) -> Weights:
    """Every value is different, and small enough to be exact in float16."""
    q, kv = NUM_HEADS * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM
    in_block = {
        "input_layernorm": (HIDDEN,),
        "self_attn.q_proj": (q, HIDDEN),
        "self_attn.k_proj": (kv, HIDDEN),
        "self_attn.v_proj": (kv, HIDDEN),
        "self_attn.o_proj": (HIDDEN, q),
        "post_attention_layernorm": (HIDDEN,),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (len(TOKENS), HIDDEN)}
    for block in range(NUM_BLOCKS):
        shapes |= {f"model.layers.{block}.{name}.weight": shape for name, shape in in_block.items()}
    shapes["model.norm.weight"] = (HIDDEN,)
    if not is_tied:
        shapes["lm_head.weight"] = (len(TOKENS), HIDDEN)
    return {
        name: ((np.arange(prod(shape)).reshape(shape) % 2000 + number) / 64).astype(np.float32)
        for number, (name, shape) in enumerate(shapes.items())
    }


def gguf_name(name: str) -> str:
    ends = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in ends:
        return ends[name]
    _, _, block, rest = name.split(".", 3)
    theirs = next(ours for ours, hf in HF_NAMES.items() if rest == f"{hf}.weight")
    return f"blk.{block}.{theirs}.weight"


def permuted(weights: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Source: llama.cpp, convert_hf_to_gguf.py, LlamaModel.permute."""
    rows, columns = weights.shape
    return weights.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(weights.shape)


def write_gguf(
    path: Path,
    weights: Weights | None = None,
    *,
    architecture: str = "llama",
    pre: str = "smollm",
    merges: Sequence[str] = MERGES,
    scaling: gguf.RopeScalingType | None = None,
    num_tensors_of_part_1: int | None = None,
    has_template: bool = True,
    is_quantized: bool = False,
) -> Path:
    """With ``is_quantized`` the embedding is in Q8_0.

    With ``num_tensors_of_part_1`` the rest goes into a second part without metadata; ``path`` names part 1.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(NUM_BLOCKS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(NUM_HEADS)
    writer.add_head_count_kv(NUM_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    if scaling is not None:
        writer.add_rope_scaling_type(scaling)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(CONTROL) + [1] * (len(TOKENS) - len(CONTROL)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if has_template:
        writer.add_chat_template(CHAT_TEMPLATE)
    items = list((hf_weights() if weights is None else weights).items())
    if is_quantized:
        name, values = items.pop(0)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(gguf_name(name), gguf.quantize(values, kind), raw_dtype=kind)
    _add_tensors(writer, items[:num_tensors_of_part_1])
    if num_tensors_of_part_1 is not None:
        rest = gguf.GGUFWriter(path.with_name(path.name.replace("-00001-", "-00002-")), architecture)
        _add_tensors(rest, items[num_tensors_of_part_1:])
    return path


def _add_tensors(writer: gguf.GGUFWriter, items: Sequence[tuple[str, NDArray[np.float32]]]) -> None:
    for name, values in items:
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = permuted(values, NUM_HEADS if "q_proj" in name else NUM_KV_HEADS)
        kept = values if values.ndim == 1 else values.astype(np.float16)
        writer.add_tensor(gguf_name(name) if name.startswith(("model.", "lm_head.")) else name, kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
