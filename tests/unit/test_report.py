"""A small report made of real artifacts in a folder store; the judge is three lines long, so outcomes are known."""

import base64
import csv
import gzip
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from empathy import judges, report
from empathy.judges.shown import read_prompt
from empathy.records import Demonstration, Dialogue, Estimate, Logprob, Preference, Reply, Turn, Verdict
from empathy.report.book import Book, percent
from empathy.report.cells import Cells, name_of
from empathy.report.content import flat
from empathy.report.figures import Bar, draw
from empathy.report.judged import comes_first, differ_in_one
from empathy.report.page import download, draw_page, place_of
from empathy.requests import Answer, Request
from empathy.specs import (
    CheckpointSpec,
    DialoguesSpec,
    Direct,
    Dpo,
    ExamplesSpec,
    GroupSplit,
    HubBase,
    Judge,
    LogprobsSpec,
    Lora,
    Optimiser,
    Recorded,
    RepliesSpec,
    ReportSpec,
    Sft,
    Student,
    VerdictsSpec,
)
from empathy.stages import Stage
from empathy.stats.clustered import Interval
from empathy.store import Store

N, GROUPS = 24, 6
NAMES = {
    "0": "method=direct teacher=gpt-4",
    "base0": "tiny (base)",
    "a000": "student=tiny regime=sft method=direct teacher=gpt-4 seed=0",
    "a001": "student=tiny regime=sft+dpo method=direct teacher=gpt-4 seed=0",
}
TEXTS = {
    "human": "That is hard. I hope you feel better soon.",
    "teacher:0": "Losing number {i} must feel so heavy. What did it mean to you?",
    "base0": "ok {i}",
    "a000": "I hear how much number {i} hurts.",
    "a001": "I hear how much number {i} hurts, and I am here with you.",
}


def longest_wins(request: Request) -> Answer:
    """Prefers the reply with more words, whatever the order; ties where they are equally long."""
    shown = read_prompt(request.messages).replies
    (x, first), (y, second) = ((code, len(text.split())) for code, text in shown.items())
    said = "tie" if first == second else x if first > second else y
    outcome = dict.fromkeys(("cognitive", "affective", "compassionate", "overall"), said)
    return Answer(
        json.dumps({"notes": "counted", **outcome, "margin": 1}), model_served=request.model, tokens_in=90, tokens_out=9
    )


