"""Prompt strategies: one TOML file each, in this folder or in one of the user's. Being in the folder is being
registered.

A file has `name` (its own name without .toml), `about`, and one or several `wordings`, each a list of `turns`: the
user messages of a chat whose last reply is kept. {dialogue} and {reply} in a turn are filled in by `fill`.

A family of strategies is one file with `variants`: tables of texts that take the places of {their names} in the turns.
Its strategies are called FAMILY.VARIANT. And a file with `union` instead of wordings names strategies whose replies are
learned from together.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from empathy import documents
from empathy.records import Dialogue
from empathy.words import instead

_HERE = Path(__file__).parent
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
PLACEHOLDERS = ("dialogue", "reply")
SPEAKERS = {"system": "Setting", "user": "Speaker", "assistant": "Listener"}
_PLAIN = ""
"""The one variant of a strategy without variants."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Wording(_Closed):
    turns: tuple[str, ...] = Field(min_length=1)

    def of(self, texts: Mapping[str, str]) -> tuple[str, ...]:
        """The turns of a variant. Raises ValueError for one that shows no conversation, and for unknown
        placeholders."""
        turns = tuple(_PLACEHOLDER.sub(lambda m: texts.get(m[1], m[0]), turn) for turn in self.turns)
        unknown = sorted({name for turn in turns for name in _PLACEHOLDER.findall(turn)} - set(PLACEHOLDERS))
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in (*PLACEHOLDERS, *texts))
            raise ValueError(f"{{{unknown[0]}}} is no placeholder; there are {known}")
        if "{dialogue}" not in turns[0]:
            raise ValueError("the first turn must contain {dialogue}, else the model does not see the conversation")
        return turns


class _Strategy(_Closed):
    name: str
    about: str = ""
    wordings: tuple[_Wording, ...] = ()
    variants: dict[str, dict[str, str]] = Field(default_factory=dict)
    union: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _usable(self) -> _Strategy:
        if bool(self.wordings) == bool(self.union):
            raise ValueError("give one or several [[wordings]], or union = [STRATEGIES], not both and not neither")
        if self.union and (self.variants or len(set(self.union)) < 2):
            raise ValueError(f"union = {list(self.union)}: name two or more different strategies, without variants")
        taken = sorted({name for texts in self.variants.values() for name in texts} & set(PLACEHOLDERS))
        if taken:
            raise ValueError(f"variants: {{{taken[0]}}} is filled in with what was said; give the text another name")
        for wording in self.wordings:
            for texts in self.variants.values() or [{}]:
                wording.of(texts)
        return self


def names(folder: str | Path | None = None) -> list[str]:
    """The strategies that exist: those of the package, and those of the user's folder, variants and unions included.
    Raises ValueError when it is no folder, and for a file that is no strategy."""
    found = {stem: _read(stem, path) for stem, path in _files(folder).items()}
    return sorted(_called(stem, variant) for stem, s in found.items() for variant in s.variants or [_PLAIN])


def load(name: str, wording: int = 0, folder: str | Path | None = None) -> tuple[str, ...]:
    """The turns of one wording. A file in `folder` replaces the package's of the same name.

    Raises ValueError for a strategy or wording that does not exist, naming those that do, for a union, and for a file
    that is no strategy.
    """
    strategy, texts = _found(name, folder)
    if strategy.union:
        raise ValueError(f"strategy = {name!r}: a union has no wordings; there are {', '.join(strategy.union)}")
    if not 0 <= wording < len(strategy.wordings):
        raise ValueError(f"wording = {wording}: strategy {name!r} has wordings 0 to {len(strategy.wordings) - 1}")
    return strategy.wordings[wording].of(texts)


def parts(name: str, folder: str | Path | None = None) -> tuple[str, ...]:
    """The strategies that a union is made of; of any other, itself. Raises ValueError as `load` does, and for a union
    of unions."""
    strategy, _ = _found(name, folder)
    if nested := [part for part in strategy.union if _found(part, folder)[0].union]:
        raise ValueError(f"strategy = {name!r}: {nested[0]!r} is a union itself; name its strategies")
    return strategy.union or (name,)


def _found(name: str, folder: str | Path | None) -> tuple[_Strategy, dict[str, str]]:
    """The file of a strategy, and the texts of its variant."""
    stem, _, variant = name.partition(".")
    path = _file(stem, folder)
    strategy = _read(stem, path) if path else None
    if strategy and not variant and not strategy.variants:
        return strategy, {}
    if strategy is None or variant not in strategy.variants:
        raise ValueError(f"strategy = {name!r}: unknown{instead(name, names(folder))}")
    return strategy, strategy.variants[variant]


def _called(stem: str, variant: str) -> str:
    return f"{stem}.{variant}" if variant else stem


def _read(name: str, path: Path) -> _Strategy:
    try:
        strategy = documents.load(_Strategy, path)
    except ValueError as error:  # names the file and the fault, but not who asks for it
        raise ValueError(f"strategy = {name!r}: {error}") from None
    if strategy.name != name:
        raise ValueError(f"strategy = {name!r}: {path} says name = {strategy.name!r}; file and name must agree")
    return strategy


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


def _file(stem: str, folder: str | Path | None) -> Path | None:
    """Looked up, not searched for in a listing: a grid of thousands of strategies asks for each."""
    places = [_HERE] if folder is None else [_own(folder), _HERE]
    paths = [place / f"{stem}.toml" for place in places if Path(stem).name == stem]
    return next((path for path in paths if path.is_file()), None)


def _files(folder: str | Path | None) -> dict[str, Path]:
    found = {path.stem: path for path in _HERE.glob("*.toml")}
    if folder is not None:
        own = {path.stem: path for path in _own(folder).glob("*.toml") if path.is_file() and path.name[0] != "."}
        if dotted := sorted(stem for stem in own if "." in stem):
            raise ValueError(
                f"teacher.prompts = {str(folder)!r}: {dotted[0]}.toml has a dot in its name, which divides a family "
                f"from its variant; rename it to {dotted[0].replace('.', '_')}.toml"
            )
        found |= own
    return found


def _own(folder: str | Path) -> Path:
    own = Path(folder).expanduser()
    if not own.is_dir():
        raise ValueError(
            f"teacher.prompts = {str(folder)!r}: there is no such folder; give one with a .toml file a strategy"
        )
    return own
