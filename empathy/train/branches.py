"""A batch as one row of branches, and the attention of such a row.

A branch is what a row does not share with an earlier one; what it shares is the past that it goes on from. Positions
are those that the tokens had, and each branch attends to its own past and to itself, so no (query, key) is reckoned
that a row does not hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BY_BRANCH = "sdpa_by_branch"
"""Our attention's name among those that transformers knows."""
BRANCH_TOKENS = 8
"""What a branch costs beyond its tokens, in tokens: each has attention calls of its own."""


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
    common_BB = common(ids_BL, lengths_B)
    distinct = lengths_B.sum() - np.tril(common_BB, -1).max(-1).sum()
    if distinct + BRANCH_TOKENS * len(ids_BL) >= ids_BL.size:
        return None
    return layout_of(ids_BL, lengths_B, common_BB)


def common(ids_BL: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
    """(B, B): how many tokens two rows have in common from the start."""
    padding = np.arange(ids_BL.shape[1]) >= lengths_B[:, None]
    ids_BL = np.where(padding, -1 - np.arange(len(ids_BL))[:, None], ids_BL)  # no row's padding equals another's
    same_BBL = ids_BL[:, None] == ids_BL[None]
    common: np.ndarray = np.logical_and.accumulate(same_BBL, axis=-1).sum(-1)
    return common


def layout_of(ids_BL: np.ndarray, lengths_B: np.ndarray, common_BB: np.ndarray) -> Layout:
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
    """A layout's branches on a device, as the two ways to attend want them; each is made when it is first asked for."""

    branches: tuple[Branch, ...]
    device: Any

    @cached_property
    def masks(self) -> tuple[torch.Tensor | None, ...]:
        """For each branch (its tokens, past and itself) bool, True where a query sees a key; None where a branch has no
        past, or is one token that sees all."""
        return tuple(_mask(branch, self.device) for branch in self.branches)

    @cached_property
    def packed(self) -> Packed:
        sizes = np.array([branch.tokens for branch in self.branches])
        starts = np.cumsum(sizes) - sizes
        seen = [
            [*(starts[n] + np.arange(count) for n, count in branch.past), start + np.arange(branch.tokens)]
            for start, branch in zip(starts, self.branches, strict=True)
        ]
        keys = np.concatenate([part for parts in seen for part in parts])
        lengths = np.array([sum(map(len, parts)) for parts in seen])

        def ends(counts: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)).to(self.device)

        return Packed(
            torch.from_numpy(keys).to(self.device), ends(sizes), ends(lengths), int(sizes.max()), int(lengths.max())
        )


@dataclass(frozen=True)
class Packed:
    """keys: (K,) int64, which of the N tokens each branch sees, branch after branch, in order. query_ends, key_ends:
    (branches + 1,) int32, where each branch's queries and keys end among the N and the K, from 0."""

    keys: torch.Tensor
    query_ends: torch.Tensor
    key_ends: torch.Tensor
    most_queries: int
    most_keys: int


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
    if flash_takes(query):
        return _all_at_once(query, key, value, branches.packed, rest.get("scaling")), None
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


def flash_takes(query: torch.Tensor) -> bool:
    """Does FlashAttention, as torch has it, take this: half precision, on a GPU from Ampere on?"""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] <= 256
        and query.shape[-1] % 8 == 0
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
    )


def _all_at_once(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: Packed, scaling: float | None
) -> torch.Tensor:
    """One FlashAttention call of as many sequences as there are branches. A query sees the keys up to its own: causal
    masks end at the lower right there, so a branch's past comes before it."""
    seen_keys, seen_values = gathered(key, value, packed.keys)
    made: Any = varlen_attn(
        query[0].transpose(0, 1),
        seen_keys,
        seen_values,
        packed.query_ends,
        packed.key_ends,
        packed.most_queries,
        packed.most_keys,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=True,
    )
    attended: torch.Tensor = made[None]
    return attended


def gathered(key: torch.Tensor, value: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """key, value: (1, heads, N, D); places: (K,). Their tokens at `places`, (K, heads, D) each.

    A shared past is seen by many branches, so its gradient is a sum of many: an embedding's backward pass sorts, and so
    adds in one order and in float32, where that of an index would add in any, rounding each time.
    """
    heads, width = key.shape[1], key.shape[3]
    table_N2HD = torch.cat([key, value], dim=1)[0].transpose(0, 1).flatten(1)
    found = torch.nn.functional.embedding(places, table_N2HD).unflatten(1, (2 * heads, width))
    return found[:, :heads], found[:, heads:]


AttentionInterface.register(BY_BRANCH, attend_by_branch)
AttentionMaskInterface.register(BY_BRANCH, sdpa_mask)
