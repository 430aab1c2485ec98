"""The processes of one session: joining them, and the few things they say to each other.

`prepare` must run before torch is imported: it decides what DeepSpeed takes for the accelerator.
"""

from __future__ import annotations

import ctypes
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from itertools import count
from typing import Any, TypeVar

from empathy.train.placement import Device, Placement

T = TypeVar("T")
_agreements = count()
"""Of this process: the ranks of a group count in step."""
DISAGREED_S = 60.0
"""How long a rank that failed waits for the others to say what became of the same work."""


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MOST_KEPT = 32 * 2**20
"""Bytes; the most that glibc takes for a threshold."""


class GroupBroken(RuntimeError):
    """The ranks of a group no longer do the same: it must be started anew."""


def prepare(device: Device) -> None:
    """Set what the libraries read from the environment while they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # threads that spin while they wait cost a shared machine dearly
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # a decorator in DeepSpeed imports torch's compiler: 2 s
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        keep_freed_memory()
    if device == "cpu" or not _has_gpu():
        os.environ["DS_ACCELERATOR"] = "cpu"


def keep_freed_memory() -> None:
    """From now on glibc keeps what this process frees, up to blocks of MOST_KEPT, for what it takes next.

    Else it gives the memory of a training step back and takes it again for the next one, page by page: a quarter of
    the time of DPO of a small student. Does nothing where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, MOST_KEPT)


@contextmanager
def own_environment() -> Iterator[None]:
    """What a session and its libraries set in the environment does not outlive it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def attention_without_plans() -> Iterator[None]:
    """Attention by torch's own kernels, not cuDNN's. torch takes cuDNN's first on Hopper and on datacentre Blackwell,
    and those build a plan, in tenths of a second, for each shape that they meet; batches of dialogues seldom have the
    shape of an earlier one (pytorch/pytorch#155958, modelscope/FunASR#3704)."""
    import torch

    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _has_gpu() -> bool:
    return bool(glob("/dev/nvidia[0-9]*")) and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


@dataclass(frozen=True)
class Group:
    """This process among the others: `rank` of `world`, `local_rank` on this machine. `device` is "cpu" or "cuda:N"."""

    rank: int
    world: int
    local_rank: int
    device: str

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def first_here(self) -> bool:
        """The first of this machine."""
        return self.local_rank == 0

    def from_first(self, value: T) -> T:
        """What rank 0 passed, on every rank."""
        import torch.distributed as dist

        _check_joined()
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def from_all(self, value: T) -> list[T]:
        """What each rank passed, by rank, on every rank."""
        import torch.distributed as dist

        _check_joined()
        box: list[Any] = [None] * self.world
        dist.all_gather_object(box, value)
        return box

    def wait(self) -> None:
        """Until every rank is here."""
        import torch.distributed as dist

        _check_joined()
        dist.barrier()

    def agree(self, error: str | None, patience_s: float) -> str | None:
        """What went wrong on the first rank with an `error`, told to every rank; None when nothing did.

        Goes past the collectives, through the store that the ranks met by: a rank that failed would stand in another
        collective than the rest. Raises GroupBroken when the others do not come within `patience_s` (with an error of
        our own: within DISAGREED_S, since they may be waiting for us for ever): these processes cannot go on together.
        """
        import torch.distributed as dist

        _check_joined()
        store = dist.distributed_c10d._get_default_store()
        return agreed(store, f"empathy/agree/{next(_agreements)}", self.rank, self.world, error, patience_s)


def _check_joined() -> None:
    """Raises GroupBroken when this process has been taken out of the group: Ray does so, from another thread, to those
    that outlive a lost rank. torch would say it with a ValueError, like what is a stage's own fault."""
    import torch.distributed as dist

    if not dist.is_initialized():
        raise GroupBroken("the group of processes was ended: one of its ranks was lost")


def agreed(store: Any, key: str, rank: int, world: int, error: str | None, patience_s: float) -> str | None:
    """`Group.agree` through a torch.distributed store, under a key that is used once."""
    from datetime import timedelta

    keys = [f"{key}/{other}" for other in range(world)]
    store.set(keys[rank], error or "")
    try:
        store.wait(keys, timedelta(seconds=min(patience_s, DISAGREED_S) if error else patience_s))
    except RuntimeError as broken:  # torch's DistStoreError: time is up, or the store's process is gone
        raise GroupBroken(f"rank {rank}: {error or 'the other ranks did not come'}") from broken
    return next((said for k in keys if (said := store.get(k).decode())), None)


def join(placement: Placement) -> Group:
    """Join the group that the environment names, or be a group of one. Raises ValueError for device = "cuda" without
    a GPU.
    """
    prepare(placement.device)
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"torch\.distributed"
    )  # DeepSpeed's calls, not ours
    import torch
    import torch.distributed as dist

    cuda = placement.device != "cpu" and torch.cuda.is_available()
    if placement.device == "cuda" and not cuda:
        raise ValueError('device = "cuda": torch sees no GPU here; set device = "cpu" or install the CUDA build')
    if "RANK" not in os.environ:
        _be_alone()
    if not dist.is_initialized():
        _initialise("nccl" if cuda else "gloo", placement.timeout_s)
    local_rank = int(os.environ["LOCAL_RANK"])
    if not cuda:
        beside = placement.groups * int(os.environ["LOCAL_WORLD_SIZE"])
        torch.set_num_threads(placement.threads or max(1, cores() // beside))
    _deepspeed()
    return Group(dist.get_rank(), dist.get_world_size(), local_rank, f"cuda:{local_rank}" if cuda else "cpu")


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _be_alone() -> None:
    place = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": free_port()}
    os.environ.update({"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in place.items()})


def _initialise(backend: str, timeout_s: float) -> None:
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


def tell_accelerate() -> None:
    """Make accelerate see this group, under DeepSpeed. Left alone, it takes a CPU process under DeepSpeed for the
    only one.
    """
    import torch.distributed as dist
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    state = PartialState(backend=dist.get_backend())
    assert state.num_processes == dist.get_world_size(), state


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
    return port


def _deepspeed() -> None:
    """Start DeepSpeed's side of the group.

    On a CPU it would first compile a shared-memory operator with ninja and g++. That operator serves inference alone
    (`inference_all_reduce`), so it is declared absent: nothing is compiled, and no compiler is needed.
    """
    import deepspeed
    import torch.distributed as dist
    from deepspeed import ops

    if os.environ.get("DS_ACCELERATOR") == "cpu":
        vars(ops)["__compatible_ops__"] = {}
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist.get_backend(), verbose=False)
