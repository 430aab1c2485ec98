"""Reads what the rows of a batch have in common once, and padding never.

The two replies of a preference pair answer the same prompt, and rows differ in length, so most of what a padded batch
makes a decoder read it reads twice or for nothing. Here the rows of a batch are laid out anew: as trees of tokens, in
which rows that begin alike share their beginning, several trees side by side in one row of the new batch. Positions
are those that the tokens had, and each token attends to its own past alone. So every hidden state is the one
that the padded batch would have given, up to the order of floating-point sums; the caller gets them back where it
expects them, and its loss need not know.

Nothing is assumed about an architecture: the first batch that a model reads here is preceded by a small trial, and a
model that answers differently (one that ignores masks of its own, say: state-space layers do) goes on row by row.
"""

from __future__ import annotations

import functools
import inspect
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

CAPACITIES = (1.0, 1.6, 1.25, 2.2, 1.12, 1.4, 2.8, 1.9, 3.5)
"""How long the rows of the new batch may be, in lengths of the longest old one: the cheapest is taken. Those that are
the cheapest most often come first."""
TRIED = 192
"""Rows put into bins, over all capacities: of many rows, fewer capacities are tried, for the search is Python."""
WORTH = 0.95
"""A layout is used if it costs at most this share of what the padded batch costs."""
MASK_BYTES = 128 << 20
"""A mask takes no more than this, or than the padded batch's own would."""


_DROPS = re.compile(r"(?!summary|classifier).*drop")
"""Names of a config's shares that are dropped in a decoder; heads for other tasks have their own."""


