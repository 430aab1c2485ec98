"""Examples sharded by Ray are those of one process, to the byte; what a user can mend reaches the user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ray

from cluster.profile import Profile
from cluster.steps import here
from empathy import dialogues, replies
from empathy.artifact import Artifact
from empathy.sources import parse
from empathy.specs import Direct, ExamplesSpec, ImproveLlm, OfficialSplit, Recorded, RepliesSpec
from empathy.stages import Stage
from empathy.store import Store

LOCAL = Profile()
SHARDED = Profile.model_validate({"ray": {"cpus": 3}, "assemble": {"ray_above_rows": 0, "workers": 2}})


def rows(n: int) -> list[dict[str, object]]:
    """Every third for the test, rated in turn; of ten replies of m one is a stock phrase and one a template."""
    stock = "I am so sorry for you."
    template = "I see what {} means to you, and I am glad that you told me of it all today."
    return [
        {
            "id": f"d{k:03d}",
            "turns": [{"role": "user", "content": f"the number {k} weighs on me"}],
            "split": "test" if k % 3 == 0 else "train",
            "human_reply": f"people say {k} is fine.",
            "recorded": {"m": {1: stock, 3: template.format(k)}.get(k % 10, f"I hear how {k} weighs on you.")},
            "ratings": {"human": 1 + k % 2 * 2, "m": 3},
        }
        for k in range(n)
    ]


class Chain:
    """Dialogues in parts of seven, and the replies of m, in a store of their own."""

    def __init__(self, folder: Path, content: list[dict[str, object]]):
        folder.mkdir()
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        self.store = Store.open(str(folder / "store"))
        source = parse({"type": "jsonl", "path": str(folder / "a.jsonl")})
        self.dialogues = dialogues.stage(source, OfficialSplit(), part_rows=7)
        dialogues.make(self.dialogues, self.store, self.store.writer(self.dialogues))
        self.replies = Stage(RepliesSpec(responder=Recorded(responder="m")), {"dialogues": self.dialogues})
        replies.recorded(self.replies, self.store, self.store.writer(self.replies))

    def made(self, spec: ExamplesSpec, profile: Profile) -> Artifact:
        inputs = {"dialogues": self.dialogues, "replies": self.replies}
        stage = Stage(spec, inputs | ({"initial": self.replies} if isinstance(spec.method, ImproveLlm) else {}))
        here.make(stage, self.store, profile)
        return self.store.get(stage)


def test_sharded_parts_are_those_of_one_process(tmp_path: Path) -> None:
    alone, sharded = (Chain(tmp_path / name, rows(200)) for name in ("alone", "sharded"))
    screens = ("empty", "copies_input", "near_duplicate")
    specs = [
        ExamplesSpec(method=Direct(), objective="sft", screens=screens, max_dropped=0.5),
        ExamplesSpec(method=ImproveLlm(division="random", rejected="human"), objective="dpo"),
    ]
    expected = [alone.made(spec, LOCAL) for spec in specs]
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        found = [sharded.made(spec, SHARDED) for spec in specs]
        with pytest.raises(ValueError, match=r"dialogue 'd001': its human reply has no rating"):
            Chain(tmp_path / "unrated", [row | {"ratings": {}} for row in rows(20)]).made(specs[0], SHARDED)
    finally:
        ray.shutdown()
    for ours, theirs in zip(found, expected, strict=True):
        assert [(p.rows, p.sha256, p.counts) for p in ours.parts] == [
            (p.rows, p.sha256, p.counts) for p in theirs.parts
        ]
        assert ours.meta == theirs.meta
    # 20 of the 200 have k % 10 == 1, six of them (21, 51, ...) on the test side; the first of the other 14 is kept. 20
    # have k % 10 == 3, seven of them (3, 33, ...) on the test side; of the other 13, 14 of 18 pairs of words are common
    assert expected[0].meta["dropped"] == {"near_duplicate": 13 + 12}
