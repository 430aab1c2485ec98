"""Methods as mission says: who is learned from, what is chosen over what; recorded and asked replies; the leak gate."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from empathy import dialogues, examples, replies
from empathy.columns import to_table
from empathy.records import Demonstration, Dialogue, Preference, Reply, Score, Turn
from empathy.requests import Answer, Request
from empathy.sources import parse
from empathy.specs import (
    Direct,
    ExamplesSpec,
    Human,
    ImproveHuman,
    ImproveLlm,
    Judge,
    OfficialSplit,
    Recorded,
    RepliesSpec,
    Teacher,
    VerdictsSpec,
)
from empathy.splits import draw
from empathy.stages import Stage
from empathy.store import Artifact, Store
from empathy.twins import Held

# id: (side, human rating, m's rating); None is unrated
RATED: dict[str, tuple[str, int | None, int | None]] = {
    "d33": ("train", 3, 3),
    "d32": ("train", 3, 2),
    "d23": ("train", 2, 3),
    "d13": ("train", 1, 3),
    "d12": ("train", 1, 2),
    "t12": ("test", 1, 2),
    "t21": ("test", 2, 1),
    "t22": ("test", 2, 2),
}


def rows(rated: dict[str, tuple[str, int | None, int | None]]) -> list[dict[str, Any]]:
    return [
        {
            "id": ident,
            "turns": [{"role": "user", "content": f"this is the worry of {ident}"}],
            "split": side,
            "human_reply": f"human to {ident}",
            "recorded": {"m": f"m to {ident}"},
            "ratings": {name: r for name, r in (("human", human), ("m", model)) if r is not None},
        }
        for ident, (side, human, model) in rated.items()
    ]


class Chain:
    """Stages on a small jsonl in a store of their own."""

    def __init__(self, folder: Path, content: list[dict[str, Any]], part_rows: int = 3):
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        self.store = Store.open(str(folder / "store"))
        source = parse({"type": "jsonl", "path": str(folder / "a.jsonl")})
        self.dialogues = dialogues.stage(source, OfficialSplit(), part_rows=part_rows)
        dialogues.make(self.dialogues, self.store, self.store.writer(self.dialogues))

    def recorded(self, responder: str) -> Stage:
        stage = Stage(RepliesSpec(responder=Recorded(responder=responder)), {"dialogues": self.dialogues})
        if not self.store.done(stage):
            replies.recorded(stage, self.store, self.store.writer(stage))
        return stage

    def rewritten(self, improves: Stage, **spoilt: Reply) -> Stage:
        """What a teacher would have made of the replies: "better " before each."""
        teacher = Teacher(provider="p", model="t", turns=("{dialogue} {reply}",))
        stage = Stage(RepliesSpec(responder=teacher), {"dialogues": self.dialogues, "improves": improves})
        writer, initial = self.store.writer(stage), self.store.get(improves)
        for part in range(len(initial.parts)):
            new = [Reply(r.dialogue_id, "t", f"better {r.text}") for r in initial.read(Reply, part)]
            writer.write_records(part, [spoilt.get(r.dialogue_id, r) for r in new], Reply)
        writer.commit()
        return stage

    def examples(
        self, method: Any, objective: str, learned: Stage | None, initial: Stage | None = None, **more: Any
    ) -> Artifact:
        inputs = {"dialogues": self.dialogues, "replies": learned, "initial": initial}
        spec = ExamplesSpec(method=method, objective=objective, **more)  # type: ignore[arg-type]
        stage = Stage(spec, {name: s for name, s in inputs.items() if s})
        examples.make(stage, self.store, self.store.writer(stage))
        return self.store.get(stage)


HELDOUT = {"purpose": "heldout", "split": "test"}


def shown(artifact: Artifact) -> list[tuple[str, str, str]]:
    return [(e.dialogue_id, e.reply, e.source) for e in artifact.read(Demonstration)]


def pairs(artifact: Artifact) -> list[tuple[str, str, str]]:
    found = artifact.read(Preference)
    return [(e.dialogue_id, f"{e.chosen_source}: {e.chosen}", f"{e.rejected_source}: {e.rejected}") for e in found]


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path, rows(RATED))


# ---------------------------------------------------------------- method 1


def test_direct_sft_where_both_are_good(chain: Chain) -> None:
    artifact = chain.examples(Direct(), "sft", chain.recorded("m"))
    assert shown(artifact) == [("d33", "human to d33", "human"), ("d33", "m to d33", "teacher")]
    assert artifact.meta == {"candidates": 1, "dropped": {}}
    assert [p.rows for p in artifact.parts] == [2, 0, 0]  # aligned with the dialogues' parts


def test_direct_on_the_teachers_reply_alone(chain: Chain) -> None:
    artifact = chain.examples(Direct(both_replies=False), "sft", chain.recorded("m"))
    assert shown(artifact) == [("d33", "m to d33", "teacher")]


def test_direct_dpo_where_only_the_teacher_is_good(chain: Chain) -> None:
    assert pairs(chain.examples(Direct(), "dpo", chain.recorded("m"))) == [
        ("d23", "teacher: m to d23", "human: human to d23"),
        ("d13", "teacher: m to d13", "human: human to d13"),
    ]


def test_direct_heldout(chain: Chain) -> None:
    learned = chain.recorded("m")
    assert [d for d, *_ in shown(chain.examples(Direct(), "sft", learned, **HELDOUT))] == ["t12", "t21", "t22"]
    assert pairs(chain.examples(Direct(), "dpo", learned, **HELDOUT)) == [
        ("t12", "teacher: m to t12", "human: human to t12")
    ]


def test_direct_unrated_teacher(tmp_path: Path) -> None:
    chain = Chain(tmp_path, rows({"d3": ("train", 3, None), "d1": ("train", 1, None), "t1": ("test", 1, None)}))
    learned = chain.recorded("m")
    with pytest.raises(
        ValueError, match=r"'d3': its learned reply has no rating.*\[ratings\] table.*unrated_is_good = true"
    ):
        chain.examples(Direct(), "sft", learned)
    good = Direct(unrated_is_good=True)
    assert [d for d, *_ in shown(chain.examples(good, "sft", learned))] == ["d3", "d3"]
    assert [d for d, *_ in pairs(chain.examples(good, "dpo", learned))] == ["d1"]
    assert [d for d, *_ in pairs(chain.examples(good, "dpo", learned, **HELDOUT))] == ["t1"]


def test_a_rating_belongs_to_the_recorded_text_not_to_the_models_name(chain: Chain) -> None:
    """A model asked today that is called as one that was rated has other words, and no rating."""
    stage = Stage(
        RepliesSpec(responder=Teacher(provider="p", model="m", turns=("{dialogue}",))), {"dialogues": chain.dialogues}
    )
    writer = chain.store.writer(stage)
    for part in range(3):
        found = chain.store.get(chain.dialogues).read(Dialogue, part)
        writer.write_records(part, [Reply(d.id, "m", "new words") for d in found], Reply)
    writer.commit()
    with pytest.raises(ValueError, match="'d33': its learned reply has no rating"):
        chain.examples(Direct(), "sft", stage)


# ---------------------------------------------------------------- methods 2 and 3


def test_improve_human(chain: Chain) -> None:
    better = chain.rewritten(chain.recorded("human"))
    assert shown(chain.examples(ImproveHuman(), "sft", better)) == [
        ("d33", "human to d33", "human"),
        ("d33", "better human to d33", "improved"),
        ("d32", "human to d32", "human"),
        ("d32", "better human to d32", "improved"),
    ]
    alone = chain.examples(ImproveHuman(both_replies=False), "sft", better)
    assert [reply for _, reply, _ in shown(alone)] == ["better human to d33", "better human to d32"]
    assert pairs(chain.examples(ImproveHuman(), "dpo", better)) == [
        (d, f"improved: better human to {d}", f"human: human to {d}") for d in ("d23", "d13", "d12")
    ]
    assert [d for d, *_ in pairs(chain.examples(ImproveHuman(), "dpo", better, **HELDOUT))] == ["t12", "t21", "t22"]
    heldout = chain.examples(ImproveHuman(), "sft", better, **HELDOUT)
    assert shown(heldout) == [(d, f"better human to {d}", "improved") for d in ("t12", "t21", "t22")]


def test_improve_llm_both_readings(chain: Chain) -> None:
    initial = chain.recorded("m")
    better = chain.rewritten(initial)
    assert shown(chain.examples(ImproveLlm(), "sft", better, initial)) == [
        ("d33", "m to d33", "teacher"),
        ("d33", "better m to d33", "improved"),
        ("d32", "m to d32", "teacher"),
        ("d32", "better m to d32", "improved"),
    ]
    text = chain.examples(ImproveLlm(rejected="initial"), "dpo", better, initial)
    assert pairs(text) == [(d, f"improved: better m to {d}", f"teacher: m to {d}") for d in ("d23", "d13", "d12")]
    code = chain.examples(ImproveLlm(rejected="human"), "dpo", better, initial)
    assert pairs(code) == [(d, f"improved: better m to {d}", f"human: human to {d}") for d in ("d23", "d13", "d12")]


def test_improve_llm_as_the_papers_code_has_it(chain: Chain) -> None:
    """A lot instead of ratings, and the human reply beside the improved one."""
    initial = chain.recorded("m")
    better = chain.rewritten(initial)
    method = ImproveLlm(division="random", sft_share=0.4, division_seed=7, original="human")
    by_lot = sorted((d for d in RATED if d[0] == "d"), key=lambda d: draw("division", 7, d))
    first = shown(chain.examples(method, "sft", better, initial))
    assert {d for d, *_ in first} == set(by_lot[:2])  # 0.4 of 5
    assert {source for *_, source in first} == {"human", "improved"}
    assert {d for d, *_ in pairs(chain.examples(method, "dpo", better, initial))} == set(by_lot[2:])
    for objective, of in (("sft", shown), ("dpo", pairs)):
        found = of(chain.examples(method, objective, better, initial, **HELDOUT))  # type: ignore[operator]
        assert [d for d, *_ in found] == ["t12", "t21", "t22"]


def test_human_method(chain: Chain) -> None:
    assert [d for d, *_ in shown(chain.examples(Human(), "sft", None))] == ["d33", "d32", "d23", "d13", "d12"]
    assert [d for d, *_ in shown(chain.examples(Human(least_rating=2), "sft", None))] == ["d33", "d32", "d23"]
    with pytest.raises(ValueError, match="it has no teacher, so no pairs for DPO"):
        chain.examples(Human(), "dpo", None)


def test_the_student_sees_the_dialogue_alone_and_a_system_message_if_there_is_one(chain: Chain) -> None:
    plain = next(chain.examples(Human(), "sft", None).read(Demonstration))
    assert plain.messages == (Turn("user", "this is the worry of d33"),)
    led = next(chain.examples(Human(), "sft", None, system="Be kind.").read(Demonstration))
    assert led.messages == (Turn("system", "Be kind."), Turn("user", "this is the worry of d33"))
    assert led.id != plain.id


# ---------------------------------------------------------------- a judge's scores


def scored(chain: Chain, judged: Stage, scores: dict[tuple[str, int], float | None]) -> Stage:
    """What a rubric judge gave to replies, by dialogue and sample."""
    judge = Judge(provider="p", model="j", template="...")
    stage = Stage(VerdictsSpec(judge=judge), {"dialogues": chain.dialogues, "a": judged})
    writer = chain.store.writer(stage)
    for part in range(3):
        here = [d.id for d in chain.store.get(chain.dialogues).read(Dialogue, part)]
        rows = [Score(f"{d}/{k}", d, "g", "j", k, "ok", overall=x) for (d, k), x in scores.items() if d in here]
        writer.write_records(part, rows, Score)
    writer.commit()
    return stage


def test_a_judges_score_takes_the_place_of_ratings(chain: Chain) -> None:
    """Good from 3.5 on. d12 has no score and d32 an unreadable one: unrated, whatever people said."""
    learned = chain.recorded("m")
    human = {("d33", 0): 3.5, ("d32", 0): None, ("d23", 0): 3.4, ("d13", 0): 5.0, ("t12", 0): 2.0, ("t21", 0): 4.0}
    model = {("d33", 0): 4.0, ("d32", 0): 4.0, ("d23", 0): 4.0, ("d13", 0): 3.0, ("d12", 0): 5.0, ("t12", 0): 2.1}
    inputs = {
        "scores:human": scored(chain, chain.recorded("human"), human),
        "scores:learned": scored(chain, learned, model),
    }

    def made(method: Any, objective: str, **more: Any) -> Artifact:
        spec = ExamplesSpec(method=method, objective=objective, good=3.5, max_dropped=1.0, **more)  # type: ignore[arg-type]
        stage = Stage(spec, {"dialogues": chain.dialogues, "replies": learned, **inputs})
        examples.make(stage, chain.store, chain.store.writer(stage))
        return chain.store.get(stage)

    good = Direct(unrated_is_good=True)  # which is not looked at
    sft, dpo = made(good, "sft"), made(good, "dpo")
    assert [d for d, *_ in shown(sft)] == ["d33", "d33"]
    assert sft.meta == {"candidates": 3, "dropped": {"unrated": 2}}
    assert [d for d, *_ in pairs(dpo)] == ["d23"]
    assert dpo.meta == {"candidates": 3, "dropped": {"unrated": 2}}
    assert [d for d, *_ in pairs(made(Direct(), "dpo", **HELDOUT))] == ["t12"]  # t21's reply has none, t22 neither
    assert [d for d, *_ in shown(made(ImproveHuman(both_replies=False), "sft"))] == ["d33", "d13"]
    assert made(ImproveHuman(), "dpo").meta == {"candidates": 3, "dropped": {"unrated": 2}}


# ---------------------------------------------------------------- drops


def test_drops_have_reasons_and_a_limit(chain: Chain) -> None:
    better = chain.rewritten(
        chain.recorded("human"),
        d23=Reply("d23", "t", "", dropped="refused: content_filter"),
        d13=Reply("d13", "t", "As an AI I am sorry."),
        d12=Reply("d12", "t", "human to d12"),
    )
    assert chain.examples(ImproveHuman(), "sft", better).counts == {}
    with pytest.raises(
        ValueError, match=r"max_dropped = 0\.2: 2 of 3 dpo examples .*\(chosen_is_rejected 1, refused 1\)"
    ):
        chain.examples(ImproveHuman(), "dpo", better)
    kept = chain.examples(ImproveHuman(), "dpo", better, max_dropped=0.7)
    assert [d for d, *_ in pairs(kept)] == ["d13"]
    assert kept.counts == {"refused": 1, "chosen_is_rejected": 1}
    assert kept.meta["candidates"] == 3
    screened = {"screens": ("names_itself_ai",), "max_dropped": 1.0}
    with pytest.raises(ValueError, match="no dpo examples of method 'improve_human'"):
        chain.examples(ImproveHuman(), "dpo", better, **screened)


def test_screens_spare_the_human_reply(tmp_path: Path) -> None:
    content = rows({"d33": ("train", 3, 3)})
    content[0]["human_reply"] = "as a chatbot I"
    chain = Chain(tmp_path, content)
    artifact = chain.examples(Direct(), "sft", chain.recorded("m"), screens=("names_itself_ai",))
    assert [source for *_, source in shown(artifact)] == ["human", "teacher"]


def test_a_dialogue_without_a_human_reply(tmp_path: Path) -> None:
    content = rows({f"d{k}": ("train", 3, 3) for k in range(9)})
    del content[4]["human_reply"]
    del content[4]["ratings"]["human"]
    chain = Chain(tmp_path, content)
    assert chain.store.get(chain.recorded("human")).counts == {"not_recorded": 1}
    for method in (Direct(), ImproveHuman(), Human(), Human(least_rating=3)):
        artifact = chain.examples(method, "sft", chain.recorded("m"))
        assert artifact.counts == {"no_human_reply": 1}
        assert artifact.meta["candidates"] == 9


def test_a_reply_that_an_earlier_dialogue_has_is_dropped_and_counted(tmp_path: Path) -> None:
    """The first of the selected stays: d0 is a test dialogue, and d1 is not selected."""
    content = rows({"d0": ("test", 3, 3), **{f"d{k}": ("train", 3, 3) for k in range(1, 9)}})
    content[1]["ratings"]["m"] = 2
    for k in (0, 1, 3, 5, 7):
        content[k]["recorded"]["m"] = ("I am so sorry for you.", "i am so sorry, for you!")[k % 2]
    content[2]["recorded"]["m"] = "You must feel so alone and,"
    for k in (6, 8):
        content[k]["recorded"]["m"] = "Oh no!"  # too short to be more than chance
    chain = Chain(tmp_path, content)
    screens = {"screens": ("cut_off", "near_duplicate"), "max_dropped": 1.0}
    artifact = chain.examples(Direct(both_replies=False), "sft", chain.recorded("m"), **screens)
    assert artifact.meta == {"candidates": 7, "dropped": {"cut_off": 2, "near_duplicate": 2}}  # "m to d4" is cut, too
    assert [d for d, *_ in shown(artifact)] == ["d3", "d6", "d8"]


def test_several_samples_of_one_dialogue_are_no_near_duplicates_of_each_other(tmp_path: Path) -> None:
    chain = Chain(tmp_path, rows({"d1": ("train", 3, 3), "d2": ("train", 3, 3)}))
    spec = RepliesSpec(responder=Teacher(provider="p", model="t", turns=("{dialogue}",), samples=3))
    stage = Stage(spec, {"dialogues": chain.dialogues})
    texts = {"d1": ("we hear you well", "We hear you well!", "yes"), "d2": ("WE HEAR YOU WELL", "no", "no")}
    writer = chain.store.writer(stage)
    found = [Reply(d, "t", texts[d][k], sample=k) for k in (2, 0, 1) for d in ("d2", "d1")]
    writer.write_records(0, found, Reply)
    writer.commit()
    artifact = chain.examples(ImproveHuman(both_replies=False), "sft", stage, screens=("near_duplicate",))
    assert artifact.meta == {"candidates": 6, "dropped": {"near_duplicate": 1}}
    assert [(d, text) for d, text, _ in shown(artifact)] == [  # in the order of samples, equal ones once
        ("d1", "we hear you well"),
        ("d1", "We hear you well!"),
        ("d1", "yes"),
        ("d2", "no"),
    ]


def test_nothing_left_says_what_was_selected(tmp_path: Path) -> None:
    chain = Chain(tmp_path, rows({"d33": ("train", 3, 3)}))
    with pytest.raises(
        ValueError, match=r"no dpo examples of method 'direct' \(train, train\): .* selects 0 dialogues"
    ):
        chain.examples(Direct(), "dpo", chain.recorded("m"))


# ---------------------------------------------------------------- the leak gate


def test_test_dialogues_inside_training_are_named() -> None:
    def of(ident: str, text: str) -> Dialogue:
        return Dialogue(ident, "g", (Turn("system", "be kind"), Turn("user", text)))

    def table(*dialogues: Dialogue) -> pl.DataFrame:
        return pl.DataFrame(pl.from_arrow(to_table(dialogues, Dialogue)))

    held = Held.of([of("c1", "I lost my old dog"), of("c2", "hi")])
    clean, same_talk, same_words, short = (
        of(*what)
        for what in (
            ("x1", "I lost my cat today"),
            ("c1#turn2", "and then"),
            ("x2", "i LOST my old dog?"),
            ("x3", "hi"),
        )
    )
    assert held.leaks(table(clean, short)) == []
    assert held.leaks(table(same_words, clean, same_talk)) == ["c1#turn2", "x2"]


def test_a_training_set_with_a_test_conversation_is_refused(tmp_path: Path) -> None:
    chain = Chain(tmp_path, rows({"c1": ("test", 3, 3), "d1": ("train", 3, 3)}))
    (tested, trained) = chain.store.get(chain.dialogues).read(Dialogue)
    foreign = Stage(
        chain.dialogues.spec, locator={"made": "elsewhere"}, label="not made by dialogues.make, which refuses too"
    )
    leaking = dataclasses.replace(trained, id="c1#turn2")
    chain.store = Store.open(str(tmp_path / "other"))
    writer = chain.store.writer(foreign)
    writer.write_records(0, [tested, leaking], Dialogue)
    writer.commit()
    with pytest.raises(ValueError, match=r"test dialogues inside training: 1 .* for example c1#turn2; split by group"):
        chain.examples(Human(), "sft", None)
    assert chain.examples(Human(), "sft", None, **HELDOUT).rows == 1


# ---------------------------------------------------------------- replies


def test_recorded_replies_of_somebody_else_lists_who_is_there(chain: Chain) -> None:
    stage = Stage(RepliesSpec(responder=Recorded(responder="gpt4")), {"dialogues": chain.dialogues})
    with pytest.raises(ValueError, match=r"teacher = 'gpt4': .* responders recorded there: human, m"):
        replies.recorded(stage, chain.store, chain.store.writer(stage))


def test_recorded_of_one_side(chain: Chain) -> None:
    stage = Stage(RepliesSpec(responder=Recorded(responder="m"), split="test"), {"dialogues": chain.dialogues})
    replies.recorded(stage, chain.store, chain.store.writer(stage))
    artifact = chain.store.get(stage)
    assert list(artifact.read(Reply)) == [Reply(d, "m", f"m to {d}") for d in ("t12", "t21", "t22")]
    assert [p.rows for p in artifact.parts] == [0, 1, 2]


def answered(asking: Any, answers: Iterator[Answer]) -> tuple[list[Request], Reply]:
    """Drive one asking with the given answers."""
    sent: list[Request] = []
    try:
        request = next(asking)
        while True:
            sent.append(request)
            request = asking.send(next(answers))
    except StopIteration as end:
        return sent, end.value


def asked(chain: Chain, turns: tuple[str, ...], improves: Stage | None = None, **more: Any) -> dict[str, Any]:
    spec = RepliesSpec(responder=Teacher(provider="p", model="t", turns=turns, **more), split="train")
    stage = Stage(spec, {"dialogues": chain.dialogues} | ({"improves": improves} if improves else {}))
    return {name: asking for part in range(3) for name, asking in replies.askings(stage, chain.store, part)}


def test_one_turn(chain: Chain) -> None:
    askings = asked(chain, ("Answer: {dialogue}",), system="Be kind.", temperature=0.5, max_tokens=50, seed=3)
    assert list(askings) == ["d33/0", "d32/0", "d23/0", "d13/0", "d12/0"]
    sent, reply = answered(askings["d32/0"], iter([Answer(" Oh no. \n", "stop", "t-1", 10, 3)]))
    messages = (Turn("system", "Be kind."), Turn("user", "Answer: Speaker: this is the worry of d32"))
    assert sent == [Request("p", "t", messages, temperature=0.5, max_tokens=50, seed=3)]
    assert reply == Reply(
        "d32", "t", "Oh no.", model_served="t-1", tokens_in=10, tokens_out=3, request=sent[0].key, finish_reason="stop"
    )


def test_three_turns_keep_the_last_reply(chain: Chain) -> None:
    askings = asked(chain, ("{dialogue} / {reply}", "warmer", "kinder"), chain.recorded("m"))
    answers = iter(
        [Answer("one", tokens_in=1, tokens_out=1), Answer("two ", tokens_in=2, tokens_out=1), Answer("three")]
    )
    sent, reply = answered(askings["d33/0"], answers)
    first = Turn("user", "Speaker: this is the worry of d33 / m to d33")
    talk = (first, Turn("assistant", "one"), Turn("user", "warmer"), Turn("assistant", "two"), Turn("user", "kinder"))
    assert [r.messages for r in sent] == [talk[:1], talk[:3], talk]
    assert (reply.text, reply.turns, reply.request) == ("three", talk, sent[2].key)
    assert (reply.tokens_in, reply.tokens_out) == (None, None)  # the third did not say


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer("", refused="HTTP 400: content"), "refused: HTTP 400: content"),
        (Answer("", finish_reason="content_filter"), "refused: content_filter"),
        (Answer("cut in the", finish_reason="length"), "cut_off"),
        (Answer(" \n"), "empty"),
    ],
)
def test_an_unusable_answer_ends_the_chat_with_a_reason(chain: Chain, answer: Answer, reason: str) -> None:
    askings = asked(chain, ("{dialogue}", "again"))
    sent, reply = answered(askings["d33/0"], iter([answer]))
    assert len(sent) == 1
    assert reply.dropped == reason
    assert replies.drops([reply, reply]) == {reason.partition(":")[0]: 2}


def test_what_is_no_unicode_can_still_be_stored(chain: Chain, tmp_path: Path) -> None:
    _, reply = answered(asked(chain, ("{dialogue}",))["d33/0"], iter([Answer("sad \ud83d\0 e\u0301")]))
    assert reply.text == "sad \ufffd\ufffd \u00e9"


def test_samples_are_requests_of_their_own(chain: Chain) -> None:
    askings = asked(chain, ("{dialogue}",), samples=2, temperature=1.0)
    (first, _), (second, reply) = (answered(askings[f"d33/{k}"], iter([Answer("oh")])) for k in (0, 1))
    assert first[0].key != second[0].key
    assert reply.sample == 1


def test_nothing_to_improve_asks_nothing(tmp_path: Path) -> None:
    content = rows({"d1": ("train", 3, 3), "d2": ("train", 3, 3)})
    del content[1]["human_reply"]
    chain = Chain(tmp_path, content, part_rows=1)
    (tmp_path / "x").mkdir()
    for improves in (None, chain.recorded("human")):
        spec = RepliesSpec(responder=Teacher(provider="p", model="t", turns=("{dialogue} {reply}",)))
        stage = Stage(spec, {"dialogues": chain.dialogues} | ({"improves": improves} if improves else {}))
        ((_, one),) = replies.askings(stage, chain.store, 0)
        ((_, two),) = replies.askings(stage, chain.store, 1)
        assert len(answered(one, iter([Answer("better")]))[0]) == 1
        sent, reply = answered(two, iter([]))
        assert sent == []
        assert reply.dropped == "nothing_to_improve"


def test_improving_with_a_prompt_that_shows_no_reply_is_refused(chain: Chain) -> None:
    with pytest.raises(ValueError, match=r"no turn contains \{reply\}, so there is nothing to improve"):
        asked(chain, ("{dialogue}",), chain.recorded("m"))