class World:
    """Stages and their artifacts."""

    def __init__(self, folder: Path, judge: Callable[[Request], Answer] = longest_wins, provider: str = "embedded"):
        self.store, self.judge, self.provider = Store.open(str(folder)), judge, provider
        self.dialogues = Stage(DialoguesSpec(source="sample", digest="0" * 64, split=GroupSplit()), label="dialogues")
        self.rows = [
            Dialogue(
                f"d{i}",
                f"g{i % GROUPS}",
                (Turn("user", f"I lost number {i}."),),
                "train" if i >= N else "test",
                emotion="sad",
            )
            for i in range(N + 10)
        ]
        self.made(self.dialogues, [self.rows[:16], self.rows[16:]], Dialogue)
        base = self.made(Stage(CheckpointSpec(base=HubBase(model="tiny")), label="base"), [], Reply)
        inputs = {"dialogues": self.dialogues, "base0:checkpoint": base, "base0:replies": self.replies("base0", base)}
        inputs |= {"human:replies": self.replies("human"), "teacher:0:replies": self.replies("teacher:0")}
        inputs |= self.heldout(inputs["teacher:0:replies"])
        sft = self.tuned(Sft(optimiser=Optimiser(learning_rate=1e-3), tuning=Lora()), {"base": base})
        reference = self.logprobs(sft, inputs["heldout:dpo:0"], -9.0, -9.0)
        dpo = Dpo(optimiser=Optimiser(learning_rate=1e-4), tuning=Lora())
        after = self.tuned(dpo, {"base": base, "policy": sft, "reference": reference})
        for slot, checkpoint, nats in (("base0", base, -20.0), ("a000", sft, -12.0), ("a001", after, -14.0)):
            inputs[f"{slot}:nll:0"] = self.logprobs(checkpoint, inputs["heldout:sft:0"], nats)
            chosen, rejected = {"base0": (-20.0, -18.0), "a000": (-12.0, -11.0), "a001": (-12.0, -16.0)}[slot]
            inputs[f"{slot}:pairs:0"] = self.logprobs(checkpoint, inputs["heldout:dpo:0"], chosen, rejected)
        for slot, checkpoint in (("a000", sft), ("a001", after)):
            inputs |= {f"{slot}:checkpoint": checkpoint, f"{slot}:replies": self.replies(slot, checkpoint)}
            for opponent in ("base0", "human", "teacher:0"):
                stage = self.verdicts(inputs[f"{slot}:replies"], inputs[f"{opponent}:replies"])
                inputs[f"{slot}:verdicts:{opponent}"] = stage
        self.report = Stage(ReportSpec(bootstrap=500), inputs, locator=NAMES, label="report")

    def made(
        self, stage: Stage, parts: list[list[object]], cls: type, meta: dict[str, object] | None = None, **counts: int
    ) -> Stage:
        if not self.store.done(stage):
            writer = self.store.writer(stage)
            for k, rows in enumerate(parts):
                writer.write_records(k, rows, cls, counts if k == 0 else None)
            writer.commit(meta=meta)
        return stage

    def replies(self, slot: str, checkpoint: Stage | None = None) -> Stage:
        spec = RepliesSpec(
            responder=Student() if checkpoint else Recorded(responder=slot), split="test" if checkpoint else None
        )
        stage = Stage(
            spec,
            {"dialogues": self.dialogues} | ({"checkpoint": checkpoint} if checkpoint else {}),
            label=f"{slot} answers",
        )
        rows = [Reply(d.id, slot, TEXTS[slot].format(i=i)) for i, d in enumerate(self.rows)]
        return self.made(stage, [rows[:16], rows[16:]], Reply)

    def heldout(self, replies: Stage) -> dict[str, Stage]:
        found = {}
        for objective, cls in (("sft", Demonstration), ("dpo", Preference)):
            spec = ExamplesSpec(method=Direct(), objective=objective, purpose="heldout", split="test")
            stage = Stage(spec, {"dialogues": self.dialogues, "replies": replies}, label=f"held-out {objective}")
            rows = [self.example(objective, d) for d in self.rows[:N]]
            found[f"heldout:{objective}:0"] = self.made(stage, [rows], cls, too_long=3)
        return found

    def example(self, objective: str, d: Dialogue) -> Demonstration | Preference:
        if objective == "sft":
            return Demonstration.of(d, d.turns, "a reply", "teacher")
        return Preference.of(d, d.turns, ("good", "teacher"), ("bad", "human"))

    def tuned(self, objective: Sft | Dpo, inputs: dict[str, Stage]) -> Stage:
        stage = Stage(CheckpointSpec(objective=objective), inputs, label=f"{objective.type} tiny")
        return self.made(
            stage, [], Reply, meta={"proofs": {"adapter is not zero": True, "start": {"first DPO loss": 0.6931}}}
        )

    def logprobs(self, checkpoint: Stage, examples: Stage, chosen: float, rejected: float | None = None) -> Stage:
        rows = []
        for i, d in enumerate(self.rows[:N]):
            ident = self.example("sft" if rejected is None else "dpo", d).id
            jitter = 0.1 * (i % 5)  # every fourth pair of the base and of SFT is the other way round
            sides = (
                [("reply", chosen)]
                if rejected is None
                else [("chosen", chosen), ("rejected", rejected - (3.0 if i % 4 == 0 else 0))]
            )
            rows += [Logprob(ident, side, nats - jitter, 5) for side, nats in sides]
        return self.made(
            Stage(LogprobsSpec(), {"checkpoint": checkpoint, "examples": examples}, label="log-probabilities"),
            [rows],
            Logprob,
        )

    def verdicts(self, a: Stage, b: Stage) -> Stage:
        judge = Judge(provider=self.provider, model="rule-judge", template=judges.template("robust"))
        stage = Stage(VerdictsSpec(judge=judge), {"dialogues": self.dialogues, "a": a, "b": b}, label="verdicts")
        parts = [[self.driven(asking) for _, asking in judges.askings(stage, self.store, k)] for k in range(2)]
        return self.made(stage, parts, Verdict)

    def driven(self, asking: judges.Asking) -> Verdict:
        try:
            request = next(asking)
            while True:
                request = asking.send(self.judge(request))
        except StopIteration as end:  # how a generator returns
            return end.value


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    found = World(tmp_path_factory.mktemp("store"))
    writer = found.store.writer(found.report)
    report.make(found.report, found.store, writer)
    return found


