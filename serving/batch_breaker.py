"""When to stop asking: what experience with one (provider, model) says."""

from __future__ import annotations

from dataclasses import dataclass

from serving.batch_keeper import Entry
from serving.batch_results import Results
from serving.lines import REFUSED_AT_FIRST
from serving.providers import Provider, ProviderDown, ProviderStopped


@dataclass
class Experience:
    """`requests` is how large batches may be; `full`: the provider takes no more until one of its batches ends."""

    requests: int
    barren: int = 0
    """Batches in a row that came to nothing."""
    answered: int = 0
    refused: int = 0
    full: bool = False
    doubted: bool = False
    """Another model answered in its place: one request a batch, one batch at a time, until an answer is its own."""

    @property
    def most(self) -> int:
        """How many requests the next batch may have."""
        return 1 if self.doubted else self.requests

    def learn(self, results: Results) -> None:
        """A batch ended."""
        self.full = self.full and results.blameless
        self.doubted = self.doubted and (results.stop is not None or not results.answered)
        self.answered += len(results.answered)
        self.refused += len(results.refused)
        self.barren = 0 if results.worked else self.barren + (not results.blameless)

    def judge(self, provider: Provider, entry: Entry, results: Results, outcome: str, asks: int) -> None:
        """Raises when somebody has to mend something, or when `asks` batches in a row came to nothing."""
        if results.stop is not None:
            raise results.stop
        if outcome == "cancelled":
            raise ProviderStopped(
                f"{provider.named}: batch {entry.note.batch} was cancelled there. What it answered is kept; start "
                "again to have the rest asked in a new one"
            )
        if not self.answered and self.refused >= REFUSED_AT_FIRST:
            last = list(results.refused.values())[-1:]
            raise ProviderStopped(
                f"{provider.named} refused the first {self.refused:,} requests and answered none, the last one: "
                f"{last[0].refused if last else results.why}. Check the model's name and parameters."
            )
        if self.barren >= asks and outcome == "failed":
            raise ProviderStopped(f"{provider.named} takes no batch: {results.why}")
        if self.barren >= asks:
            left = list(results.failed())
            raise ProviderDown(
                f"{provider.named}: {self.barren} batches in a row without an answer; {len(left):,} requests have no "
                f"reply, the last one: {left[-1][1] if left else results.why}. What was answered is kept; start again "
                f"when it is back, or take batch = true out of [providers.{provider.name}]: then they are asked at once"
            )
