"""Prompt strategies: one TOML file each, in this folder or in one of the user's. Being in the folder is being
registered.

A file has `name` (its own name without .toml), `about`, and one or several `wordings`, each a list of `turns`: the
user messages of a chat whose last reply is kept. {dialogue} and {reply} in a turn are filled in by `fill`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from empathy.records import Dialogue

_HERE = Path(__file__).parent
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
PLACEHOLDERS = ("dialogue", "reply")
SPEAKERS = {"system": "Setting", "user": "Speaker", "assistant": "Listener"}


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Wording(_Closed):
    turns: tuple[str, ...] = Field(min_length=1)

    @field_validator("turns")
    @classmethod
    def _usable(cls, turns: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted({name for turn in turns for name in _PLACEHOLDER.findall(turn)} - set(PLACEHOLDERS))
        if unknown:
            raise ValueError(f"{{{unknown[0]}}} is no placeholder; there are {{dialogue}} and {{reply}}")
        if "{dialogue}" not in turns[0]:
            raise ValueError("the first turn must contain {dialogue}, else the model does not see the conversation")
        return turns


class _Strategy(_Closed):
    name: str
    about: str = ""
    wordings: tuple[_Wording, ...] = Field(min_length=1)


def names(folder: str | Path | None = None) -> list[str]:
    """The strategies that exist: those of the package, and those of the user's folder. Raises ValueError when it is
    no folder."""
    return sorted(_files(folder))


def load(name: str, wording: int = 0, folder: str | Path | None = None) -> tuple[str, ...]:
    """The turns of one wording. A file in `folder` replaces the package's of the same name.

    Raises ValueError for a strategy or wording that does not exist, naming those that do, and for a file that is no
    strategy.
    """
    files = _files(folder)
    if name not in files:
        raise ValueError(f"strategy = {name!r}: unknown; there are {', '.join(sorted(files))}")
    try:
        strategy = _Strategy.model_validate(tomllib.loads(files[name].read_text(encoding="utf-8")))
    except ValueError as error:  # TOML and pydantic both name the fault, but not the file
        raise ValueError(f"strategy = {name!r}: {files[name]} cannot be used: {error}") from error
    if strategy.name != name:
        raise ValueError(f"strategy = {name!r}: {files[name]} says name = {strategy.name!r}; file and name must agree")
    if not 0 <= wording < len(strategy.wordings):
        raise ValueError(f"wording = {wording}: strategy {name!r} has wordings 0 to {len(strategy.wordings) - 1}")
    return strategy.wordings[wording].turns


def rewrites(turns: Iterable[str]) -> bool:
    """Whether the prompt improves a reply that it is shown, instead of answering the speaker."""
    return any("{reply}" in turn for turn in turns)


def fill(template: str, dialogue: Dialogue, reply: str | None = None) -> str:
    """The template with the conversation and the reply to improve put in. Braces in what people said stay as they
    are."""
    texts = {"dialogue": rendered(dialogue), "reply": _one_line(reply or "")}
    return _PLACEHOLDER.sub(lambda match: texts[match[1]], template)


def rendered(dialogue: Dialogue) -> str:
    """The conversation so far, a line a turn: "Speaker: ..." or "Listener: ..."."""
    return "\n".join(f"{SPEAKERS[turn.role]}: {_one_line(turn.content)}" for turn in dialogue.turns)


def _one_line(text: str) -> str:
    """What was said can not start a line of its own, and so can not pass for another speaker."""
    return " ".join(text.split())


def _files(folder: str | Path | None) -> dict[str, Path]:
    found = {path.stem: path for path in _HERE.glob("*.toml")}
    if folder is not None:
        own = Path(folder).expanduser()
        if not own.is_dir():
            raise ValueError(
                f"teacher.prompts = {str(folder)!r}: there is no such folder; give one with a .toml file a strategy"
            )
        found |= {path.stem: path for path in own.glob("*.toml")}
    return found