@dataclass(frozen=True)
class Cost:
    """FLOPs of a forward pass: `token` each, and `pair` for each (query, key) of a row."""

    token: float
    pair: float

    def of(self, rows: int, length: int) -> float:
        return rows * (length * self.token + length * length * self.pair)

    @classmethod
    def model(cls, decoder: Any) -> Cost:
        """2 a weight and token, 4 a channel, layer and (query, key): Kaplan et al. 2020 (arXiv:2001.08361), 2.1."""
        config = decoder.config.get_text_config()
        embedded = {id(p) for m in decoder.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
        weights = sum(p.numel() for p in decoder.parameters() if p.dim() == 2 and id(p) not in embedded)
        return cls(2.0 * weights, 4.0 * config.hidden_size * config.num_hidden_layers)


@dataclass(frozen=True)
class Layout:
    """A batch of R rows of T tokens in place of one of B rows of L.

    ids, positions: (R, T) int64. mask: (R, 1, T, T) bool, True where a query (third axis) sees a key (fourth).
    place: (B, L) int64, where in the flattened (R, T) each old token is; a padded one is put where its row ends.
    """

    ids: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    place: np.ndarray


def lay_out(ids_BL: np.ndarray, lengths_B: np.ndarray, cost: Cost) -> Layout | None:
    """The cheapest layout found; None where none is worth it. Row b is ids_BL[b, : lengths_B[b]], one token or more."""
    rows, longest = ids_BL.shape
    common_BB = _common(ids_BL, lengths_B)
    distinct = lengths_B.sum() - np.tril(common_BB, -1).max(-1).sum()
    if distinct * cost.token > WORTH * cost.of(rows, longest):
        return None
    order = _families(common_BB, lengths_B)
    capacities = CAPACITIES[: max(2, TRIED // rows)]
    tries = [_bins(order, common_BB, lengths_B, int(longest * c)) for c in capacities]
    shapes = [(len(bins), max(size for _, size in bins)) for bins in tries]
    room = max(MASK_BYTES, rows * longest**2)
    costs = [cost.of(R, T) if room >= R * T * T else np.inf for R, T in shapes]
    best = int(np.argmin(costs))
    if costs[best] > WORTH * cost.of(rows, longest):
        return None
    return _layout([members for members, _ in tries[best]], ids_BL, lengths_B, common_BB)


def _common(ids_BL: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
    """How many tokens two rows have in common from the start."""
    padding = np.arange(ids_BL.shape[1]) >= lengths_B[:, None]
    ids_BL = np.where(padding, -1 - np.arange(len(ids_BL))[:, None], ids_BL)  # no row's padding equals another's
    same_BBL = ids_BL[:, None] == ids_BL[None]
    common: np.ndarray = np.logical_and.accumulate(same_BBL, axis=-1).sum(-1)
    return common


def _families(common_BB: np.ndarray, lengths_B: np.ndarray) -> list[int]:
    """The rows, longest first, each followed by those that share at least half of their tokens with it."""
    kin_BB = 2 * common_BB >= lengths_B[:, None]
    head_B = np.where(kin_BB, lengths_B[None], 0).argmax(-1)
    return sorted(range(len(lengths_B)), key=lambda i: (-lengths_B[head_B[i]], head_B[i], -lengths_B[i], i))


def _bins(
    order: Sequence[int], common_BB: np.ndarray, lengths_B: np.ndarray, capacity: int
) -> list[tuple[list[int], int]]:
    """Each row put where it adds least, among the bins that have room for it; a new bin where none has. (rows, tokens).

    Between bins where it adds the same it goes to the fullest (best fit).
    """
    members = list[list[int]]()
    sizes_K, known_KB = np.zeros(len(order), np.int64), np.zeros((len(order), len(order)), np.int64)
    for i in order:
        n = len(members)
        adds_K = lengths_B[i] - known_KB[:n, i]
        fits_K = sizes_K[:n] + adds_K <= capacity
        if fits_K.any():
            k = int(np.where(fits_K, (adds_K + 1) * (capacity + 1) - sizes_K[:n], np.iinfo(np.int64).max).argmin())
            members[k].append(i)
        else:
            k, adds_K = n, np.append(adds_K, lengths_B[i])
            members.append([i])
        sizes_K[k] += adds_K[k]
        known_KB[k] = np.maximum(known_KB[k], common_BB[i])
    return [(rows, int(size)) for rows, size in zip(members, sizes_K[: len(members)], strict=True)]


def _layout(bins: Sequence[list[int]], ids_BL: np.ndarray, lengths_B: np.ndarray, common_BB: np.ndarray) -> Layout:
    grown = [_grow(members, lengths_B, common_BB) for members in bins]
    R, T = len(bins), max(len(owners) for _, owners, _ in grown)
    ids_RT, positions_RT = np.zeros((R, T), np.int64), np.zeros((R, T), np.int64)
    mask_R1TT = np.zeros((R, 1, T, T), bool)
    mask_R1TT[:, 0, np.arange(T), np.arange(T)] = True  # what fills a row up sees itself: no softmax over nothing
    place_BL = np.zeros(ids_BL.shape, np.int64)
    for r, (members, (paths, owners, positions)) in enumerate(zip(bins, grown, strict=True)):
        n = len(owners)
        ids_RT[r, :n] = ids_BL[np.asarray(members)[owners], positions]
        positions_RT[r, :n] = positions
        on_path = np.zeros((len(members), n), bool)
        for k, path in enumerate(paths):
            on_path[k, path] = True
            place_BL[members[k], : len(path)] = r * T + path
            place_BL[members[k], len(path) :] = r * T + path[-1]
        mask_R1TT[r, 0, :n, :n] = on_path[owners] & (positions[None] <= positions[:, None])
    return Layout(ids_RT, positions_RT, mask_R1TT, place_BL)


def _grow(
    members: Sequence[int], lengths_B: np.ndarray, common_BB: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """A tree: each member's path through the nodes; and per node the member that brought it, and its position."""
    paths: list[np.ndarray] = []
    owners, positions = list[int](), list[int]()
    for k, i in enumerate(members):
        shared = np.zeros(0, np.int64)
        if k:
            j = int(common_BB[i, members[:k]].argmax())
            shared = paths[j][: common_BB[i, members[j]]]
        fresh = range(len(shared), int(lengths_B[i]))
        paths.append(np.concatenate([shared, np.arange(len(owners), len(owners) + len(fresh))]))
        owners += [k] * len(fresh)
        positions += fresh
    return paths, np.asarray(owners), np.asarray(positions)


class Sharing:
    """`forward` stands in for a decoder's, and does not keep it alive: weights go when their last user lets go of them.
    `trusted`: what the trial showed; None before it."""

    def __init__(self, decoder: Any):
        self._weakly = weakref.ref(decoder)
        self._cost = Cost.model(decoder)
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
        if lengths_B is None or not self.trusted:
            return self._plain(input_ids=input_ids, attention_mask=attention_mask, **rest)
        layout = lay_out(input_ids.cpu().numpy(), lengths_B, self._cost)
        if layout is None:
            return self._plain(input_ids=input_ids, attention_mask=attention_mask, **rest)
        return self._laid_out(layout, input_ids.device, rest)

    def _applies(self, input_ids: Any, attention_mask: Any, rest: dict[str, Any]) -> bool:
        """A batch of rows to be read, and nothing asked for but the last hidden states."""
        asked = any(value is not False for value in rest.values())
        two_axes = all(isinstance(x, torch.Tensor) and x.dim() == 2 for x in (input_ids, attention_mask))
        if asked or not two_axes or len(input_ids) == 1 or self._dropping():
            return False
        return self._window is None or input_ids.shape[1] <= self._window  # our mask knows no window

    def _dropping(self) -> bool:
        """Rows that share a token would share what is dropped of it."""
        decoder = self._decoder
        if not decoder.training:
            return False
        return self._drops or any(isinstance(m, torch.nn.Dropout) and m.p for m in decoder.modules())

    def _laid_out(self, layout: Layout, device: Any, rest: dict[str, Any]) -> Any:
        ids_RT, positions_RT, mask_R1TT, place_BL = (
            torch.from_numpy(part).to(device, non_blocking=True)
            for part in (layout.ids, layout.positions, layout.mask, layout.place)
        )
        found = self._plain(input_ids=ids_RT, attention_mask=mask_R1TT, position_ids=positions_RT, **rest)
        found.last_hidden_state = found.last_hidden_state.flatten(0, 1)[place_BL]
        return found

    def _trial(self, device: Any) -> bool:
        """Are the hidden states of three short rows, two of which begin alike, what they are without a layout? And do
        those of the others stay when the end of the first becomes something else?"""
        vocabulary = self._decoder.config.get_text_config().vocab_size
        drawn, other = np.random.default_rng(0).integers(vocabulary // 8, vocabulary, (2, 24))
        ids_BL = np.stack([drawn[:12], np.concatenate([drawn[:8], drawn[12:16]]), drawn[12:]])
        lengths_B = np.array([12, 11, 7])
        layout = _layout([[0, 1, 2]], ids_BL, lengths_B, _common(ids_BL, lengths_B))
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
            except (RuntimeError, TypeError, ValueError):  # it takes no mask or no positions of ours
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
    from its head."""
    decoder = model.get_decoder()
    if decoder is model or not isinstance(decoder, PreTrainedModel) or "forward" in vars(decoder):
        return  # the last: it does already
    takes = inspect.signature(type(decoder).forward).parameters
    if not {"input_ids", "attention_mask", "position_ids"} <= takes.keys():
        return
    sharing = Sharing(decoder)
    decoder.forward = functools.wraps(type(decoder).forward)(lambda *args, **rest: sharing.forward(*args, **rest))
