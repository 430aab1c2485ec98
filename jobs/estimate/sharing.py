"""What the arms of a grid save by sharing paid stages (docs/money.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cluster.profile import Profile
from empathy.stages import Stage
from jobs.estimate.calls import a_row, share_of_price
from jobs.estimate.view import View, asked_model


@dataclass(frozen=True)
class Saved:
    """US dollars. `unknown` stages, whose rows or price nobody knows, are in neither."""

    low_usd: float = 0.0
    high_usd: float = 0.0
    unknown: int = 0


def saved(stages: Iterable[Stage], users: Mapping[str, int], view: View, profile: Profile) -> Saved:
    """The sum over paid stages of (k - 1) x what making the stage costs, where `users` says that k > 1 arms need it:
    alone, each would have paid for it. Finished or not, and whatever the ledger holds of it."""
    low_usd, high_usd, unknown = 0.0, 0.0, 0
    for stage in stages:
        model, more = asked_model(stage), users.get(stage.key, 0) - 1
        if model is None or more < 1:
            continue
        rows, price = view.rows(stage), profile.price_list.of(*model)
        if price is None or rows is None:
            unknown += price is None or price.usd(1, 1) > 0
            continue
        times = more * rows * share_of_price(model[0], profile)
        low, high = (times * price.usd(each.tokens_in, each.tokens_out) for each in a_row(stage, view))
        low_usd, high_usd = low_usd + low, high_usd + high
    return Saved(low_usd, high_usd, unknown)
