"""Replies to different dialogues in nearly the same words: a teacher's template with a word or two changed.

Two replies are alike when the Jaccard similarity of their sets of word shingles is `ALIKE` or more (Broder 1997, "On
the resemblance and containment of documents"). Candidates are found by MinHash in LSH bands (Leskovec, Rajaraman,
Ullman, "Mining of Massive Datasets", 3.3 and 3.4; Lee et al. 2022 clean training sets so) and verified on the shingles
themselves: hashing may miss a pair, and never makes one. Replies that differ in typing only are always found.

A shingle is two words, where long documents are cut into five to thirteen: replies have 10 to 97 words, and one that is
changed takes as many shingles with it. At 0.6 one word may be another in a reply of 9, two in 17, three in 25, twelve
in 97. A pair at 0.6 shares a band with probability 1 - (1 - ALIKE**ROWS)**BANDS = 0.992, one at 0.7 with 0.9998.

In each band a reply is compared with two of those that share its key: the first, and the last of an earlier dialogue.
So time is linear in the replies; a pair is missed for sure only where others stand between the two in all its bands.

Memory: some 150 bytes a reply, 80 of them bands. Disk (TMPDIR, while this lasts): 80 bytes a reply, 4 a shingle.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import IO, TYPE_CHECKING

import numpy as np

from empathy.texts import words
from empathy.twins import MIN_WORDS, SAMPLE_BITS, Keys

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    Array = NDArray[np.uint64]
    Array32 = NDArray[np.uint32]
    Rows = NDArray[np.int64]
    Mask = NDArray[np.bool_]

SHINGLE_WORDS = 2
ALIKE = 0.6
BANDS, ROWS = 20, 3
LEAST_EQUAL = 24
"""Of the BANDS * ROWS = 60 minima: a pair at 0.6 has 36 in common on average, and fewer than 24 once in 1,700."""
PAIRS_AT_ONCE = 1 << 14
"""Compared together: 30 MB, and 100 MB where all replies have 97 words."""
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_FACTORS = np.random.Generator(np.random.PCG64(1997)).integers(1 << 32, size=BANDS * ROWS, dtype=np.uint32) | 1
"""Odd: each multiplication permutes the 32-bit numbers."""
_SHIFTS = tuple(np.uint32(bits) for bits in (21, 10, 0))
_MASKS = tuple(np.uint32(bits) for bits in (0xFFE00000, 0x001FFC00, 0x000003FF))
"""Where in a band each of its minima is."""
_HALF = np.uint64(32)


@dataclass(frozen=True)
class Sketches:
    """Of N replies that are long enough to tell, in their order."""

    numbers: Array
    """(N,), of `empathy.twins.reply_numbers`."""
    texts: Array
    """(N,), equal for replies that differ in typing only."""
    bands: Array32
    """(N, BANDS)"""
    sizes: Array32
    """(N,), how many shingles each reply has."""
    shingles: Array32
    """(sum of sizes,), in the order of the words. Of 2**32 pairs of different ones, one is taken for equal."""


# ---------------------------------------------------------------- of a part


def sketches(texts: pl.Series, numbers: Array) -> Sketches:
    """Of those of the (N,) replies that have `empathy.twins.MIN_WORDS` words or more."""
    found = words(texts.fill_null(""))
    long = found.str.count_matches(" ", literal=True) >= MIN_WORDS - 1
    found, numbers = found.filter(long), numbers[long.to_numpy()]
    data = np.frombuffer("".join((found + "\0").to_list()).encode(), dtype=np.uint8)
    ends = np.flatnonzero(data <= ord(" "))  # of words: a blank comes after it, or NUL after the last of a reply
    starts = np.concatenate([[0], ends + 1])
    last = np.flatnonzero(data[ends] == 0)
    first = np.concatenate([[0], last + 1])[:-1]
    reply = np.repeat(np.arange(len(found)), last - first + 1)
    more = SHINGLE_WORDS - 1
    inside = np.flatnonzero(reply[more:] == reply[: len(reply) - more])  # of one reply from first to last word
    hashed = _span_hashes(data)
    shingles = (hashed(starts[inside], ends[inside + more]) >> _HALF).astype(np.uint32)
    sizes = (last - first + 1 - more).astype(np.uint32)
    return Sketches(numbers, hashed(starts[first], ends[last]), _bands(shingles, sizes), sizes, shingles)


def _span_hashes(data: NDArray[np.uint8]) -> Callable[[Rows, Rows], Array]:
    """(starts, ends) -> a hash of each data[start:end], the same wherever it stands: the sum of byte * base**position,
    from which the position is divided out, modulo 2**64 (Karp and Rabin 1987)."""
    powers, inverses = (_powers(base, len(data).bit_length()) for base in (_BASE, _INVERSE))
    sums = np.zeros(len(data) + 1, dtype=np.uint64)
    np.cumsum(data * powers[: len(data)], out=sums[1:])
    return lambda starts, ends: _mixed((sums[ends] - sums[starts]) * inverses[starts])


@cache
def _powers(base: int, bits: int) -> Array:
    """base**0 to base**(2**bits - 1), modulo 2**64."""
    factors = np.full(1 << bits, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


def _mixed(hashes: Array) -> Array:
    """Every bit of each in every bit (half of MurmurHash3's finaliser)."""
    hashes = (hashes ^ (hashes >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    return hashes ^ (hashes >> np.uint64(33))


def _bands(shingles: Array32, sizes: Array32) -> Array32:
    """(N, BANDS): each the minima of ROWS permutations, cut to their lower bits and put side by side."""
    found = np.zeros((BANDS, len(sizes)), dtype=np.uint32)
    if len(sizes):
        first = np.cumsum(sizes, dtype=np.int64) - sizes
        for k, factor in enumerate(_FACTORS):
            found[k // ROWS] |= np.minimum.reduceat(shingles * factor, first) << _SHIFTS[k % ROWS] & _MASKS[k % ROWS]
    return np.ascontiguousarray(found.T)


# ---------------------------------------------------------------- of the whole set


def near_duplicates(pieces: Iterable[Sketches]) -> Keys:
    """Numbers of the replies that are alike one of an earlier dialogue, whatever is found about that one. The pieces
    come in any order."""
    with tempfile.TemporaryFile() as bands, tempfile.TemporaryFile() as shingles:
        numbers, texts, sizes = _put(pieces, bands, shingles)
        if not len(numbers):
            return Keys()
        order = np.argsort(numbers, kind="stable").astype(np.uint32)
        numbers, texts = numbers[order], texts[order]
        caught = _repeated(texts, numbers)
        starts = (np.cumsum(sizes, dtype=np.int64) - sizes)[order]
        sizes = sizes[order]
        del texts
        replies = _Replies(numbers, order, np.fromfile(bands, np.uint32), sizes, starts, shingles.fileno())
        for band in range(BANDS):
            _compare(replies, band, caught)
        return Keys(numbers[caught])


def _put(pieces: Iterable[Sketches], bands: IO[bytes], shingles: IO[bytes]) -> tuple[Array, Array, Array32]:
    """What is large goes into the files; numbers, texts and sizes are returned, in the order of coming."""
    rest = []
    for piece in pieces:
        bands.write(piece.bands.tobytes())
        shingles.write(piece.shingles.tobytes())
        rest.append((piece.numbers, piece.texts, piece.sizes))
    bands.seek(0)
    shingles.flush()
    numbers, texts, sizes = zip(*rest, strict=True)
    return np.concatenate(numbers), np.concatenate(texts), np.concatenate(sizes)


class _Replies:
    """N replies in the order of their dialogues and samples."""

    def __init__(self, numbers: Array, order: Array32, bands: Array32, sizes: Array32, starts: Rows, shingles: int):
        self.numbers, self.sizes, self.starts, self.shingles = numbers, sizes, starts, shingles
        self._order, self._bands = order, bands.reshape(-1, BANDS)

    def bands(self, chosen: Array32 | slice, band: int | slice) -> Array32:
        return self._bands[self._order[chosen], band]


def _repeated(texts: Array, numbers: Array) -> Mask:
    """Which replies are equal to one of an earlier dialogue but for typing."""
    caught = np.zeros(len(texts), dtype=np.bool_)
    order = np.argsort(texts, kind="stable").astype(np.uint32)
    caught[_mates(order, _changes(texts[order]), numbers)[0]] = True
    return caught


def _compare(replies: _Replies, band: int, caught: Mask) -> None:
    """Marks as caught what is alike one of those with its key in the band."""
    later, *mates = _mates(*_sorted(replies.bands(slice(None), band)), replies.numbers)
    for earlier in mates:
        left = np.flatnonzero(~caught[later])
        for now in np.split(left, range(PAIRS_AT_ONCE, len(left), PAIRS_AT_ONCE)):
            some, others = _promising(replies, later[now], earlier[now])
            caught[some[_alike(replies, some, others)]] = True


def _sorted(keys: Array32) -> tuple[Array32, Mask]:
    """Replies in the order of their keys, equal ones in their own; and where another key begins. One sort of both as
    one number: ten times as quick as argsort."""
    both = keys.astype(np.uint64)
    both <<= _HALF
    both |= np.arange(len(keys), dtype=np.uint32)
    both.sort()
    order = both.astype(np.uint32)  # the lower half
    both >>= _HALF
    return order, _changes(both)


def _changes(values: Array) -> Mask:
    """Where a value differs from the one before it."""
    return np.concatenate([values[:1] == values[:1], values[1:] != values[:-1]])


def _mates(order: Array32, new: Mask, numbers: Array) -> tuple[Array32, Array32, Array32]:
    """Replies that share their key with one of an earlier dialogue, the first of these, and the last. `order` has
    replies with equal keys side by side, `new` is true where another key begins."""
    shared = ~new
    shared[:-1] |= ~new[1:]
    order, new = order[shared], new[shared]
    first, own = _begins(new), _begins(new | _changes(numbers[order] >> np.uint64(SAMPLE_BITS)))
    later = np.flatnonzero(own > first)
    return order[later], order[first[later]], order[own[later] - 1]


def _begins(new: Mask) -> Array32:
    """For each place the last one up to it where `new` is true."""
    found: Array32 = np.where(new, np.arange(len(new), dtype=np.uint32), np.uint32(0))
    return np.maximum.accumulate(found, out=found)


def _promising(replies: _Replies, some: Array32, others: Array32) -> tuple[Array32, Array32]:
    """The pairs of replies that have `LEAST_EQUAL` minima in common: their share is an estimate of the similarity, and
    ten times as quick."""
    apart = replies.bands(some, slice(None)) ^ replies.bands(others, slice(None))
    equal = sum(np.count_nonzero(apart & mask == 0, axis=1) for mask in _MASKS)
    return some[equal >= LEAST_EQUAL], others[equal >= LEAST_EQUAL]


def _alike(replies: _Replies, some: Array32, others: Array32) -> Mask:
    """Which of the (P,) pairs of replies have a Jaccard similarity of `ALIKE` or more."""
    sets = _sets(replies, some), _sets(replies, others)
    both = np.concatenate(sets)
    both.sort(kind="stable")  # merges two sorted halves, in a tenth of the time of a sort
    twice = both[1:][both[1:] == both[:-1]]
    total, common = (np.bincount((of >> _HALF).astype(np.int64), minlength=len(some)) for of in (both, twice))
    return common / (total - common) >= ALIKE


def _sets(replies: _Replies, chosen: Array32) -> Array:
    """The shingles of each chosen reply, each once, with its place among the chosen in the upper half; ascending."""
    spans = zip(replies.starts[chosen].tolist(), replies.sizes[chosen].tolist(), strict=True)
    read = b"".join([os.pread(replies.shingles, 4 * size, 4 * start) for start, size in spans])
    place = np.repeat(np.arange(len(chosen), dtype=np.uint64), replies.sizes[chosen])
    return np.unique((place << _HALF) | np.frombuffer(read, dtype=np.uint32))
