"""How fast to send to a provider that may not say its limit: a pure state machine of (time, what was sent, what was
turned away) -> requests a second. No clock and no I/O: tests/unit/test_pace.py simulates providers with it.

What it does, and why:
- A request is judged by **when it was sent**. The feedback delay is how long a 429 takes, so what was sent earlier
than that and was not turned away was accepted, however slow its answer (a model may think for a minute).
- Unknown limit: slow start, doubling once a feedback delay (as TCP, RFC 5681, 3.1). The first 429 ends it: the rate
falls to what was accepted. After that a 429 cuts 4%, or down to what is measured as accepted when that is far lower:
at most once a feedback delay, since requests sent at the old rate say nothing about the new one.
- Without 429s it probes upwards. The step starts at half a percent and doubles with each quiet delay: near the limit
the excess is small, and a limit that was doubled is found in about eight steps.
- Known limit (profile or header): paced at 0.98 of it from the start. More 429s than jitter makes are heeded all the
same, because others may use the same key.
- Retry-After: nothing is sent until then. Such a pause costs much, so the next probe waits twenty times as long.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

SLOT_S = 0.1
"""Resolution of what is remembered."""
LEASE_S = 0.1
"""For so long permits given at the old rate are still being used after a change."""
FIRST_PER_S = 16.0
LEAST_PER_S = 0.1
OF_LIMIT = 0.98
CUT, CUT_PAUSED = 0.96, 0.9
"""On 429s: gently, and less so where each of them costs a pause."""
FAR, OUTAGE = 0.9, 0.25
"""When less than this share of the rate was accepted: the rate is far too high, or it is no matter of the rate (a
spent window of a minute), and then what was learned before stays true."""
FIRST_STEP = 0.025
BEYOND = 1.01
TOLERATED, TOLERATED_AS_TOLD = 0.002, 0.02
"""This share of 429s is jitter at a limit that is right, not a reason to slow down: of one that was found, and of one
that the provider or the profile told."""
MEASURED_S = 1.0
"""Accept rates are measured over at least a second: limits are often counted in whole ones."""
LEAST_JUDGED, JUDGED = 2, 5
"""So many requests at least must have been sent at a rate before it is doubled or cut, or raised by a step."""
USED = 0.8
"""A rate of which less than this share was used has not been tried out."""
RECENT_S = 2.0
REMEMBERED_S = 120.0
LONGEST_DELAY_S = 5.0
HOLD = 20.0
LONGEST_HOLD_S = 60.0


@dataclass
class _Slot:
    start: float
    sent: int = 0
    limited: int = 0


class Pace:
    """The rate for one (provider, model). Times are seconds of any monotonic clock, `now` never goes back.

    `limit_per_s` is what the provider allows: None for unknown, infinity for a server of our own.
    """

    def __init__(self, limit_per_s: float | None = None):
        self._ceiling = math.inf if limit_per_s is None else OF_LIMIT * limit_per_s
        self._double_until = math.inf if limit_per_s is None else 0.0
        self.rate_per_s = FIRST_PER_S if limit_per_s is None else self._ceiling
        self.paused_until = self._resumed_at = -math.inf
        self._good_per_s = 0.0  # the last rate that was calm
        self._wall_per_s = 0.0  # what was accepted when the last 429s came
        self._step = FIRST_STEP
        self._slots: deque[_Slot] = deque()
        self._fresh_at = -math.inf  # what is sent from here on is sent at the present rate
        self._cut_at = -math.inf  # and from here on 429s are news; those of the rates before a cut are not
        self._calm_s = 0.0  # how long the present rate must have been quiet before it is raised
        self._hold_until = -math.inf
        self._limited_after_s: float | None = None
        self._answered_after_s: float | None = None

    @property
    def delay_s(self) -> float:
        """How long after sending a 429 would have come, with room for jitter."""
        if self._limited_after_s is not None:
            return 1.25 * self._limited_after_s
        return min(1.25 * (0.4 if self._answered_after_s is None else self._answered_after_s), 1.0)

    # ---------------------------------------------------------------- events

    def sent(self, now: float, count: int) -> None:
        """`count` requests were sent in the lease that ends now."""
        self._slot(now - LEASE_S / 2).sent += count

    def limited(self, now: float, age_s: float, count: int) -> None:
        """429s for `count` requests that were sent `age_s` ago."""
        self._slot(now - age_s).limited += count
        age_s = min(age_s, LONGEST_DELAY_S)
        self._limited_after_s = _smooth(self._limited_after_s, age_s)

    def answered(self, after_s: float) -> None:
        """The mean latency of answers that came in the last lease."""
        self._answered_after_s = _smooth(self._answered_after_s, after_s)

    def announce(self, limit_per_s: float) -> None:
        """The provider says its limit."""
        ceiling = OF_LIMIT * limit_per_s
        if ceiling != self._ceiling:
            self._ceiling, self._double_until, self.rate_per_s = ceiling, 0.0, ceiling

    def pause(self, now: float, for_s: float) -> None:
        """A Retry-After: nothing is sent until then."""
        if now >= self.paused_until:
            self._resumed_at = self.paused_until
        if now + for_s > self.paused_until:
            self.paused_until = now + for_s
            self._hold_until = self.paused_until + min(HOLD * for_s, LONGEST_HOLD_S)

    # ---------------------------------------------------------------- decisions

    def decide(self, now: float) -> float:
        """Look at what is known by now; the rate from now on, in requests a second (infinite: no limit)."""
        self._forget(now)
        sent, limited = self._since(max(self._cut_at, now - self._recent_s))
        as_told = self.rate_per_s == self._ceiling < math.inf
        if limited > (TOLERATED_AS_TOLD if as_told else TOLERATED) * sent:
            if sent >= LEAST_JUDGED:
                self._slow_down(now)
        elif self.rate_per_s < self._ceiling and self._tried(now):
            self._speed_up(now)
        return self.rate_per_s

    def _slow_down(self, now: float) -> None:
        measured = self._accepted_per_s(now - self.delay_s)
        far = self._doubling or measured < FAR * self.rate_per_s
        cut = CUT if self.paused_until < now else CUT_PAUSED
        if math.isinf(self.rate_per_s):
            rate = OF_LIMIT * measured or FIRST_PER_S
        else:
            least = OF_LIMIT * measured if far else self.rate_per_s
            rate = min(max(least, self.rate_per_s / 2), cut * self.rate_per_s)
        if math.isinf(self.rate_per_s) or measured > OUTAGE * self.rate_per_s:
            self._wall_per_s = min(max(rate, measured), self.rate_per_s)
            self._good_per_s = min(self._good_per_s, self._wall_per_s)
        self._double_until, self._step, self._calm_s = self._good_per_s / 2, FIRST_STEP, self.delay_s + MEASURED_S
        self._change(now, rate)
        self._cut_at = self._fresh_at

    def _speed_up(self, now: float) -> None:
        self._good_per_s, self._calm_s = self.rate_per_s, self.delay_s
        if self._doubling:
            rate = 2 * self.rate_per_s
        else:
            rate = (1 + self._step) * self.rate_per_s
            if self.rate_per_s > BEYOND * self._wall_per_s:
                self._step = min(2 * self._step, 1.0)
            else:
                self._calm_s += MEASURED_S
        self._change(now, min(rate, self._ceiling))

    @property
    def _recent_s(self) -> float:
        """How far back a decision looks: two seconds of what is judged, longer where requests are few."""
        return self.delay_s + max(RECENT_S, 2 * JUDGED / self.rate_per_s)

    @property
    def _doubling(self) -> bool:
        return self.rate_per_s < self._double_until

    def _change(self, now: float, rate_per_s: float) -> None:
        self.rate_per_s = max(rate_per_s, LEAST_PER_S)
        self._fresh_at = max(now + LEASE_S, self.paused_until)

    def _tried(self, now: float) -> bool:
        """Whether the present rate was really used, and for long enough that its 429s would have come."""
        since = max(self._fresh_at, self.paused_until)
        if now < self._hold_until or now - since < self._calm_s + SLOT_S:
            return False
        used_s = min(now - since, self._recent_s)
        sent, _ = self._since(now - used_s)
        return sent >= (LEAST_JUDGED if self._doubling else JUDGED) and sent >= USED * self.rate_per_s * used_s

    # ---------------------------------------------------------------- memory

    def _slot(self, at: float) -> _Slot:
        """The slot of this time; the oldest one for a time before it."""
        start = math.floor(at / SLOT_S) * SLOT_S
        for slot in reversed(self._slots):
            if slot.start <= start + SLOT_S / 2:
                if slot.start > start - SLOT_S / 2:
                    return slot
                break
        if not self._slots or start > self._slots[-1].start:
            self._slots.append(_Slot(start))
            return self._slots[-1]
        return next((s for s in self._slots if s.start > start), self._slots[0])

    def _since(self, at: float) -> tuple[int, int]:
        """(sent, limited) of slots that began at `at` or later."""
        sent = limited = 0
        for slot in reversed(self._slots):
            if slot.start < at - 1e-9:
                break
            sent, limited = sent + slot.sent, limited + slot.limited
        return sent, limited

    def _accepted_per_s(self, until: float) -> float:
        """The accept rate before `until`: the higher one of the last second and the last two, because a second of a
        provider that counts in whole ones may have fallen between two of them."""
        span = max(MEASURED_S, 10 / self.rate_per_s)
        return max(self._accepted_over(until, span), self._accepted_over(until, 2 * span))

    def _accepted_over(self, until: float, span: float) -> float:
        """The mean accept rate of whole slots in `span` seconds before `until`, and after the last pause."""
        until = math.floor(until / SLOT_S) * SLOT_S
        resumed_at = self.paused_until if self.paused_until < until else self._resumed_at
        since = max(until - span - SLOT_S / 2, resumed_at)
        slots = [s for s in self._slots if since <= s.start < until - SLOT_S / 2] or list(self._slots)[:1]
        return sum(s.sent - s.limited for s in slots) / max(until - slots[0].start, SLOT_S)

    def _forget(self, now: float) -> None:
        while self._slots and self._slots[0].start < now - REMEMBERED_S:
            self._slots.popleft()


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else old + 0.2 * (new - old)
