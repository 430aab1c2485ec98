"""Where and how fast an experiment runs. Nothing here can enter a key.

A profile is a TOML file; without one the defaults fit a laptop. Secrets are named (`key_env`), never written.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from empathy import documents
from empathy.store import Store
from empathy.words import instead
from serving.prices import EMBEDDED as EMBEDDED
from serving.prices import Price, Prices

SHIPPED = Path(__file__).parent.parent / "infra" / "profiles"
"""Profiles that go by name."""
MOST_PROCESSES = 100_000
"""Workers, replicas, or what they take of a cluster: more is a slip of the hand, and Ray would wait for it."""
MOST_AT_ONCE = 1_000_000
"""Rows or calls under way, or tries."""
MOST_GIB = 1_000_000.0
MOST_S = 1e9
"""32 years: as good as never."""


class Section(BaseModel):
    """A table of the profile."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class S3(Section):
    """An S3-compatible server; credentials come from the usual AWS environment or profile."""

    endpoint: str | None = None
    region: str | None = None


class RayCluster(Section):
    """Which Ray. `address` "local" starts one for the run; RAY_ADDRESS (set inside a submitted job) wins.

    `cpus` are logical CPUs of a local Ray: its workers wait on each other, so more than the machine has is right.
    """

    address: str = "local"
    cpus: int = Field(8, ge=1, le=MOST_PROCESSES)
    python: str = "python"
    """The interpreter on the cluster that has the packages; what a submitted job is started with."""
    object_store_gib: float = Field(0.5, gt=0, le=MOST_GIB)


class Asking(Section):
    """Teacher and judge calls: `workers` processes of `in_flight` calls each. `workers = 0` asks from the driver,
    without Ray."""

    workers: int = Field(1, ge=0, le=MOST_PROCESSES)
    in_flight: int = Field(32, ge=1, le=MOST_AT_ONCE)


class Assembling(Section):
    """Sets of examples: above `ray_above_rows` dialogues Ray shards them over `workers` processes, below one process is
    done sooner."""

    ray_above_rows: int = Field(5_000_000, ge=0, lt=2**63)
    workers: int = Field(2, ge=1, le=MOST_PROCESSES)


