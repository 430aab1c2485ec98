"""TOML files -> typed models, with errors that name the file, the field, the value and what would be right."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from empathy.words import instead

M = TypeVar("M", bound=BaseModel)
MOST_SHOWN = 200
"""Characters of a value in a message: a whole table would hide the remedy behind it."""
_REMEDIES = {
    "tuple_type": "must be a list: [...]",
    "list_type": "must be a list: [...]",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "model_attributes_type": "must be a table",
    "string_type": 'must be a text, in "quotes"',
}
"""What pydantic says in words of Python's types."""
_QUOTED = re.compile(r"'([^']*)'")
"""Names as pydantic lists them."""
_SECRET_FIELD = re.compile(r"(?i)(^|_)(key|key_env|token|auth\w*)$|secret|passw|credential")
_SECRET_VALUE = re.compile(r"(?i)\b(sk-|gsk_|hf_|AIza|AKIA|bearer\s)[\w\-.]{6,}|://[^/\s'\"]*@")


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for arg in get_args(annotation) for model in _models_in(arg)]


def _fields_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The field names that would have been right where the last element of `loc` stands."""
    models = [model]
    for part in loc[:-1]:
        fields = [f for m in models for n, f in m.model_fields.items() if part in (n, f.alias)]
        if fields:
            models = [m for f in fields for m in _models_in(f.annotation)]
        else:  # the tag of a union, the key of a table of tables, or the index of a list
            models = [
                m for m in models if "type" in m.model_fields and m.model_fields["type"].default == part
            ] or models
    return sorted({f.alias or n for m in models for n, f in m.model_fields.items()})


def _value(data: Any, loc: tuple[int | str, ...]) -> Any:
    for part in loc:
        inside = isinstance(data, dict) and part in data
        if inside or (isinstance(data, list) and isinstance(part, int) and part < len(data)):
            data = data[part]
    return data


def _shown(loc: tuple[int | str, ...], value: Any) -> str:
    """The value, unless it may be a secret that somebody put into the file: messages end in logs."""
    said = repr(value)
    hidden = isinstance(value, str) and loc and _SECRET_FIELD.search(str(loc[-1]))
    if hidden or _SECRET_VALUE.search(said):
        return "(not shown: it may be a secret)"
    return said if len(said) <= MOST_SHOWN else f"{said[:MOST_SHOWN]} ..."


def problems(error: ValidationError, model: type[BaseModel], data: Any) -> list[str]:
    """One line a problem: field path, value, remedy."""
    lines = []
    found = error.errors()
    for item in found:
        loc, kind = item["loc"], item["type"]
        if kind == "too_short" and any(e["loc"][: len(loc)] == loc and e is not item for e in found):
            continue  # an item that is wrong is not counted, and the list is blamed for that too
        where = ".".join(str(p) for p in loc if p != "[key]")
        if kind == "extra_forbidden":
            known = instead(str(loc[-1]), _fields_at(model, loc))
            lines.append(f"{where} = {_shown(loc, item['input'])}: no such field{known}")
        elif kind == "missing":
            lines.append(f"{where}: is missing; add it")
        elif kind == "union_tag_invalid":
            context = item["ctx"]
            known = instead(context["tag"], _QUOTED.findall(context["expected_tags"]))
            lines.append(f"{where}.type = {context['tag']!r}: unknown{known}")
        elif kind == "literal_error" and isinstance(item["input"], str) and "'" in item["ctx"]["expected"]:
            known = instead(item["input"], _QUOTED.findall(item["ctx"]["expected"]))
            lines.append(f"{where} = {_shown(loc, item['input'])}: unknown{known}")
        elif kind == "union_tag_not_found":
            lines.append(f"{where} = {_shown(loc, _value(data, loc))}: needs a type, e.g. {{ type = ... }}")
        else:
            message = _REMEDIES.get(kind) or item["msg"].removeprefix("Value error, ")
            lines.append(f"{where} = {_shown(loc, item['input'])}: {message}" if where else message)
    return lines


def _of_another_kind(model: type[BaseModel], data: Any) -> str | None:
    """What to say of a file most of whose fields are no fields of this kind: somebody gave another file."""
    names = sorted(f.alias or n for n, f in model.model_fields.items())
    strange = [key for key in data if key not in names] if isinstance(data, dict) else []
    if len(strange) < 3 or 2 * len(strange) <= len(data):
        return None
    kind = model.__name__.lower().strip("_")
    return f"is this the right file? {', '.join(strange)} are no fields of {kind} files, which have {', '.join(names)}"


def validate(model: type[M], data: Any, name: str) -> M:
    """`data` as a `model`. Raises ValueError that starts with `name` and lists every problem."""
    if another := _of_another_kind(model, data):
        raise ValueError(f"{name}: {another}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ValueError("\n  ".join([f"{name}:", *problems(error, model, data)])) from None


def load(model: type[M], path: str | Path) -> M:
    """The TOML file at `path` as a `model`. Raises ValueError for a missing, malformed or wrong file."""
    path = Path(path)
    if not path.is_file():
        folder, what = (path, "is a folder") if path.is_dir() else (path.parent, "does not exist")
        near = sorted(str(p) for p in folder.glob("*.toml") if p.name != "pyproject.toml") if folder.is_dir() else []
        raise ValueError(f"file = {str(path)!r}: {what}" + (f"; there are {', '.join(near)}" if near else ""))
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise ValueError(f"{path}: not valid TOML: too many brackets inside brackets") from None
    return validate(model, data, str(path))
