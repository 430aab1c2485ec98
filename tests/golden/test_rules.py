"""What the embedded rules answer, pinned to their revisions: replies are kept in ledgers under a model's name, so rules
that answer otherwise must have another name.

After a change: raise the number in `NAME` of the rules that changed (serving/rules), then `python -m
tests.golden.test_rules` writes the file anew.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from empathy import judges
from empathy.judges.pairwise import prompt
from empathy.records import Turn
from empathy.specs import Judge
from serving.rules import judge, teacher
from tests.golden.test_sample import ROWS

PINNED = Path(__file__).with_name("rules.json")
CODES = "the same every time"


def answers() -> dict[str, str]:
    """Model name -> sha256 over its answers to the dialogues that ship."""
    spec = Judge(provider="p", model=judge.NAME, template=judges.template("robust"))
    replies, verdicts = [], []
    for row in ROWS:
        said, human = row["turns"][-1]["content"], row["human_reply"]
        replies.append(teacher.reply([Turn("user", said)]))
        improve = f"Speaker: {said}\n\nReply: {human}\n\nImprove the reply: more cognitive, affective, compassionate."
        replies.append(teacher.reply([Turn("user", improve)]))
        verdicts += [judge.reply(prompt(spec, f"Speaker: {said}", (human, r), CODES, 0)[0]) for r in replies[-2:]]
    texts = {teacher.NAME: replies, judge.NAME: verdicts}
    return {name: hashlib.sha256(json.dumps(said).encode()).hexdigest() for name, said in texts.items()}


def test_rules_answer_as_their_revision_did() -> None:
    assert answers() == json.loads(PINNED.read_text())


if __name__ == "__main__":
    PINNED.write_text(json.dumps(answers(), indent=1) + "\n")
