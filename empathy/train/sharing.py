"""Reads what the rows of a batch have in common once, and padding never.

The two replies of a preference pair answer the same prompt, and rows differ in length, so most of what a padded batch
makes a decoder read it reads twice or for nothing. Here the rows of a batch are laid out anew, as one row of branches:
a branch is what a row does not share with an earlier one, and what it shares is the past that it goes on from.
Positions are those that the tokens had, and each branch attends to its own past and to itself, so no (query, key) is
reckoned that a row does not hold. Every hidden state is the one that the padded batch would have given, up to the order
of floating-point sums; the caller gets them back where it expects them, and its loss need not know.

Nothing is assumed about an architecture: the first batch that a model reads here is preceded by a small trial, and a
model that answers differently (one with an attention of its own, say: state-space layers) goes on row by row.
"""

from __future__ import annotations

import functools
import inspect
import re
import weakref
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BY_BRANCH = "sdpa_by_branch"
"""Our attention's name among those that transformers knows."""
BRANCH_TOKENS = 8
"""What a branch costs beyond its tokens, in tokens: each has attention calls of its own."""

_DROPS = re.compile(r"(?!summary|classifier).*drop")
"""Names of a config's shares that are dropped in a decoder; heads for other tasks have their own."""


# ---------------------------------------------------------------- the layout


@dataclass(frozen=True)
class Branch:
    """`tokens` of a row that stand next to each other in the layout. `past`: the tokens before them in their row, in
    order, as (number of an earlier branch, how many of its tokens from its first)."""

    tokens: int
    past: tuple[tuple[int, int], ...]

    @property
    def past_tokens(self) -> int:
        return sum(count for _, count in self.past)


@dataclass(frozen=True)
class Layout:
    """A batch of N tokens in one row, in place of one of B rows of L.

    ids, positions: (1, N) int64; N is the sum of the branches' tokens. place: (B, L) int64, where among the N each old
    token is; a padded one is put where its row ends.
    """

    ids: np.ndarray
    positions: np.ndarray
    branches: tuple[Branch, ...]
    place: np.ndarray


def lay_out(ids_BL: np.ndarray, lengths_B: np.ndarray) -> Layout | None:
    """None where the padded batch costs no more. Row b is ids_BL[b, : lengths_B[b]], one token or more."""
    common_BB = _common(ids_BL, lengths_B)
    distinct = lengths_B.sum() - np.tril(common_BB, -1).max(-1).sum()
    if distinct + BRANCH_TOKENS * len(ids_BL) >= ids_BL.size:
        return None
    return _layout(ids_BL, lengths_B, common_BB)


