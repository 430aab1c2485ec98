"""Which examples make which step: a function of the number of examples, the batch, the epochs and the seed, and of
nothing else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import islice

from empathy.train.placement import Cut


def steps(examples: int, batch_examples: int, epochs: float) -> int:
    """Optimiser steps that show each example `epochs` times, the last one rounded up."""
    return math.ceil(round(examples * epochs / batch_examples, 9))


def stream(examples: int, seed: int) -> Iterator[int]:
    """Epoch after epoch without end, each in an order of its own."""
    for epoch in range(10**9):
        order = list(range(examples))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        yield from order


def batches(examples: int, batch_examples: int, epochs: float, seed: int) -> list[list[int]]:
    """Every step's examples. All batches are full: the last one goes on into the next epoch's order."""
    numbers = stream(examples, seed)
    return [list(islice(numbers, batch_examples)) for _ in range(steps(examples, batch_examples, epochs))]


def micro_batches(plan: Sequence[Sequence[int]], lengths: Sequence[int], cut: Cut, rank: int) -> list[list[int]]:
    """What worker `rank` is given, `cut.accumulation` micro-batches a step.

    Within a step the examples are dealt out in the order of their lengths, so workers get about equal work and
    little padding.
    """
    dealt: list[list[int]] = []
    for batch in plan:
        mine = sorted(batch, key=lambda i: (-lengths[i], i))[rank :: cut.workers]
        dealt.extend(mine[i : i + cut.micro_batch] for i in range(0, len(mine), cut.micro_batch))
    return dealt