class Training(Section):
    """Groups of training workers. `workers` train one stage together; `groups` of them, each with the base resident,
    train stages of a grid side by side, as many as there is room for."""

    workers: int = Field(2, ge=1, le=MOST_PROCESSES)
    groups: int = Field(1, ge=1, le=MOST_PROCESSES)
    gpus_per_worker: float = Field(0, ge=0, le=1)
    """A worker computes on one GPU. A share of it (0.5) leaves room for an engine with the rest on the same GPU."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    micro_batch: int = Field(8, ge=1, le=MOST_AT_ONCE)
    gradient_checkpointing: bool = False
    share_prefixes: bool | None = None
    save_every_s: float = Field(300, gt=0, le=MOST_S)
    max_failures: int = Field(3, ge=0, le=MOST_AT_ONCE)

    @model_validator(mode="after")
    def _a_gpu_each(self) -> Training:
        if 0 < self.gpus_per_worker < 1 and self.workers > 1:
            raise ValueError(
                f"gpus_per_worker = {self.gpus_per_worker:g} with workers = {self.workers}: two workers cannot "
                "train one student on one GPU (NCCL); set workers = 1 (with groups = 2, two students), or "
                "gpus_per_worker = 1"
            )
        return self

    @property
    def shares_prefixes(self) -> bool:
        """`share_prefixes`; where the profile leaves it open, on CPUs alone: on the GPU where it was measured, steps
        took longer with it (docs/gpus.md)."""
        return not self.gpus_per_worker if self.share_prefixes is None else self.share_prefixes


class Engine(Section):
    """vLLM under Ray Serve."""

    replicas: int = Field(1, ge=1, le=MOST_PROCESSES)
    gpus: float = Field(0, ge=0, le=MOST_PROCESSES)
    max_num_seqs: int = Field(64, ge=1, le=MOST_AT_ONCE)
    kv_cache_gib: float = Field(1, gt=0, le=MOST_GIB)
    max_model_len: int = Field(1024, ge=64, le=10_000_000)

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError("a share of one GPU (0.5: two engines on it), or a whole number of them")
        return gpus


class Gpu(Section):
    """What plans assume of an accelerator: its dense peak in the training precision, the share of it that training
    reaches (model FLOPs utilisation), and its memory bandwidth. The defaults are an H100 SXM in bf16; what SFT of a 1B
    model reached there in steps of 16 short examples is `mfu` (docs/gpus.md): larger models and steps reach more."""

    tflops: float = Field(989, gt=0, le=1e9)
    mfu: float = Field(0.1, gt=0, le=1)
    gb_per_s: float = Field(3350, gt=0, le=1e9)


class RateLimit(Section):
    """What a provider allows for one model. Without a number it is found by trying (serving/pace.py)."""

    requests_per_minute: float | None = Field(None, gt=0)
    tokens_per_minute: float | None = Field(None, gt=0)


class ProviderPlace(RateLimit):
    """How to reach a provider that experiments name, and what it allows for each model (`limits` for single ones)."""

    base_url: str | None = None
    key_env: str | None = None
    """The environment variable that holds the API key (its name, never the key); None for servers that want none."""
    engine: str | None = None
    """Instead of base_url: a Hugging Face folder or name that the run serves itself (vLLM), as the model asked for."""
    in_flight: int | None = Field(None, ge=1, le=MOST_AT_ONCE)
    timeout_s: float = Field(120, gt=0, le=MOST_S)
    attempts: int = Field(6, ge=1, le=MOST_AT_ONCE)
    """How often one request is sent in vain before it is asked whether the provider is away or this row is at fault."""
    patience_s: float = Field(600, gt=0, le=MOST_S)
    """How long a provider that is away, or turns everything away, is waited for."""
    served: tuple[str, ...] = ()
    """Models whose replies are accepted besides those of the model asked for (its dated versions always are); "*" is
    any."""
    limits: dict[str, RateLimit] = {}
    batch: bool = False
    """Ask through the provider's batch API: about half the price, an answer within a day."""
    batch_poll_s: float = Field(60, gt=0, le=MOST_S)
    batch_requests: int = Field(50_000, ge=1, le=50_000)
    batches_at_once: int = Field(8, ge=1, le=MOST_AT_ONCE)
    batch_price: float = Field(0.5, gt=0, le=1)
    """What a token costs in a batch, of its price at once."""

    @field_validator("key_env")
    @classmethod
    def _a_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise ValueError(
                "give the name of the environment variable that holds the key (capitals, digits and _), never the key"
            )
        return name

    @model_validator(mode="after")
    def _one_of(self) -> ProviderPlace:
        if self.batch and self.engine:
            raise ValueError("batch = true is for servers with a batch API; an engine of our own has none")
        if (self.base_url is None) == (self.engine is None):
            raise ValueError(
                "give either base_url (a server that is there) or engine (a model to serve), not both or neither"
            )
        if self.base_url is not None:
            _check_url(self.base_url)
        return self


def _check_url(url: str) -> None:
    """Raises ValueError for what no request can be sent to, and for a password in it: reports and logs show the URL."""
    try:
        parts = urlsplit(url)
        there = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no port
        there = False
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise ValueError("base_url: put no user or password into it; name an environment variable with key_env")
    if not there:
        raise ValueError(f"base_url = {url!r}: no server's address; give one like https://HOST:PORT/v1")


KNOWN_PROVIDERS = {
    "openai": ProviderPlace(base_url="https://api.openai.com/v1", key_env="OPENAI_API_KEY"),
    "openrouter": ProviderPlace(base_url="https://openrouter.ai/api/v1", key_env="OPENROUTER_API_KEY"),
    "together": ProviderPlace(base_url="https://api.together.xyz/v1", key_env="TOGETHER_API_KEY"),
    "google": ProviderPlace(
        base_url="https://generativelanguage.googleapis.com/v1beta/openai", key_env="GEMINI_API_KEY"
    ),
}