@pytest.fixture(scope="module")
def book(world: World) -> Book:
    return Book(world.store.get(world.report).read(Estimate), NAMES)


@pytest.fixture(scope="module")
def page(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    head = report.Headline("trial", "Does <b>SFT</b> pay?", "it does", "smaller", "empathy run trial.toml")
    return report.render(world.report, world.store, tmp_path_factory.mktemp("out"), head)


def test_win_rates_are_those_of_the_judge(book: Book) -> None:
    # words: base 2, a000 7, a001 13, human 9, teacher 13
    expected = {("a000", "base0"): 1, ("a000", "human"): 0, ("a000", "teacher:0"): 0}
    expected |= {("a001", "base0"): 1, ("a001", "human"): 1, ("a001", "teacher:0"): 0.5}
    found = {(m.arm, m.opponent): book.of_match(m, "win_rate") for m in book.matches}
    assert {k: e.value for k, e in found.items()} == expected
    assert {(e.n, e.clusters) for e in found.values()} == {(2 * N, GROUPS)}
    assert all(book.of_match(m, "order_consistency").value == 1 for m in book.matches)
    assert book.get("a000", "words_difference", "base0", "rule-judge").value == 5


def test_estimates_name_the_artifact_they_come_from(world: World, book: Book) -> None:
    keys = {stage.key for stage in world.report.inputs.values()}
    assert {e.key for e in book.all} <= keys
    assert book.get("a001", "win_rate", "human", "rule-judge").key == world.report.inputs["a001:verdicts:human"].key


def test_likelihood_and_preference(book: Book) -> None:
    # base -20 nats, SFT -12, SFT+DPO -14 over 5 tokens, less a jitter that all share
    assert book.get("a000", "nll_difference", "base0").value == pytest.approx(-8 / 5)
    assert book.get("a001", "nll_difference", "base0").value == pytest.approx(-6 / 5)
    accuracy = {
        (s, k): book.get(s, f"preference_accuracy_{k}")
        for s in ("base0", "a000", "a001")
        for k in ("summed", "over_base", "implicit")
    }
    # margins: base -2 or +1, SFT -1 or +2, DPO +4 or +7; over base: SFT +1, DPO +6; over SFT: DPO +5
    assert [accuracy[s, "summed"].value for s in ("base0", "a000", "a001")] == [0.25, 0.25, 1]
    assert accuracy["base0", "over_base"] is None
    assert accuracy["a000", "over_base"].value == 1
    assert accuracy["a000", "implicit"] is None
    assert accuracy["a001", "implicit"].value == 1
    assert book.get("a001", "preference_accuracy_gain_summed", "a000").value == pytest.approx(0.75)


def test_checks_say_what_training_did(book: Book) -> None:
    checks = {c.claim: c for c in book.checks()}
    by_arm = {claim: c.holds for claim, c in checks.items()}
    assert by_arm["sft direct lowers held-out NLL per token against tiny (base)"] is True
    assert by_arm["sft+dpo direct raises held-out preference accuracy (summed) over sft direct"] is True
    summed = checks["sft+dpo direct raises held-out preference accuracy (summed) over sft direct"]
    assert summed.detail.startswith("+75.0 points [")
    assert summed.detail.endswith("], from 25.0 %")
    # all 24 pairs were right before DPO: nothing was left to raise
    assert by_arm["sft+dpo direct raises held-out preference accuracy (over base) over sft direct"] is None


@pytest.mark.parametrize(
    ("measure", "value", "low", "high", "holds"),
    [
        ("nll_difference", -0.5, -0.6, -0.4, True),
        ("nll_difference", -0.5, -1.1, 0.1, None),
        ("nll_difference", 0.1, -0.2, 0.4, None),
        ("nll_difference", 0.3, 0.1, 0.5, False),
        ("nll_difference", 0.3, None, None, None),
        ("preference_accuracy_gain_summed", 0.2, 0.1, 0.3, True),
        ("preference_accuracy_gain_summed", 0.0, 0.0, 0.0, None),
        ("preference_accuracy_gain_summed", -0.1, -0.3, 0.1, None),
        ("preference_accuracy_gain_summed", -0.2, -0.3, -0.1, False),
    ],
)
def test_a_claim_is_refuted_only_by_an_interval_on_the_wrong_side(
    measure: str, value: float, low: float | None, high: float | None, holds: bool | None
) -> None:
    arm, opponent = ("a000", "base0") if measure == "nll_difference" else ("a001", "a000")
    one = Estimate(arm, opponent, measure, value, low, high, n=24, clusters=6, judge=None, note="", key="k")
    assert [check.holds for check in Book([one], NAMES).checks()] == [holds]


def test_contrast_of_two_arms_is_paired(book: Book) -> None:
    found = [e for e in book.of("contrast") if e.note == "against human, family of 1"]
    assert [(e.arm, e.opponent, e.value, e.low, e.high, e.n) for e in found] == [("a001", "a000", 1.0, 1.0, 1.0, N)]
    p = book.get("a001", "contrast_p", "a000", "rule-judge", found[0].note)
    assert p.value == 2 / 2**GROUPS  # all six clusters the same way: two of 64 sign patterns


def test_factors_that_make_a_contrast() -> None:
    arm = {"student": "s", "regime": "sft", "method": "improve_human", "strategy": "naive", "seed": "0"}
    assert differ_in_one(arm, arm | {"regime": "dpo"})
    assert differ_in_one(arm, arm | {"strategy": "all_three"})
    assert not differ_in_one(arm | {"strategy": "combined"}, arm | {"strategy": "all_three"})
    assert not differ_in_one(arm, arm | {"seed": "1"})
    assert not differ_in_one(arm, arm | {"regime": "dpo", "student": "t"})
    first = arm | {"wording": "0"}
    assert differ_in_one(first, arm | {"strategy": "all_three"}), "no wording is the first"
    assert not differ_in_one(first, arm), "one arm by two names"
    assert not differ_in_one(arm | {"wording": "1"}, arm | {"strategy": "all_three"})
    answers = {"student": "s", "regime": "sft", "method": "direct", "seed": "0"}
    assert differ_in_one(answers, answers | {"strategy": "chain_of_empathy.cbt"}), "a teacher who is told no strategy"
    assert comes_first(answers, answers | {"strategy": "chain_of_empathy.cbt"})
    assert not comes_first(answers | {"strategy": "chain_of_empathy.cbt"}, answers)


def test_an_interval_without_width_is_not_shown() -> None:
    same, other = (Interval(1.0, low, 1.0, 0.0, 8, 4) for low in (1.0, 0.25))
    assert percent(same, signed=True) == "+100.0 %"
    assert percent(other) == "100.0 % [25.0, 100.0]"


def test_which_arm_of_a_contrast_is_subtracted() -> None:
    naive = {"student": "s", "regime": "sft", "method": "improve_human", "strategy": "naive", "seed": "0"}
    assert comes_first(naive, naive | {"regime": "sft+dpo"}), "sft+dpo less sft, of naive arms too"
    assert not comes_first(naive | {"regime": "sft+dpo"}, naive), "in whatever order the grid names them"
    assert comes_first(naive, naive | {"strategy": "all_three"})
    assert not comes_first(naive | {"strategy": "all_three"}, naive)
    assert comes_first(naive | {"teacher": "b"}, naive | {"teacher": "a"})


def test_artifact_is_the_same_under_other_names(world: World) -> None:
    renamed = Stage(
        world.report.spec, world.report.inputs, locator={k: v.replace("tiny", "small") for k, v in NAMES.items()}
    )
    assert renamed.key == world.report.key
    assert report.build(renamed, world.store)[0] == report.build(world.report, world.store)[0]


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [str(values["id"])] if values.get("id") else []
        if tag == "a":
            self.targets.append(str(values["href"]))
        self.loaded += [str(values[n]) for n in ("src", "data") if n in values] + (
            [tag] if tag in ("link", "script", "iframe") else []
        )


def test_page_is_one_file_that_works_offline(page: Path) -> None:
    text = page.read_text()
    links = Links()
    links.feed(text)
    assert links.loaded == []
    assert not re.search(r"@import|url\(\s*['\"]?http", text)
    inside = [t for t in links.targets if t.startswith(("#", "data:text/csv;base64,"))]
    assert {t[1:] for t in inside if t.startswith("#")} <= set(links.ids)
    manifests = [page.parent / unquote(t) for t in links.targets if t not in inside]
    assert len(manifests) == text.count('<tr id="') > 10, "one a row of the table of artifacts"
    assert all(m.name == "artifact.json" and m.is_file() for m in manifests), "relative to where the page lies"


def test_a_bucket_is_an_address_and_no_link(world: World, tmp_path: Path) -> None:
    for store_url, expected in (
        ("s3://bucket/prefix", "s3://bucket/prefix/verdicts/ab12/artifact.json"),
        (str(tmp_path / "my store"), "../my%20store/verdicts/ab12/artifact.json"),
    ):
        assert place_of("verdicts/ab12", store_url, tmp_path / "out") == expected
    estimates, content = report.build(world.report, world.store)
    page = draw_page(world.report, estimates, content, tmp_path, report.Headline("t", "?"), "s3://bucket/prefix")
    key = world.report.inputs["human:replies"].key
    assert f"<code>s3://bucket/prefix/replies/{key}/artifact.json</code>" in page.read_text()


def test_commands_name_the_store(world: World, tmp_path: Path) -> None:
    head = report.Headline("t", "?", command="empathy run t.toml --store /s", file="t.toml", where="--store /s")
    text = report.render(world.report, world.store, tmp_path, head).read_text()
    assert "<code>empathy explain KIND/KEY --store /s</code>" in text
    shown = re.findall(r"<code>(empathy trace d\d+ t.toml --store /s)</code>", text)
    assert len(shown) == 5
    assert re.search(r"<code>empathy run t.toml --store /s --until replies/[0-9a-f]{8}</code>", text)


def test_a_large_csv_is_packed() -> None:
    text = "a,b\n" + "1,2\n" * 200_000
    link = download(text, "x.csv")
    url = re.search(r'download="x.csv.gz" href="data:application/gzip;base64,([^"]+)"', link)
    assert gzip.decompress(base64.b64decode(url[1])).decode() == text
    assert 'download="x.csv" href="data:text/csv;base64,YSxi"' in download("a,b", "x.csv")


def test_page_says_what_it_must(page: Path, world: World) -> None:
    text = page.read_text()
    assert "Does &lt;b&gt;SFT&lt;/b&gt; pay?" in text
    assert "no conclusion about empathy may be drawn" in text
    assert "the judge &#39;rule-judge&#39;" in text
    assert f"verdicts/{world.report.inputs['a000:verdicts:human'].key}" in text
    assert "empathy run trial.toml" in text
    verdicts = world.report.inputs["a000:verdicts:human"]
    assert f"empathy run trial.toml --until verdicts/{verdicts.key[:8]}<" in text
    assert "test 24, train 10 dialogues" in text
    assert "<td>too long 3</td>" in text, "held-out sets are no sets of an arm"
    assert "Only 6 clusters stand behind the intervals" in text
    assert "can be below 0.0312" in text, "two of 2^6 sign patterns"
    assert '<td>start: first DPO loss</td><td class="n">2</td><td>0.6931</td>' in text, "of both checkpoints"
    assert "do not measure empathy" in text
    assert text.count('class="case"') == 5


def test_the_answer_comes_first(page: Path, book: Book) -> None:
    text = page.read_text()
    assert text.index(">against base<") < text.index('<figure id="win_rate">') < text.index("an opponent and a judge")
    row = re.search(r'<td class="who">sft direct</td><td class="n">([\d.]+)', text[text.index(">against base<") :])
    assert row is not None
    assert float(row[1]) == pytest.approx(100 * book.get("a000", "win_rate", "base0", "rule-judge").value, abs=0.05)
    assert text.index("Everything again") > text.index('<h2 id="artifacts">')
    found = [c.holds for c in book.checks()]
    held, still, failed = (found.count(x) for x in (True, None, False))
    told = f"{len(found)} claims: {held} hold, {still} are open, {failed} do not hold"
    assert f'<a href="#checks">{told}</a>' in text


def test_a_real_judge_raises_no_banner(tmp_path: Path) -> None:
    world = World(tmp_path, provider="openai")
    _, content = report.build(world.report, world.store)
    assert content["stand_ins"] == []


def test_unreadable_verdicts_are_told(tmp_path: Path) -> None:
    def mumbles(request: Request) -> Answer:
        return Answer("hm") if "number 3 " in request.messages[-1].content else longest_wins(request)

    world = World(tmp_path, judge=mumbles)
    book = Book(report.build(world.report, world.store)[0], NAMES)
    m = book.matches[0]
    assert book.of_match(m, "missing_share").value == pytest.approx(1 / N)
    assert book.of_match(m, "win_rate").n == 2 * (N - 1)


def test_files_beside_the_page(page: Path) -> None:
    rows = list(csv.DictReader(io.StringIO((page.parent / "estimates.csv").read_text())))
    assert {"sft direct", "tiny (base)", "human reply"} <= {r["arm"] for r in rows}
    assert (page.parent / "estimates.parquet").stat().st_size > 1000
    bars = list(csv.DictReader(io.StringIO((page.parent / "figures" / "win_rate.csv").read_text())))
    assert [(b["panel"], b["series"], b["value"]) for b in bars][:2] == [
        ("tiny against its base", "sft", "100.0"),
        ("tiny against its base", "sft+dpo", "100.0"),
    ]
    assert (page.parent / "figures" / "win_rate.svg").read_text().startswith("<svg")


def test_figures_are_drawn_the_same_twice() -> None:
    bars = [Bar("p", "g", "sft", 40.0, 30.0, 50.0), Bar("p", "g", "base", 10.0, None, None)]
    first, second = (draw("x", "X", "", bars, "%", 100, 50) for _ in range(2))
    assert first.svg == second.svg
    assert first.csv.splitlines()[1] == "p,g,sft,40.0,30.0,50.0"


def test_proofs_are_flat_lines() -> None:
    found = {
        "adapter": {"b_not_zero": 28, "b_norm": 1.0 / 3, "more": {"whole": True}},
        "base_weights_sha256": "ab",
        "shape": [2, 0.5],
    }
    assert flat(found) == {
        "adapter: b not zero": 28,
        "adapter: b norm": "0.333333",
        "adapter: more: whole": True,
        "base weights sha256": "ab",
        "shape": "2, 0.5",
    }


def test_the_terminal_warns_of_stand_ins(book: Book, world: World, tmp_path: Path) -> None:
    told = report.headline(book.all, NAMES, report.stand_ins(world.report)).splitlines()[-1]
    assert told.startswith("Stand-ins: the judge 'rule-judge' is a fixed set of rules")
    assert "no conclusion about empathy" in told
    assert "Stand-ins" not in report.headline(
        book.all, NAMES, report.stand_ins(World(tmp_path, provider="openai").report)
    )


def test_headline_for_a_terminal(world: World, book: Book) -> None:
    text = report.headline(book.all, NAMES, judged=report.judged_sizes(world.report, world.store))
    assert "judge rule-judge; 48 verdicts on 24 dialogues in 6 clusters" in text, "both orders of each"
    _, *tables = text.split("\n\n")
    assert tables[1].startswith("without an interval"), "a001 ties with the teacher everywhere"
    wins, own = ([x.split("  ") for x in part.splitlines()] for part in (tables[0], tables[3]))
    assert [x.strip() for x in wins[2] if x] == [
        "sft direct",
        "100.0 [47.6, 100.0]",
        "0.0 [0.0, 52.4]",
        "0.0 [0.0, 52.4]",
    ]
    # a base's row and an arm's: -20 and -12 nats less a mean jitter of .19 over 5 tokens, 2 and 7 words
    assert [x.strip() for x in own[2] if x][2:] == ["4.038 [4.030, 4.047]", "25.0 [7.5, 57.8]", "–", "2.0"]
    assert [x.strip() for x in own[3] if x][:3] == ["sft direct", "direct", "2.438 [2.430, 2.447]"]


def test_names() -> None:
    assert name_of("teacher:0", NAMES) == "teacher's reply (direct)"
    assert name_of("a000", NAMES) == "sft direct"
    assert name_of("a000", NAMES | {"a002": NAMES["a000"][:-1] + "1"}) == "sft direct seed 0"
    assert name_of("base0", NAMES) == "tiny (base)"


def test_cells_find_base_and_starting_point(world: World) -> None:
    cells = Cells(world.report)
    dpo = cells.responders["a001"]
    assert cells.base_of(dpo).slot == "base0"
    assert cells.start_of(dpo).slot == "a000"
    assert cells.start_of(cells.responders["a000"]).slot == "base0"
    assert [t.slot for t in cells.teachers_of(dpo)] == ["teacher:0"]
