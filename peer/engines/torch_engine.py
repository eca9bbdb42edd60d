"""The engine on torch: plans in, one ragged forward pass, rows or walks out. Below it nothing knows of waves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peer.attention import Segment
from peer.engines.rows import from_wire, to_wire
from peer.kv_cache import KVCache
from peer.plan import Outcome, PassPart, PassPlan
from peer.sampling import Logits, sample
from peer.spans import SpanModel
from peer.verification import walk
from routing.domain import Span
from routing.errors import WireError


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """A part that takes part in the pass: its index in the plan, and its rows' place and input."""

    index: int
    part: PassPart
    segment: Segment
    rows: Tensor | None

    def output(self, hidden: Tensor, begin: int = 0) -> Tensor:
        """Its rows of the pass, from its row ``begin`` on."""
        return hidden[self.segment.first + begin : self.segment.first + self.segment.num_rows]


class TorchEngine:
    """Fulfils ``peer.plan.Engine``.

    Args:
        model: the blocks; a plan may ask for some of them.
    """

    def __init__(self, model: SpanModel) -> None:
        self._models = {model.span: model}
        self._model = model
        self._caches: dict[int, KVCache] = {}

    @torch.inference_mode()
    def run(self, plan: PassPlan) -> list[Outcome]:
        """One forward pass; an outcome for each part, in order.

        What is wrong with one part is found before the pass, or in its own logits, and fails it alone.

        Raises:
            ConfigError: the plan wants blocks that are not all here.
            ValueError: two parts are of one session.
            RuntimeError: torch could not do it.
        """
        if len({part.cache for part in plan.parts}) != len(plan.parts):
            raise ValueError("a session can have only one part in a pass")
        model = self._model_of(plan.span)
        outcomes = [Outcome() for _ in plan.parts]
        entries: list[_Entry] = []
        first_row = 0
        for index, part in enumerate(plan.parts):
            try:
                rows = _input_rows(model, part)
                segment = Segment(
                    first_row, len(part), self._cache(model, part), part.num_committed, part.open_positions, part.sees
                )
            except (ValueError, WireError) as error:
                outcomes[index] = Outcome(failure=str(error))
                continue
            if len(part):
                entries.append(_Entry(index, part, segment, rows))
                first_row += len(part)
        if entries:
            hidden = _forward(model, entries)
            for entry, outcome in zip(entries, _results(model, entries, hidden), strict=True):
                outcomes[entry.index] = outcome
        return outcomes

    def forget(self, caches: Sequence[int]) -> None:
        """Free these caches; a number that is not known is ignored."""
        for cache in caches:
            self._caches.pop(cache, None)

    def _model_of(self, span: Span) -> SpanModel:
        if span not in self._models:
            self._models[span] = self._model.part(span)
        return self._models[span]

    def _cache(self, model: SpanModel, part: PassPart) -> KVCache:
        """The part's cache after its moves, with room for its rows.

        Raises:
            ValueError: the plan does not fit what the cache holds, or is allowed to hold.
        """
        cache = self._caches.get(part.cache)
        if cache is None:
            cache = self._caches[part.cache] = model.new_cache(part.max_tokens)
        cache.keep(part.first, part.moves)
        cache.reserve(len(part))
        return cache


def _input_rows(model: SpanModel, part: PassPart) -> Tensor | None:
    """What came over the wire, [rows, hidden]; None where the tokens are embedded.

    Raises:
        ValueError: a token that the model has not, or a text that is too long for it.
        WireError: there are not the right rows.
    """
    if not len(part):
        return None
    if model.max_text is not None and int(part.open_positions.max()) >= model.max_text:
        raise ValueError(f"this model's texts have at most {model.max_text} tokens here")
    if model.is_first:
        if not 0 <= int(part.tokens.min()) <= int(part.tokens.max()) < model.vocab_size:
            raise ValueError(f"token {part.tokens.max()} is not in the model's vocabulary of {model.vocab_size}")
        return None
    return from_wire(part.rows, len(part), model.hidden_size)


def _forward(model: SpanModel, entries: Sequence[_Entry]) -> Tensor:
    """Run the blocks over the rows of all entries: [rows, hidden]."""
    positions = torch.from_numpy(np.concatenate([entry.part.positions for entry in entries])).to(model.device)
    if model.is_first:
        tokens = torch.from_numpy(np.concatenate([entry.part.tokens for entry in entries])).to(model.device)
        rows = model.embed(tokens)
    else:
        given = [entry.rows for entry in entries if entry.rows is not None]
        rows = torch.cat([own.to(device=model.device, dtype=model.dtype) for own in given])
    return model.forward(rows, positions, [entry.segment for entry in entries])


def _results(model: SpanModel, entries: Sequence[_Entry], hidden: Tensor) -> list[Outcome]:
    """What each entry gets from the rows [rows, hidden] that the blocks gave."""
    if not model.is_last:
        return [Outcome(rows=to_wire(entry.output(hidden).to(model.rows_dtype))) for entry in entries]
    verified = [entry.output(hidden, entry.part.verify_from) for entry in entries if entry.part.verify_from is not None]
    if not verified:
        return [Outcome() for _ in entries]
    logits = model.logits(torch.cat(verified)).cpu().numpy()  # one product for all, [verified rows, vocab]
    outcomes = []
    first = 0
    for entry in entries:
        if entry.part.verify_from is None:
            outcomes.append(Outcome())
            continue
        num_rows = len(entry.part) - entry.part.verify_from
        outcomes.append(_walk(entry.part, entry.part.verify_from, logits[first : first + num_rows]))
        first += num_rows
    return outcomes


def _walk(part: PassPart, begin: int, logits: Logits) -> Outcome:
    """Walk the part's rows from ``begin`` on, by their logits [rows, vocab]."""
    after = part.positions[begin:] + 1
    try:
        return Outcome(
            walk=walk(
                part.ids[begin:],
                part.parents[begin:],
                part.tokens[begin:],
                lambda row: sample(logits[row], part.params, int(after[row])),
            )
        )
    except ValueError as error:
        return Outcome(failure=str(error))