def _placed(name: str, table: Any) -> Any:
    """With the address and key of the provider that has this name, where the table gives no place of its own."""
    known = KNOWN_PROVIDERS.get(name)
    if known is None or not isinstance(table, dict) or "base_url" in table or "engine" in table:
        return table
    return {"base_url": known.base_url, "key_env": known.key_env} | table


class Profile(Section):
    """The whole file."""

    store: str = "build/store"
    reports: str = "build/reports"
    """The folder that report.html is written under, by experiment name."""
    cache: str = "~/.cache/empathy"
    """Where weights are kept on each machine once fetched from the store."""
    s3: S3 = S3()
    ray: RayCluster = RayCluster()
    ask: Asking = Asking()
    assemble: Assembling = Assembling()
    train: Training = Training()
    engine: Engine = Engine()
    providers: dict[str, ProviderPlace] = {}
    gpu: Gpu = Gpu()
    prices: dict[str, Price] = {}
    """By model, or by "PROVIDER/MODEL"; they win over the list that ships (serving/prices.toml)."""

    @field_validator("providers", mode="before")
    @classmethod
    def _known_ones_are_where_they_are(cls, tables: Any) -> Any:
        """A table that sets a limit of `openai`, say, need not repeat its address and the name of its key."""
        return {name: _placed(name, table) for name, table in tables.items()} if isinstance(tables, dict) else tables

    @model_validator(mode="after")
    def _names_are_free(self) -> Profile:
        if EMBEDDED in self.providers:
            raise ValueError(f"providers.{EMBEDDED}: is the name of the provider that every run brings; take another")
        return self

    @property
    def price_list(self) -> Prices:
        """What each model costs here: the profile's prices, else the list's; nothing for our own engines."""
        own = {name for name, place in self.providers.items() if place.engine}
        return Prices(self.prices, frozenset({EMBEDDED} | own))

    @property
    def store_options(self) -> dict[str, Any]:
        """What `Store.open` takes besides the URL."""
        return {"endpoint": self.s3.endpoint, "region": self.s3.region} if self.store.startswith("s3://") else {}

    def check_writable(self, field: Literal["reports", "cache"]) -> None:
        """Raises ValueError when the folder that `field` names could not be made or written; makes nothing."""
        place = Path(getattr(self, field)).expanduser().absolute()
        there = next(p for p in (place, *place.parents) if p.exists())
        if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
            raise ValueError(
                f"{field} = {str(place)!r}: {there} is no folder that you may write to; name another in the profile"
            )

    def open_store(self) -> Store:
        """The store, not yet probed."""
        return Store.open(self.store, **self.store_options)

    def provider(self, name: str) -> ProviderPlace:
        """Raises ValueError for a name that neither the profile nor the package knows."""
        places = KNOWN_PROVIDERS | self.providers
        if name not in places:
            raise ValueError(
                f"provider = {name!r}: unknown{instead(name, [EMBEDDED, *places])}; for another add a table "
                f"[providers.{name}] with base_url and key_env to the profile"
            )
        return places[name]


def load(path: str | None, store: str | None = None) -> Profile:
    """The profile at `path` (a file, or the name of one in infra/profiles), or the defaults; `store` overrides its
    store."""
    profile = Profile()
    if path is not None:
        shipped = {file.stem: file for file in SHIPPED.glob("*.toml")}
        if path not in shipped and not Path(path).is_file():
            raise ValueError(
                f"on = {path!r}: no such file, and no profile that ships; those are {', '.join(sorted(shipped))}"
            )
        profile = documents.load(Profile, shipped.get(path, Path(path)))
    chosen = profile.store if store is None else store
    if not chosen.strip() or not chosen.isprintable():
        raise ValueError(f"store = {chosen!r}: names nothing; give a folder or s3://bucket/prefix")
    if chosen.startswith("s3:") and not chosen.startswith("s3://"):
        raise ValueError(
            f"store = {chosen!r}: a bucket is written s3://bucket/prefix, a folder of that name ./{chosen}"
        )
    if "://" not in chosen:
        chosen = str(Path(chosen).expanduser().absolute())
    return profile.model_copy(update={"store": chosen})
