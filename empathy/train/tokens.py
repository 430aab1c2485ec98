"""Chats as token ids, and which of them are the reply.

A row is what the server will see and say: the prompt's ids are those of the rendered prompt alone, and the reply's
are what follows them, up to and with the token that ends the turn. Whatever does not fit that picture is an error,
with its reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from empathy.records import Demonstration, Preference, Turn


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of a prompt and of the reply to it; the reply's last id ends the turn."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.reply)

    @property
    def ids(self) -> list[int]:
        return [*self.prompt, *self.reply]

    @property
    def labels(self) -> list[int]:
        """-100 on the prompt: only the reply is learned."""
        return [-100] * len(self.prompt) + list(self.reply)


class Renderer:
    """Renders with one tokenizer and one template (Jinja text)."""

    def __init__(self, tokenizer: Any, template: str):
        self.tokenizer, self.template = tokenizer, template
        self._special = set(tokenizer.all_special_ids) | {
            i for i, t in tokenizer.added_tokens_decoder.items() if t.special
        }
        self.stop_ids = {tokenizer.eos_token_id}
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token: a student made with it could never stop")

    def rows(self, chats: Sequence[tuple[Sequence[Turn], str]], names: Sequence[str] | None = None) -> list[Row]:
        """A row for each (messages, reply); `names` say in errors which it was.

        Raises ValueError where a rendered row would not teach exactly the reply.
        """
        from jinja2.exceptions import TemplateError

        if not chats:
            return []
        prompts = [[t.as_message() for t in messages] for messages, _ in chats]
        whole = [[*p, {"role": "assistant", "content": reply}] for p, (_, reply) in zip(prompts, chats, strict=True)]
        try:
            before, after = self._ids(prompts, True), self._ids(whole, False)
        except TemplateError as error:
            raise ValueError(
                f"the chat template refuses these messages ({error}): use another template, or no system message"
            ) from error
        named = names or [str(k) for k in range(len(chats))]
        said = (reply for _, reply in chats)
        return [self._row(*one) for one in zip(named, before, after, said, strict=True)]

    def _ids(self, chats: list[Any], generation_prompt: bool) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer.apply_chat_template(
            chats,
            chat_template=self.template,
            add_generation_prompt=generation_prompt,
            tokenize=True,
            return_dict=False,
        )
        return ids

    def _row(self, name: str, prompt: list[int], whole: list[int], reply: str) -> Row:
        if whole[: len(prompt)] != prompt:
            raise ValueError(
                f"example {name}: the rendered prompt changes when the reply follows it (it ends in "
                f"{self.tokenizer.decode(prompt[-6:])!r}): end the template's generation prompt in a special token or "
                "a line break"
            )
        self._check_start(prompt)
        tail = whole[len(prompt) :]
        end = next((i for i, token in enumerate(tail) if token in self._special), None)
        if end is None:
            raise ValueError("the chat template puts no end token after the reply: let it write eos_token there")
        said = self.tokenizer.decode(tail[:end])
        if said.strip() != reply.strip() or not said.strip():
            raise ValueError(
                f"example {name}: the row would teach {said[:80]!r} where the reply is {reply[:80]!r}: screen such "
                "replies, or mend the template"
            )
        self.stop_ids.add(tail[end])
        return Row(tuple(prompt), tuple(tail[: end + 1]))

    def _check_start(self, prompt: list[int]) -> None:
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return
        wanted = self.tokenizer("").input_ids[:1] == [bos]
        found = next((i for i, token in enumerate(prompt) if token != bos), len(prompt))
        if found > 1 or (wanted and found == 0):
            raise ValueError(
                f"a prompt starts with {found} begin-of-sequence tokens and this model wants one: mend the "
                f"template's bos_token"
            )


def demonstration_rows(renderer: Renderer, examples: Sequence[Demonstration]) -> list[Row]:
    """One row an example."""
    return renderer.rows([(e.messages, e.reply) for e in examples], [e.id for e in examples])


def preference_rows(renderer: Renderer, pairs: Sequence[Preference]) -> list[tuple[Row, Row]]:
    """(chosen, rejected) a pair; both have the same prompt ids."""
    names = [p.id for p in pairs]
    chosen = renderer.rows([(p.messages, p.chosen) for p in pairs], names)
    rejected = renderer.rows([(p.messages, p.rejected) for p in pairs], names)
    return list(zip(chosen, rejected, strict=True))


def proof(examples: Sequence[Demonstration | Preference], rows: Iterable[Row]) -> dict[str, Any]:
    """What a server must be able to reproduce: sha256 over the ids of the first 8 examples, of prompts alone and whole.

    The text that is hashed is compact JSON of a list of lists of ids.
    """
    first = list(rows)[:8]
    return {
        "example_ids": [e.id for e in examples[:8]],
        "prompt_sha256": ids_sha256([list(r.prompt) for r in first]),
        "sha256": ids_sha256([r.ids for r in first]),
    }


def ids_sha256(ids: list[list[int]]) -> str:
    """sha256 of compact JSON of a list of lists of token ids."""
    return hashlib.sha256(json.dumps(ids, separators=(",", ":")).encode()).hexdigest()
