"""What a report says besides estimates: split, stand-ins, proofs, drops, who was served, dialogues side by side.

It is written into the report's artifact as content.json, so that the page can be drawn without the artifacts it stands
on. Slots stand for names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from empathy.artifact import Artifact
from empathy.records import Dialogue
from empathy.report.cells import Cells
from empathy.report.judged import Table
from empathy.report.unjudged import replies_of
from empathy.specs import DialoguesSpec, RepliesSpec, ReportSpec, Teacher, VerdictsSpec
from empathy.stages import Stage, walk
from empathy.store import Store

EMBEDDED = "embedded"
"""The provider of the rule-based teacher and judge."""


def stand_ins(report: Stage) -> list[str]:
    """Rule-based models that stand where an LLM should be, in words."""
    found = set()
    for stage in walk([report]):
        if isinstance(stage.spec, VerdictsSpec) and stage.spec.judge.provider == EMBEDDED:
            found.add(f"the judge {stage.spec.judge.model!r}")
        who = stage.spec.responder if isinstance(stage.spec, RepliesSpec) else None
        if isinstance(who, Teacher) and who.provider == EMBEDDED:
            found.add(f"the teacher {who.model!r}")
    return sorted(found)


def side_by_side(
    cells: Cells, tables: list[Table], test: dict[str, Dialogue], store: Store, spec: ReportSpec
) -> list[Any]:
    """Some dialogues, chosen by seed, with everybody's reply and the verdicts on the arms."""

    def lot(ident: str) -> str:
        return hashlib.sha256(f"{spec.seed}/{ident}".encode()).hexdigest()

    chosen = {d: test[d] for d in sorted(test, key=lot)[: spec.examples_shown]}
    replies = {r.slot: replies_of(r, chosen, store) for r in cells.responders.values() if r.replies}
    order = [r.slot for r in [*cells.others, *cells.bases, *cells.arms] if r.slot in replies]
    outcomes = list(_outcomes(tables, set(chosen)))
    return [
        {
            "id": d.id,
            "emotion": d.emotion,
            "turns": [t.as_message() for t in d.turns],
            "replies": [
                {
                    "slot": slot,
                    "text": replies[slot][d.id].text,
                    "verdicts": [o for o in outcomes if o["slot"] == slot and o["dialogue"] == d.id],
                }
                for slot in order
                if d.id in replies[slot]
            ],
        }
        for d in chosen.values()
    ]


def _outcomes(tables: Iterable[Table], chosen: set[str]) -> Iterator[dict[str, Any]]:
    """won, lost, tie or what went wrong, of each call; the calls that showed the arm first come first."""
    words = {"a": "won", "b": "lost", "tie": "tie"}
    for t in tables:
        shown = t.rows.filter(pc.is_in(t.rows["dialogue_id"], pa.array(sorted(chosen))))
        rows = shown.select(["dialogue_id", "first", "status", "overall"]).to_pylist()
        by_dialogue: dict[str, list[str]] = {}
        for row in sorted(rows, key=lambda r: str(r["first"])):
            by_dialogue.setdefault(row["dialogue_id"], []).append(words.get(row["overall"], row["status"]))
        for ident, outcomes in by_dialogue.items():
            match = {"slot": t.arm.slot, "opponent": t.judged.opponent, "judge": t.judge}
            yield match | {"dialogue": ident, "outcomes": outcomes}


def served(tables: Iterable[Table], cells: Cells, store: Store) -> list[dict[str, Any]]:
    """Who was asked to judge, who answered, how often, and for how many tokens (None where a provider did not say); of
    pairs, and of replies by themselves ("rubric")."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    asked = [(t.judge, "pairs", t.rows) for t in tables]
    for stage in (r.scores for r in cells.responders.values() if r.scores):
        model = cast(VerdictsSpec, stage.spec).judge.model
        asked.append((model, "rubric", _whole(store.get(stage))))
    for model, of, rows in asked:
        _count(found.setdefault((model, of), {"asked": model, "of": of} | _NONE | {"served": set()}), rows)
    return [row | {"served": sorted(row["served"])} for _, row in sorted(found.items())]


_NONE = {"verdicts": 0, "uncalled": 0, "calls": 0, "tokens_in": 0, "tokens_out": 0}


def _whole(artifact: Artifact) -> pa.Table:
    names = ["model_served", "attempts", "tokens_in", "tokens_out"]
    return pa.concat_tables(artifact.table(k).select(names) for k in range(len(artifact.parts)))


def _count(row: dict[str, Any], rows: pa.Table) -> None:
    row["served"] |= set(pc.unique(rows["model_served"].drop_null()).to_pylist())
    row["verdicts"] += rows.num_rows
    row["uncalled"] += pc.sum(pc.equal(rows["attempts"], 0)).as_py() or 0
    row["calls"] += pc.sum(rows["attempts"]).as_py() or 0
    for name in ("tokens_in", "tokens_out"):
        known = rows[name].null_count == 0 and row[name] is not None
        row[name] = row[name] + (pc.sum(rows[name]).as_py() or 0) if known else None


def flat(proofs: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Proofs as lines, groups in groups unfolded: {"dpo_start": {"loss": 0.7}} becomes {"dpo start: loss": 0.7}."""
    lines: dict[str, Any] = {}
    for name, value in proofs.items():
        said = above + name.replace("_", " ")
        if isinstance(value, Mapping):
            lines |= flat(value, f"{said}: ")
        else:
            lines[said] = _line(value)
    return lines


def _line(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return ", ".join(str(_line(x)) for x in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, bool | int | str) else str(value)


def stages(report: Stage, store: Store) -> Iterator[dict[str, Any]]:
    """Kind, key, rows, drops and proofs of every stage below the report that the store still holds."""
    for stage in walk([report]):
        artifact = store.find(stage.kind, stage.key)
        if stage is not report and artifact:
            yield {
                "kind": stage.kind,
                "key": stage.key,
                "rows": artifact.rows,
                "at": artifact.manifest["made"]["at"],
                "drops": artifact.counts,
                "proofs": flat(artifact.meta.get("proofs", {})),
            }


def split_of(cells: Cells, store: Store) -> tuple[dict[str, Any], dict[str, Dialogue]]:
    """Which split was used and its sizes, and the dialogues of the judged side by id."""
    spec = cast(DialoguesSpec, cells.dialogues.spec)
    sizes: dict[str, int] = {}
    test: dict[str, Dialogue] = {}
    for d in store.get(cells.dialogues).read(Dialogue):
        sizes[d.split] = sizes.get(d.split, 0) + 1
        if d.split == cells.split:
            test[d.id] = d
    facts = {
        "source": spec.source,
        "how": spec.split.model_dump(mode="json"),
        "side": cells.split,
        "sizes": sizes,
        "groups": len({d.group for d in test.values()}),
        "cap_words": cells.cap_words,
    }
    return facts, test


def judged_sizes(tables: Iterable[Table]) -> list[dict[str, Any]]:
    """How many dialogues each table of verdicts is about (the data may lack an opponent's reply)."""
    return [
        {"slot": t.arm.slot, "opponent": t.judged.opponent, "judge": t.judge, "dialogues": len(set(t.calls.dialogues))}
        for t in tables
    ]
