"""A union's replies: all of them, none asked anew, and whoever takes one a dialogue takes an even mix."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from empathy.files import open_files
from empathy.records import Dialogue, Reply, Turn
from empathy.replies import pooled
from empathy.specs import DialoguesSpec, GroupSplit, Pooled, RepliesSpec, Teacher
from empathy.splits import draw
from empathy.stages import Stage
from empathy.store import Store

N = 300


def test_replies_of_all_sources_are_samples_of_one_stage(tmp_path: Path) -> None:
    store = Store(open_files(str(tmp_path)))
    dialogues = Stage(DialoguesSpec(source="x", digest="0" * 64, split=GroupSplit()))
    said = Turn("user", "hello")
    write(store, dialogues, [[Dialogue(f"d{i}", "g", (said,)) for i in part] for part in halves()], Dialogue)
    sources = {}
    for k, name in enumerate(("cognitive", "affective", "compassionate")):
        teacher = Teacher(provider="p", model="m", turns=(f"{{dialogue}} {name}",))
        sources[f"of:{k}"] = Stage(RepliesSpec(responder=teacher), {"dialogues": dialogues})
        rows = [
            [Reply(f"d{i}", "m", name, dropped="cut_off" if i == 7 and k == 2 else None) for i in p] for p in halves()
        ]
        write(store, sources[f"of:{k}"], rows, Reply)
    stage = Stage(RepliesSpec(responder=Pooled()), {"dialogues": dialogues, **sources})
    pooled(stage, store, store.writer(stage))

    artifact = store.get(stage)
    assert [part.rows for part in artifact.parts] == [450, 450]
    by_dialogue: dict[str, list[Reply]] = {}
    for reply in artifact.read(Reply):
        by_dialogue.setdefault(reply.dialogue_id, []).append(reply)
    assert list(by_dialogue) == [f"d{i}" for i in range(N)]
    cycle = ["cognitive", "affective", "compassionate"] * 2
    for ident, replies in by_dialogue.items():
        first = draw("pooled", 0, ident) % 3
        assert [r.text for r in replies] == cycle[first : first + 3]
        assert [r.sample for r in replies] == [0, 1, 2]
    # Thirds of 300 are 100; three standard deviations of such a draw are 3 * sqrt(300 * 1/3 * 2/3) = 24.5.
    shares = Counter(replies[0].text for replies in by_dialogue.values())
    assert all(75 <= n <= 125 for n in shares.values())
    assert [r.text for r in by_dialogue["d7"] if r.dropped] == ["compassionate"]
    assert artifact.counts["cut_off"] == 1


def halves() -> list[range]:
    return [range(N // 2), range(N // 2, N)]


def write(store: Store, stage: Stage, parts: list[list[object]], cls: type) -> None:
    writer = store.writer(stage)
    for k, rows in enumerate(parts):
        writer.write_records(k, rows, cls)
    writer.commit()
