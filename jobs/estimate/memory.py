"""Whether a student fits into the memory of a device: what is held for certain, and no more (no activations, gradients
or optimiser states)."""

from __future__ import annotations

from cluster.profile import Profile
from jobs.estimate.compute import WEIGHT_BYTES
from jobs.estimate.shapes import Shape


def weights_gib(shape: Shape, precision: str) -> float:
    """One copy of the base."""
    return shape.parameters * WEIGHT_BYTES[precision] / 2**30


def held_gib(weights: float, profile: Profile, gpus: int) -> float:
    """GiB that one GPU (of `gpus`), or with `gpus` = 0 this machine's main memory, holds at once for a base whose
    weights are so many GiB: an engine's copy and its KV cache, a training's copy (once, however many workers; on a GPU
    one for each group that shares it), and both together where the profile lets an engine come up beside a training."""
    engine, train = profile.engine, profile.train
    serving = training = 0.0
    if bool(engine.gpus) == bool(gpus):
        serving = (weights / max(1, engine.gpus) + engine.kv_cache_gib) * (1 if gpus else engine.replicas)
    if bool(train.gpus_per_worker) == bool(gpus):
        training = weights / (train.workers if gpus and train.zero_stage == 3 else 1)
    one_gpu = gpus == 1 and train.gpus_per_worker + engine.gpus <= 1
    beside = one_gpu if gpus else train.workers + engine.replicas <= profile.ray.cpus
    if gpus and train.gpus_per_worker:  # groups that share a GPU hold a copy each
        training *= max(1, min(train.groups, int((1 - beside * engine.gpus) / train.gpus_per_worker + 1e-9)))
    return serving + training if beside else max(serving, training)
