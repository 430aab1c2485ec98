"""A job that tests start, kill and start again: `python -m tests.asking_job URL STORE OPTIONS FIRST COUNT IN_FLIGHT
TURNS`.

It asks chats FIRST .. FIRST+COUNT-1 of TURNS turns each, and prints rows, calls and replies taken from the ledger.
OPTIONS are those of `Store.open`, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys

from empathy.records import Turn
from empathy.requests import Asking, Request
from empathy.store import Store
from serving.client import Counts, drive
from serving.ledger import Ledger
from serving.providers import Provider


def request(number: int, earlier: tuple[Turn, ...] = ()) -> Request:
    return Request("scripted", "rule-teacher-1", (*earlier, Turn("user", f"My dog number {number} died and I am sad.")))


def asking(number: int, turns: int) -> Asking[str]:
    earlier: tuple[Turn, ...] = ()
    for _ in range(turns):
        one = request(number, earlier)
        answer = yield one
        earlier = (*one.messages, Turn("assistant", answer.text))
    return answer.text


async def main(url: str, store: Store, first: int, count: int, in_flight: int, turns: int) -> None:
    counts, rows = Counts(), 0
    with Ledger(store.files) as ledger:
        askings = ((str(k), asking(k, turns)) for k in range(first, first + count))
        async for _ in drive(askings, Provider("scripted", url), ledger, in_flight, counts):
            rows += 1
    print(rows, counts.calls, counts.from_ledger, flush=True)


if __name__ == "__main__":
    place = Store.open(sys.argv[2], **json.loads(sys.argv[3]))
    asyncio.run(main(sys.argv[1], place, *map(int, sys.argv[4:])))
