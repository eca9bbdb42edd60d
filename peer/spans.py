"""A span: the transformers model itself, cut to the blocks [start, end), with only their weights loaded."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from peer.attention import NAME, Segment
from peer.checkpoint import Checkpoint
from peer.kv_cache import KVCache
from routing.domain import Span
from routing.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class SpanModel:
    """Some blocks of a model; the first span has the embedding too, the last one the final norm and the head.

    Args:
        folder: config.json and safetensors.
        span: the blocks.
        dtype: what weights, rows and caches are held in.
        device: where they lie and are computed.

    Raises:
        ConfigError: the folder is no model that can be cut, or has not all of the span's weights.
    """

    def __init__(
        self, folder: Path, span: Span, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        checkpoint = Checkpoint.open(folder)
        self.num_blocks = checkpoint.config.num_blocks
        if not Span(0, self.num_blocks).covers(span):
            raise ConfigError(f"{folder} has the blocks 0:{self.num_blocks}; {span} is not among them")
        self.span = span
        self.dtype = dtype
        self.device = torch.device(device)
        self.is_first = span.start == 0
        self.is_last = span.end == self.num_blocks
        self._model = _cut_model(folder, span, self.num_blocks, dtype)
        _load_weights(self._model, checkpoint, span, dtype, self.device)
        self._base: Any = self._model.model
        self._base.rotary_emb = type(self._base.rotary_emb)(config=self._model.config).to(self.device)
        self._model.eval()
        if unfilled := [name for name, buffer in self._model.named_buffers() if buffer.is_meta]:
            raise ConfigError(
                f"{folder}: {unfilled[0]} is not in the files of a {self._model.config.model_type} model, "
                "and this version can't compute it"
            )
        config = self._model.config
        self.hidden_size = int(config.hidden_size)
        self.vocab_size = int(config.vocab_size)
        self._num_kv_heads = int(config.num_key_value_heads)
        self._first_layer = 0  # as the attention modules count: from the first block that is loaded
        self._head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    def part(self, span: Span) -> SpanModel:
        """Some of this span's blocks as a span of their own; it shares the weights.

        Raises:
            ConfigError: they are not all here.
        """
        if not self.span.covers(span):
            raise ConfigError(f"the blocks {span} are not all in {self.span}")
        first = span.start - self.span.start
        part = copy.copy(self)
        part.span = span
        part.is_first = span.start == 0
        part.is_last = span.end == self.num_blocks
        part._first_layer = self._first_layer + first
        base = copy.copy(self._base)
        base._modules = dict(self._base._modules)
        base.layers = nn.ModuleList(list(self._base.layers)[first : first + len(span)])
        base.config = copy.copy(self._base.config)
        base.config.num_hidden_layers = len(span)
        if getattr(base.config, "layer_types", None):
            base.config.layer_types = base.config.layer_types[first : first + len(span)]
        if not part.is_last:
            base.norm = nn.Identity()
        part._base = base
        return part

    def new_cache(self, max_tokens: int) -> KVCache:
        """An empty cache for one session."""
        return KVCache(
            self._first_layer,
            len(self.span),
            self._num_kv_heads,
            self._head_dim,
            max_tokens,
            self.dtype,
            self.device,
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids, int64 [rows], as input rows [rows, hidden]. Only the first span can."""
        return cast(Tensor, self._base.embed_tokens(tokens))

    def forward(self, rows: Tensor, positions: Tensor, segments: Sequence[Segment]) -> Tensor:
        """Run the blocks once over the rows of several sessions.

        Args:
            rows: [rows, hidden], the embedding's or the span's before.
            positions: int64 [rows], of each row in its own text.
            segments: whose rows they are, in order.

        Returns:
            [rows, hidden]; after the last block the final norm has been applied.
        """
        output = self._base(inputs_embeds=rows[None], position_ids=positions[None], use_cache=False, segments=segments)
        return cast(Tensor, output.last_hidden_state)[0]

    def logits(self, rows: Tensor) -> Tensor:
        """Output rows [rows, hidden] of the last span as float32 [rows, vocab]."""
        logits = cast(Tensor, self._model.lm_head(rows)).float()
        cap = getattr(self._model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


def _cut_model(folder: Path, span: Span, num_blocks: int, dtype: torch.dtype) -> PreTrainedModel:
    """The model without weights, with the span's blocks alone."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, attn_implementation=NAME, dtype=dtype)
    except (ValueError, OSError, KeyError) as error:
        raise ConfigError(f"{folder}: transformers can't build this model: {error}") from None
    base = getattr(model, "model", None)
    layers = getattr(base, "layers", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if base is None or layers is None or len(layers) != num_blocks or not hasattr(base, "rotary_emb"):
        raise ConfigError(f"{folder}: a {config.model_type} model can't be cut into spans by this version")
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise ConfigError(
            f"{folder}: {config.model_type} has blocks that are no plain attention; they can't be verified"
        )
    base.layers = nn.ModuleList(cast(nn.ModuleList, layers)[span.start : span.end])
    for index, layer in enumerate(base.layers):
        layer.self_attn.layer_idx = index
    base.config.num_hidden_layers = len(span)
    if kinds:
        base.config.layer_types = config.layer_types[span.start : span.end]
    if span.start > 0:
        base.embed_tokens = nn.Identity()
    if span.end < num_blocks:
        base.norm = nn.Identity()
        model.lm_head = nn.Identity()
    return cast(PreTrainedModel, model)


def _load_weights(
    model: PreTrainedModel, checkpoint: Checkpoint, span: Span, dtype: torch.dtype, device: torch.device
) -> None:
    """Fill the cut model; every parameter that it has must be in the checkpoint."""
    weights: dict[str, Tensor] = {}
    by_file: dict[Path, list[tuple[str, str]]] = {}
    for name in model.state_dict():
        source = _name_in_checkpoint(name, span)
        if source == "lm_head.weight" and source not in checkpoint.tensors:
            source = "model.embed_tokens.weight"  # tied
        if source not in checkpoint.tensors:
            raise ConfigError(
                f"{checkpoint.folder} lacks {source}, which the blocks {span} need: the download is not whole, or "
                f"{model.config.model_type} keeps its weights under other names than transformers' model has them"
            )
        by_file.setdefault(checkpoint.tensors[source].file, []).append((name, source))
    for file, names in by_file.items():
        with safe_open(file, framework="pt", device=str(device)) as tensors:
            for name, source in names:
                weights[name] = tensors.get_tensor(source).to(dtype)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ConfigError(f"{checkpoint.folder}: the weights do not fit config.json: {error}") from None


def _name_in_checkpoint(name: str, span: Span) -> str:
    """``model.layers.0.x`` of the span as the whole model calls it."""
    parts = name.split(".")
    if parts[:2] == ["model", "layers"]:
        parts[2] = str(int(parts[2]) + span.start)
    return ".".join(parts)
