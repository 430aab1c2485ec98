"""What an ended batch answered is fetched and recorded, and the fate of its other rows decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from empathy.requests import Answer
from serving.batch_api import Batch, BatchApi, Lost
from serving.batch_keeper import Entry, Keeper
from serving.batch_purse import Purse
from serving.batch_register import Register
from serving.batch_results import Results, custom_ids
from serving.ledger import Asked, Ledger
from serving.providers import Provider

DOWNLOADS = 3
"""A result file with fewer lines than the batch counts is fetched so many times."""


class Collector:
    """Downloads go through files under `folder`."""

    def __init__(
        self,
        ledger: Ledger,
        providers: Mapping[str, Provider],
        apis: Mapping[str, BatchApi],
        keeper: Keeper,
        purse: Purse,
        register: Register,
        folder: Path,
        tell: Callable[[str], None],
    ):
        self._ledger, self._providers, self._apis, self._keeper = ledger, providers, apis, keeper
        self._purse, self._register, self._folder, self._tell = purse, register, folder, tell
        self._failures: Counter[str] = Counter()
        """In how many batches a request came to nothing."""
        self._blamed: Counter[str] = Counter()
        """In how many of them it was itself at fault."""

    async def collect(self, entry: Entry, batch: Batch) -> None:
        """Record whatever an ended batch answered, whichever way it ended. Raises what `finish` raises."""
        self._keeper.check_ours(entry.note)
        provider, faults = self._providers[entry.note.provider], "; ".join(f.message for f in batch.faults[:3])
        why = f"batch {batch.id} {batch.status}{': ' + faults if faults else ''}"
        results = Results(entry.keys, why, expired=batch.status == "expired")
        for file, count in ((batch.output_file, batch.completed), (batch.error_file, batch.failed)):
            if file is not None:
                path = await self._fetched(entry, file, count)
                results.read(path, provider, entry.note.model, lambda k, a: self._record(entry, results, k, a))
                path.unlink(missing_ok=True)
        if batch.status == "failed" and entry.ours:
            results.blame(batch.faults, entry.keys)
        if any(f.code == "token_limit_exceeded" for f in batch.faults):
            self._back_off(entry, results)
        await self.finish(entry, results, batch.status)
        if entry.note.input_file:
            await self._apis[entry.note.provider].discard(entry.note.input_file)

    async def _fetched(self, entry: Entry, file: str, count: int) -> Path:
        path = self._folder / f"{entry.note.id}-results.jsonl"
        for attempt in range(1, DOWNLOADS + 1):
            try:
                await self._apis[entry.note.provider].download(file, path)
            except Lost:  # results are not kept for ever: what is gone is asked again
                path.write_bytes(b"")
            if (rows := len(set(custom_ids(path)))) >= count:  # lines may come twice
                break
            self._tell(f"result file {file} of batch {entry.note.batch}: {rows:,} of {count:,} rows ({attempt})")
        return path

    def _record(self, entry: Entry, results: Results, key: str, answer: Answer) -> None:
        price, tries = self._register.batching(entry.note.provider).price, 1 + self._failures.get(key, 0)
        results.paid_usd += self._purse.cost_usd(entry.route, answer, price, entry.usd.get(key, 0.0))
        told = replace(answer, attempts=tries) if tries > 1 else answer
        self._ledger.record(Asked(key, *entry.route), told, entry.note.experiment, price)

    def _back_off(self, entry: Entry, results: Results) -> None:
        """The provider's queue for this model is full: no fault of the rows. Alone in it, the batch is too large."""
        others = any(other.route == entry.route for other in self._register.open.values() if other is not entry)
        self._register.learnt(entry.route).full = others
        results.blameless = others or len(entry.keys) > 1
        if not others:
            self._register.learnt(entry.route).requests = max(1, len(entry.keys) // 2)
            self._tell(f"{entry.route[0]} has no room for {len(entry.keys):,} requests at once: smaller batches")

    async def finish(self, entry: Entry, results: Results, outcome: str) -> None:
        """Every row's fate and the money, close the note. Raises ProviderStopped or ProviderDown where asking on would
        be in vain."""
        register, asks = self._register, self._register.batching(entry.note.provider).asks
        self._decide(results, asks)
        register.refused |= results.refused
        if entry.ours:
            register.fresh.update(results.answered, results.refused)
        self._tell(f"batch {entry.note.batch} at {entry.note.provider} {outcome}: {results}")
        register.close(entry, outcome)
        await self._settle(entry, results, lost=outcome == "lost")
        register.poor = False
        experience = register.learnt(entry.route)
        experience.learn(results)
        experience.judge(self._providers[entry.note.provider], entry, results, outcome, asks)

    def _decide(self, results: Results, asks: int) -> None:
        """A row that is itself at fault too often is given up; the others are asked again."""
        for key, why in results.failed():
            self._failures[key] += not results.blameless
            self._blamed[key] += results.blames(key)
            if self._blamed[key] >= asks:
                self._register.refuse(key, f"no answer in {asks} batches that answered others: {why}")

    async def _settle(self, entry: Entry, results: Results, lost: bool) -> None:
        """What the batch cost; all that was set aside, where the provider has lost it and cannot say."""
        if entry.ours:
            paid = entry.reserved_usd if lost else results.paid_usd
            unknown = 0 if entry.reserved_usd else len(results.answered)
            await self._purse.settle(entry.route, paid, entry.reserved_usd - paid, unknown)
