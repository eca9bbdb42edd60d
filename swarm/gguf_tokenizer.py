"""A GGUF's tokenizer as ``tokenizer.json``.

The text is laid out here and not by the ``tokenizers`` library, so that every version of it gives the same bytes: they
are part of what identifies a model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer

from routing.errors import ConfigError

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# tokenizer.ggml.pre -> the pre-tokenizer of the same name; source: llama.cpp, convert_hf_to_gguf_update.py.
_PRE_TOKENIZERS: Mapping[str, object] = {
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL]},
}
_CONTROL, _USER_DEFINED = 3, 4


def tokenizer_json(model: str, pre: str, tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]) -> str:
    """Byte-level BPE from the metadata ``tokenizer.ggml.*``.

    Args:
        model: kind of vocabulary; only ``gpt2`` (byte-level BPE) is known.
        pre: name of the pre-tokenizer.
        tokens: text of every token by its id, in the byte-level alphabet.
        types: kind of every token; control tokens (3) become special, user-defined ones (4) added tokens.
        merges: pairs ``left right``, the first is merged first.

    Raises:
        ConfigError: an unknown kind, or parts that make no tokenizer.
    """
    if model != "gpt2" or pre not in _PRE_TOKENIZERS:
        known = ", ".join(sorted(_PRE_TOKENIZERS))
        raise ConfigError(
            f"the GGUF's tokenizer is {model!r} with pre-tokenizer {pre!r}; known is 'gpt2' with {known}: "
            "give a folder of safetensors with its tokenizer.json"
        )
    if len(types) != len(tokens):
        raise ConfigError(f"the GGUF has {len(tokens)} tokens and {len(types)} token types; download it again")
    added = [
        {
            "id": number,
            "content": tokens[number],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for number, kind in enumerate(types)
        if kind in {_CONTROL, _USER_DEFINED}
    ]
    layout = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZERS[pre],
        "post_processor": None,
        "decoder": _BYTE_LEVEL | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }
    text = json.dumps(layout, ensure_ascii=False, indent=1)
    try:
        Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception, whatever is wrong
        raise ConfigError(f"the GGUF's tokens and merges make no tokenizer ({error}); download it again") from error
    return text
