"""What an artifact is, where it came from, and why it is not the one next to it."""

from __future__ import annotations

import json
import os
import re
import shlex
import tomllib
from pathlib import Path

from cluster import profile as profiles
from empathy.specs import KINDS
from empathy.stages import key_of, nearest
from empathy.store import Artifact, Store

_HEX = re.compile(r"[0-9a-f]{0,32}")


def find(store: Store, name: str) -> Artifact:
    """The artifact whose key begins with `name` ("kind/" before it is allowed). Raises ValueError when none or
    several do, or when it is no such name."""
    kind, slash, start = name.rpartition("/")
    if (slash and kind not in KINDS) or not _HEX.fullmatch(start):
        raise ValueError(
            f"artifact = {name!r}: give a key (up to 32 hex digits), its first digits, or kind/key; the kinds are "
            f"{', '.join(sorted(KINDS))}"
        )
    kinds = [kind] if kind else sorted(KINDS)
    begun = [(k, key) for k in kinds for key in store.files.folders(k) if key.startswith(start)]
    found = [artifact for k, key in begun if (artifact := store.find(k, key))]
    if len(found) != 1:
        several = ", ".join(f"{a.manifest['identity']['kind']}/{a.key}" for a in found)
        raise ValueError(
            f"artifact = {name!r}: " + (f"several begin so: {several}" if found else f"none in {store.url}")
        )
    return found[0]


def files_of(experiment: str) -> list[str]:
    """The experiment files of this name, of those in this folder and of those that ship."""
    here = Path()
    shipped = (Path(os.path.relpath(path)) for path in (Path(__file__).parent / "experiments").glob("*.toml"))
    return [str(path) for path in sorted({*here.glob("*.toml"), *shipped}) if _name(path) == experiment]


def _name(path: Path) -> object:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig")).get("name")
    except (ValueError, OSError, RecursionError):  # whatever else lies here: it is not the experiment's file
        return None


def maker(artifact: Artifact, store: Store, file: str | None = None) -> str:
    """The command that makes it where it is missing, from `file`, or from the one file here of the experiment that
    made it; where there is none, or several, FILE stands for it."""
    experiment, kind = artifact.manifest["made"].get("experiment"), artifact.manifest["identity"]["kind"]
    found = [file] if file else files_of(experiment) if experiment else []
    named = shlex.quote(found[0]) if len(found) == 1 else "FILE"
    command = f"empathy run {named} --store {shlex.quote(store.url)} --until {kind}/{artifact.key[:8]}"
    whose = f"experiment {experiment!r}" if experiment else "the experiment's; name it behind the key"
    return command if named != "FILE" else f"{command}    (FILE: {whose})"


def explain(name: str, on: str | None, store_url: str | None, file: str | None = None) -> int:
    """Print identity, content, maker (by the experiment's `file`), and the differences to the nearest artifact of the
    same kind."""
    store = profiles.load(on, store_url).open_store()
    artifact = find(store, name)
    manifest = artifact.manifest
    print(f"{manifest['identity']['kind']}/{artifact.key}")
    print(
        f"in {store.url}/{artifact.folder}: {len(artifact.parts)} parts, {artifact.rows:,} rows, "
        f"{len(artifact.files)} files"
    )
    for title, value in (
        ("identity", manifest["identity"]),
        ("counts", artifact.counts),
        ("meta", artifact.meta),
        ("made", manifest["made"]),
    ):
        print(f"\n{title}\n{json.dumps(value, indent=2, sort_keys=True)}")
    print(f"\nmade by\n  {maker(artifact, store, file)}")
    found = nearest(
        manifest["identity"], (a.manifest["identity"] for a in store.artifacts(manifest["identity"]["kind"]))
    )
    if found:
        sibling, differences = found
        print(f"\nnearest sibling differs in    (it is {sibling['kind']}/{key_of(sibling)})")
        print("\n".join(f"  {line}" for line in differences))
    return 0
