"""What an artifact is, where it came from, and why it is not the one next to it."""

from __future__ import annotations

import json
import re

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


def maker(artifact: Artifact, store: Store) -> str:
    """The command that makes it where it is missing; FILE stands for the file of the experiment that is named."""
    experiment, kind = artifact.manifest["made"].get("experiment"), artifact.manifest["identity"]["kind"]
    command = f"empathy run FILE --store {store.url} --until {kind}/{artifact.key[:8]}"
    return f"{command}    (FILE: experiment {experiment!r})" if experiment else command


def explain(name: str, on: str | None, store_url: str | None) -> int:
    """Print identity, content, maker, and the differences to the nearest artifact of the same kind."""
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
    print(f"\nmade by\n  {maker(artifact, store)}")
    found = nearest(
        manifest["identity"], (a.manifest["identity"] for a in store.artifacts(manifest["identity"]["kind"]))
    )
    if found:
        sibling, differences = found
        print(f"\nnearest sibling differs in    (it is {sibling['kind']}/{key_of(sibling)})")
        print("\n".join(f"  {line}" for line in differences))
    return 0
