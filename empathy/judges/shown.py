"""How data is shown to a judge: between markers that it cannot forge, in prompts that are files beside this one.

<<CASE NONCE>>
Speaker: ...            one line a turn: "Speaker: " (role user), "Listener: " (role assistant)
<<END NONCE>>
<<REPLY NONCE>>         or <<REPLY CODE NONCE>>, where there are two
...
<<END NONCE>>
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any, Literal, cast

from empathy.records import Dialogue, Turn

Prompt = Literal["robust", "paper", "rubric"]
DIMENSIONS = ("cognitive", "affective", "compassionate")
PLACEHOLDERS: Mapping[Prompt, frozenset[str]] = {
    "robust": frozenset({"nonce", "case", "code_1", "reply_1", "code_2", "reply_2"}),
    "paper": frozenset({"case", "reply_1", "reply_2"}),
    "rubric": frozenset({"nonce", "case", "reply"}),
}
_SPEAKERS = {"user": "Speaker", "assistant": "Listener", "system": "Background"}
_BLOCK = re.compile(r"<<(CASE|REPLY)(?: (\w+))??(?: ([0-9a-f]{8}))?>>\n(.*?)\n<<END(?: [0-9a-f]{8})?>>", re.DOTALL)
_MARKER = re.compile(r"<(?=[<|])|(?<=[<>|])>|(?<=<)<|>(?=>)")
_CODE_LETTERS, _CODE_DIGITS = "CDFGHJKLMNPQRTVWXZ", "23456789"


@cache
def template(mode: Prompt) -> str:
    """The shipped prompt of a way to judge; everything before a line "---" is the system turn."""
    return files("empathy.judges").joinpath(f"{mode}.txt").read_text(encoding="utf-8")


def check_template(text: str, mode: Prompt) -> None:
    """Raises ValueError unless `text` uses every placeholder of `mode` and no other."""
    found = set(Template(text).get_identifiers())
    if not Template(text).is_valid() or found != PLACEHOLDERS[mode]:
        names = ", ".join(f"${n}" for n in sorted(PLACEHOLDERS[mode]))
        raise ValueError(f"judge.template: a {mode} prompt holds {names} ($$ for a dollar), this one {sorted(found)}")


def neutral(text: str) -> str:
    """`text` with the angle brackets of anything like a marker (<<, >>, <|, |>) replaced by single guillemets."""
    return _MARKER.sub(lambda m: "‹" if m[0] == "<" else "›", text)


def case_of(dialogue: Dialogue) -> str:
    """The conversation, one line a turn."""
    return "\n".join(f"{_SPEAKERS[t.role]}: {t.content}" for t in dialogue.turns)


def draw(ident: str, attempt: int, texts: Sequence[str]) -> tuple[str, str, str]:
    """Nonce and two codes: unpredictable to the data, equal in every process, found in none of `texts`."""
    for salt in range(1000):
        digest = hashlib.sha256(f"{ident}/{attempt}/{salt}".encode()).digest()
        letters = [_CODE_LETTERS[b % len(_CODE_LETTERS)] for b in digest[:4]]
        digits = [_CODE_DIGITS[b % len(_CODE_DIGITS)] for b in digest[4:8]]
        codes = ["".join(x) for x in zip(letters[::2], digits[::2], letters[1::2], digits[1::2], strict=True)]
        nonce = digest[8:12].hex()
        if codes[0] != codes[1] and not any(token in text for token in (nonce, *codes) for text in texts):
            return nonce, codes[0], codes[1]
    raise AssertionError("no free code in 1000 draws")


@dataclass(frozen=True)
class Shown:
    """What a judge was shown: the case, and the replies by code in the order they were shown; a rubric's one reply has
    the code ""."""

    case: str
    replies: Mapping[str, str]
    mode: Prompt


def read_prompt(messages: Sequence[Turn]) -> Shown:
    """The data of a prompt for a judge. Raises ValueError when it is none."""
    blocks = _BLOCK.findall(messages[-1].content)
    cases = [text for kind, _, _, text in blocks if kind == "CASE"]
    replies = {code: text for kind, code, _, text in blocks if kind == "REPLY"}
    one = set(replies) == {""}
    if len(cases) != 1 or not (one or len(replies) == 2):
        raise ValueError(f"no prompt for a judge: {len(cases)} case and {len(replies)} reply blocks, not 1 and 1 or 2")
    return Shown(cases[0], replies, "rubric" if one else "paper" if set(replies) == {"1", "2"} else "robust")


def filled(text: str, fields: Mapping[str, str]) -> tuple[Turn, ...]:
    """The messages of a prompt: what stands before a line "---" is the system turn."""
    system, found, user = text.partition("\n---\n")
    if not found:
        system, user = "", system
    turns = [(role, Template(part).substitute(fields).strip()) for role, part in (("system", system), ("user", user))]
    return tuple(Turn(cast(Literal["system", "user"], role), content) for role, content in turns if content)


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """Every outermost JSON object in `text`, in order."""
    decoder, at = json.JSONDecoder(), text.find("{")
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
            yield value
        except (ValueError, RecursionError):  # this brace opens no object: prose, or an object that was cut off
            end = at + 1
        at = text.find("{", end)


def total(counts: Sequence[int | None]) -> int | None:
    """The sum; None when one of them is unknown."""
    return None if None in counts else sum(cast(Sequence[int], counts))
