"""Which charts a report shows."""

from __future__ import annotations

from collections.abc import Iterator

from empathy.records import Estimate
from empathy.report.book import Book, opponent_kind
from empathy.report.figures import Bar, Figure, draw

_READ = "Lines are 95 % intervals over clusters; bars of a group stand in the legend's order, also where one is 0."


def figures(book: Book) -> Iterator[Figure]:
    """Win rates, held-out NLL, preference accuracy; one without any estimate is left out."""
    if bars := list(_wins(book)):
        yield draw(
            "win_rate",
            "Win rate of each arm",
            f"Wins and half the ties, in percent of readable verdicts. {_READ} "
            "Above the dashed line the arm wins more often than its opponent.",
            bars,
            "win rate, %",
            top=100,
            line=50,
        )
    if bars := list(_scores(book, "nll_per_token", 1)):
        yield draw(
            "nll_per_token",
            "Negative log-likelihood of held-out replies",
            "Nats per token of the replies that the arm was taught, on dialogues it never saw; lower is likelier. "
            f"{_READ} Compare within a student: tokens differ between students.",
            bars,
            "nats per token",
        )
    for kind, text in {
        "summed": "Share of held-out pairs whose chosen reply has the higher log-probability, summed over tokens: a "
        "shorter reply has the advantage, and chosen replies are often the longer ones.",
        "over_base": "Share of held-out pairs whose chosen reply gained more log-probability over the base than the "
        "rejected one did.",
    }.items():
        if bars := list(_scores(book, f"preference_accuracy_{kind}", 100)):
            title = f"Preference accuracy on held-out pairs ({kind.replace('_', ' ')})"
            text = f"{text} {_READ} The dashed line is chance."
            yield draw(f"preference_accuracy_{kind}", title, text, bars, "pairs that are right, %", top=100, line=50)


def _bar(e: Estimate, panel: str, group: str, series: str, scale: float) -> Bar | None:
    if e.value is None:
        return None
    low, high = (None if x is None else scale * x for x in (e.low, e.high))
    return Bar(panel, group, series, scale * e.value, low, high)


_KINDS = {"base": "its base", "human": "the human reply", "teacher": "its teacher's reply", "naive": "the naive arm"}


def _wins(book: Book) -> Iterator[Bar]:
    judges = {m.judge for m in book.matches}
    for kind, words in _KINDS.items():
        for e in book.of("win_rate"):
            if opponent_kind(str(e.opponent)) == kind:
                panel = f"{book.student(e.arm)} against {words}" + (f", judge {e.judge}" if len(judges) > 1 else "")
                if bar := _bar(e, panel, _taught(book, e), book.series(e.arm), 100):
                    yield bar


def _taught(book: Book, e: Estimate) -> str:
    """The lesson of an arm; of a base, which has none, the one whose teacher it is compared with."""
    if not e.arm.startswith("base"):
        return book.lesson(e.arm)
    slot, _, lesson = str(e.opponent).partition(":")
    return book.name(lesson) if slot == "teacher" else "(base)"


def _scores(book: Book, measure: str, scale: float) -> Iterator[Bar]:
    """One group of bars a lesson: the base, then the arms taught by it."""
    for e in book.of(measure):
        if bar := _bar(e, book.student(e.arm), book.lesson_named(e.note), book.series(e.arm), scale):
            yield bar
