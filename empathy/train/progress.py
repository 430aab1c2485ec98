"""Resumable checkpoints in the store, under its commit protocol.

    progress/KEY/00000040-NONCE.json   the manifest, written last by one conditional put: files with size and sha256
    progress/KEY/00000040-NONCE/...    the files of step 40

Only what a manifest lists is believed. A half-written one has none; one that is not what its manifest says is
refused, and the one before it is used.
"""

from __future__ import annotations

import json
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from empathy.artifact import CorruptError, parse
from empathy.files import Files, file_chunks, sha256_of
from empathy.train.group import Group

KEPT = 2
"""Newest checkpoints that stay: the last one, and one to fall back on."""


@dataclass(frozen=True)
class Progress:
    """The checkpoints of one stage's training. `shape` is what the files depend on (workers, ZeRO stage)."""

    files: Files
    key: str
    group: Group
    shape: dict[str, int]

    @property
    def root(self) -> str:
        return f"progress/{self.key}"

    def put(self, folder: Path, step: int) -> None:
        """Commit the files that all ranks have written under `folder`. Every rank calls this."""
        name = self.group.from_first(f"{step:08d}-{uuid.uuid4().hex[:12]}")
        self.group.wait()
        uploaded = self._upload(folder, name) if self.group.first_here else []
        listed = [file for files in self.group.from_all(uploaded) for file in files]
        if self.group.first:
            manifest = {"step": step, "folder": name, "shape": self.shape, "files": listed}
            self.files.put_if_absent(f"{self.root}/{name}.json", json.dumps(manifest, indent=1).encode())
            for older in self._manifests()[:-KEPT]:
                self._remove(older)
        self.group.wait()

    def _upload(self, folder: Path, name: str) -> list[dict[str, Any]]:
        listed = []
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".py"):
            relative = path.relative_to(folder).as_posix()
            size, sha256 = self.files.upload(f"{self.root}/{name}/{relative}", path)
            listed.append({"path": relative, "size": size, "sha256": sha256})
        return listed

    def newest(self, target: Path) -> Path | None:
        """Bring the newest whole checkpoint under `target`; None when there is none. Every rank calls this.

        Raises ValueError when it was made by another number of workers or another ZeRO stage.
        """
        for path in reversed(self.group.from_first(self._manifests() if self.group.first else [])):
            manifest = self._read(path)
            if manifest is None:
                continue
            if manifest["shape"] != self.shape:
                raise ValueError(
                    f"step {manifest['step']} of this training was saved with {manifest['shape']} and cannot be "
                    f"resumed "
                    f"with {self.shape}: run with those again, or delete {self.files.url}/{self.root} to start anew"
                )
            folder = target / f"checkpoint-{manifest['step']}"
            whole = self._download(manifest, folder) if self.group.first_here else True
            if all(self.group.from_all(whole)):
                return folder
        return None

    def _read(self, path: str) -> dict[str, Any] | None:
        try:
            return parse(path, self.files.read(path))
        except CorruptError as error:
            print(f"{error}; an older checkpoint is used", file=sys.stderr)
            return None

    def _download(self, manifest: dict[str, Any], folder: Path) -> bool:
        """Bring all files, streamed. False, said on standard error, when one is not what the manifest says."""
        for file in manifest["files"]:
            path = folder / file["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with path.open("wb") as stream:
                    stream.writelines(
                        self.files.chunks(f"{self.root}/{manifest['folder']}/{file['path']}", file["size"])
                    )
                whole = sha256_of(file_chunks(path)) == (file["size"], file["sha256"])
            except FileNotFoundError:  # lost: no better than damaged
                whole = False
            if not whole:
                print(
                    f"{self.root}: step {manifest['step']} is damaged ({file['path']}); an older one is used",
                    file=sys.stderr,
                )
                return False
        return True

    def _manifests(self) -> list[str]:
        return [p for p in self.files.list(f"{self.root}/") if p.endswith(".json")]

    def _remove(self, manifest_path: str) -> None:
        self.files.delete(manifest_path)  # first: what no manifest lists is not believed
        for path in self.files.list(manifest_path.removesuffix(".json"), recursive=True):
            self.files.delete(path)

    def clear(self) -> None:
        """Forget everything: the stage is finished. Rank 0 calls this."""
        for path in self._manifests():
            self.files.delete(path)
        for path in self.files.list(f"{self.root}/", recursive=True):
            self.files.delete(path)
