"""Reads what the rows of a batch have in common once, and padding never.

The two replies of a preference pair answer the same prompt, and rows differ in length, so most of what a padded batch
makes a decoder read it reads twice or for nothing. Here the rows of a batch are laid out anew, as one row of branches
(`empathy.train.branches`). Every hidden state is the one that the padded batch would have given, up to the order of
floating-point sums; the caller gets them back where it expects them, and its loss need not know.

Nothing is assumed about an architecture: the first batch that a model reads here is preceded by a small trial, and a
model that answers differently (one with an attention of its own, say: state-space layers) goes on row by row.
"""

from __future__ import annotations

import functools
import inspect
import re
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from empathy.train.branches import BY_BRANCH, Grown, Layout, common, lay_out, layout_of

_DROPS = re.compile(r"(?!summary|classifier).*drop")
"""Names of a config's shares that are dropped in a decoder; heads for other tasks have their own."""


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
            branches=Grown(layout.branches, device),
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
        layout = layout_of(ids_BL, lengths_B, common(ids_BL, lengths_B))
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