def _common(ids_BL: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
    """How many tokens two rows have in common from the start."""
    padding = np.arange(ids_BL.shape[1]) >= lengths_B[:, None]
    ids_BL = np.where(padding, -1 - np.arange(len(ids_BL))[:, None], ids_BL)  # no row's padding equals another's
    same_BBL = ids_BL[:, None] == ids_BL[None]
    common: np.ndarray = np.logical_and.accumulate(same_BBL, axis=-1).sum(-1)
    return common


def _layout(ids_BL: np.ndarray, lengths_B: np.ndarray, common_BB: np.ndarray) -> Layout:
    branches, ids, positions = list[Branch](), list[np.ndarray](), list[np.ndarray]()
    pasts, places = list[tuple[tuple[int, int], ...]](), list[np.ndarray]()
    place_BL, size = np.zeros(ids_BL.shape, np.int64), 0
    for b, length in enumerate(lengths_B.tolist()):
        past, place = tuple[tuple[int, int], ...](), np.zeros(0, np.int64)
        if b:
            nearest = int(common_BB[b, :b].argmax())
            shared = int(common_BB[b, nearest])
            past, place = _first(pasts[nearest], shared), places[nearest][:shared]
        if fresh := length - len(place):
            ids.append(ids_BL[b, len(place) : length])
            positions.append(np.arange(len(place), length))
            branches.append(Branch(fresh, past))
            past, place = (*past, (len(branches) - 1, fresh)), np.append(place, size + np.arange(fresh))
            size += fresh
        pasts.append(past)
        places.append(place)
        place_BL[b, :length], place_BL[b, length:] = place, place[-1]
    return Layout(np.concatenate(ids)[None], np.concatenate(positions)[None], tuple(branches), place_BL)


def _first(past: tuple[tuple[int, int], ...], tokens: int) -> tuple[tuple[int, int], ...]:
    """The first `tokens` of what these pieces hold."""
    kept = list[tuple[int, int]]()
    for branch, count in past:
        if tokens:
            kept.append((branch, min(count, tokens)))
            tokens -= kept[-1][1]
    return tuple(kept)


# ---------------------------------------------------------------- its attention


@dataclass(frozen=True)
class Grown:
    """A layout's branches on a device. `masks`: for each branch (its tokens, past and itself) bool, True where a query
    sees a key; None where a branch has no past, or is one token that sees all."""

    branches: tuple[Branch, ...]
    masks: tuple[torch.Tensor | None, ...]

    @classmethod
    def on(cls, device: Any, branches: tuple[Branch, ...]) -> Grown:
        return cls(branches, tuple(_mask(branch, device) for branch in branches))


def _mask(branch: Branch, device: Any) -> torch.Tensor | None:
    before = branch.past_tokens
    if branch.tokens == 1 or not before:
        return None
    return torch.ones(branch.tokens, before + branch.tokens, dtype=torch.bool, device=device).tril(before)


def attend_by_branch(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    branches: Grown | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' SDPA attention, of each branch to its own past and to itself; without branches, that one as it is.

    query: (1, heads, N, D); key, value: (1, key-value heads, N, D). Returns (1, N, heads, D). Raises ValueError for a
    model whose attention has biases by position.
    """
    if branches is None:
        as_it_is: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **rest)
        return as_it_is
    if rest.get("position_bias") is not None:
        raise ValueError("position_bias: is of whole rows")
    sizes = [branch.tokens for branch in branches.branches]
    queries, keys, values = (x.split(sizes, dim=2) for x in (query, key, value))
    made = [
        sdpa_attention_forward(module, q, _with_past(keys, n, branch), _with_past(values, n, branch), mask, **rest)[0]
        for n, (q, branch, mask) in enumerate(zip(queries, branches.branches, branches.masks, strict=True))
    ]
    return torch.cat(made, dim=1), None


def _with_past(parts: tuple[torch.Tensor, ...], number: int, branch: Branch) -> torch.Tensor:
    if not branch.past:
        return parts[number]
    return torch.cat([*(parts[n][:, :, :count] for n, count in branch.past), parts[number]], dim=2)


AttentionInterface.register(BY_BRANCH, attend_by_branch)
AttentionMaskInterface.register(BY_BRANCH, sdpa_mask)


# ---------------------------------------------------------------- in front of a decoder


class Sharing:
    """`forward` stands in for a decoder's, and does not keep it alive: weights go when their last user lets go of them.
    `trusted`: what the trial showed; None before it."""

    def __init__(self, decoder: Any):
        self._weakly = weakref.ref(decoder)
        config = decoder.config.get_text_config()
        self._window = getattr(config, "sliding_window", None)
        self._drops = any(  # some layers drop by a number of the config, without a module
            _DROPS.match(name) and isinstance(share, float) and share > 0 for name, share in config.to_dict().items()
        )
        self.trusted: bool | None = None

    @property
    def _decoder(self) -> Any:
        decoder = self._weakly()
        assert decoder is not None, "it is called through the decoder"
        return decoder

    def _plain(self, *args: Any, **rest: Any) -> Any:
        decoder = self._decoder
        return type(decoder).forward(decoder, *args, **rest)

    def forward(self, input_ids: Any = None, attention_mask: Any = None, *others: Any, **rest: Any) -> Any:
        """As the decoder; `attention_mask` (B, L) with its padding on the right is what can be laid out anew."""
        if others:  # by position: what they are is not known here
            return self._plain(input_ids, attention_mask, *others, **rest)
        rest = {name: value for name, value in rest.items() if value is not None}
        lengths_B = _right_padded(input_ids, attention_mask) if self._applies(input_ids, attention_mask, rest) else None
        if lengths_B is not None and self.trusted is None:
            self.trusted = self._trial(input_ids.device)
            if not self.trusted:
                self._decoder.set_attn_implementation("sdpa")
        if lengths_B is None or not self.trusted:
            return self._plain(input_ids=input_ids, attention_mask=attention_mask, **rest)
        layout = lay_out(input_ids.cpu().numpy(), lengths_B)
        if layout is None:
            return self._plain(input_ids=input_ids, attention_mask=attention_mask, **rest)
        return self._laid_out(layout, input_ids.device, rest)

    def _applies(self, input_ids: Any, attention_mask: Any, rest: dict[str, Any]) -> bool:
        """A batch of rows to be read, and nothing asked for but the last hidden states."""
        asked = any(value is not False for value in rest.values())
        two_axes = all(isinstance(x, torch.Tensor) and x.dim() == 2 for x in (input_ids, attention_mask))
        if asked or not two_axes or len(input_ids) == 1 or self._dropping():
            return False
        return self._window is None or input_ids.shape[1] <= self._window  # branches know no window

    def _dropping(self) -> bool:
        """Rows that share a token would share what is dropped of it."""
        decoder = self._decoder
        if not decoder.training:
            return False
        return self._drops or any(isinstance(m, torch.nn.Dropout) and m.p for m in decoder.modules())

    def _laid_out(self, layout: Layout, device: Any, rest: dict[str, Any]) -> Any:
        ids_1N, positions_1N, place_BL = (
            torch.from_numpy(part).to(device, non_blocking=True)
            for part in (layout.ids, layout.positions, layout.place)
        )
        found = self._plain(
            input_ids=ids_1N,
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),  # four axes: none is made for it
            position_ids=positions_1N,
            branches=Grown.on(device, layout.branches),
            **rest,
        )
        found.last_hidden_state = found.last_hidden_state[0][place_BL]
        return found

    def _trial(self, device: Any) -> bool:
        """Are the hidden states of three short rows, two of which begin alike, what they are without a layout? And do
        those of the others stay when the end of the first becomes something else?"""
        vocabulary = self._decoder.config.get_text_config().vocab_size
        drawn, other = np.random.default_rng(0).integers(vocabulary // 8, vocabulary, (2, 24))
        ids_BL = np.stack([drawn[:12], np.concatenate([drawn[:8], drawn[12:16]]), drawn[12:]])
        lengths_B = np.array([12, 11, 7])
        layout = _layout(ids_BL, lengths_B, _common(ids_BL, lengths_B))
        changed_ids = layout.ids.copy()
        changed_ids[0, 8:12] = other[8:12]  # the first row is laid out first, and shares 8 tokens
        there_BL = torch.arange(12, device=device) < torch.from_numpy(lengths_B).to(device)[:, None]
        here_BL = torch.from_numpy(ids_BL).to(device)
        with torch.no_grad():
            try:
                plain, ours, changed = (
                    found.last_hidden_state.float()[there_BL]
                    for found in (
                        self._plain(input_ids=here_BL, attention_mask=there_BL.long(), use_cache=False),
                        self._laid_out(layout, device, {"use_cache": False}),
                        self._laid_out(replace(layout, ids=changed_ids), device, {"use_cache": False}),
                    )
                )
            except (RuntimeError, TypeError, ValueError):  # it takes no mask, positions or branches of ours
                return False
        eps = torch.finfo(self._decoder.dtype).eps
        return _close(ours, plain, eps**0.5) and _close(changed[12:], ours[12:], eps)


def _close(one: Any, other: Any, share: float) -> bool:
    return bool((one - other).norm() <= share * other.norm())


def _right_padded(input_ids: Any, attention_mask: Any) -> np.ndarray | None:
    """The rows' lengths; None where something is padded on the left, or empty."""
    there_BL = attention_mask.bool().cpu().numpy()
    lengths_B: np.ndarray = there_BL.sum(-1)
    straight = (there_BL == (np.arange(there_BL.shape[1]) < lengths_B[:, None])).all()
    return lengths_B if straight and lengths_B.all() else None


def install(model: Any) -> None:
    """Let the decoder of a causal language model read in this way from now on, if it has one that can be told apart
    from its head, and attends by torch's SDPA."""
    decoder = model.get_decoder()
    if decoder is model or not isinstance(decoder, PreTrainedModel) or "forward" in vars(decoder):
        return  # the last: it does already
    takes = inspect.signature(type(decoder).forward).parameters
    attends = decoder.config.get_text_config()._attn_implementation
    if attends != "sdpa" or not {"input_ids", "attention_mask", "position_ids"} <= takes.keys():
        return
    decoder.set_attn_implementation(BY_BRANCH)
    sharing = Sharing(decoder)
    decoder.forward = functools.wraps(type(decoder).forward)(lambda *args, **rest: sharing.forward(*args, **rest))
