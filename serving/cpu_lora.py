"""Adapters on a CPU, one matrix product for each adapter in a batch.

vLLM's kernels for CPUs copy an adapter's matrices once for every token that goes through them, and multiply token by
token: of a small student's time that was more than half. Here the rows of one adapter are multiplied together. What
comes out differs by rounding alone. Rows of no adapter (index -1) stay as they are; vLLM's kernels give them whichever
adapter has the last slot.

An engine imports this module in its worker, before it loads the model: see `vllm_engine.device_options`.
"""

from __future__ import annotations

from typing import Any

from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform


class GroupedLora(PunicaWrapperCPU):  # type: ignore[misc]  # vllm has no types of its own
    """`add_lora_linear` by adapter; what else vLLM asks for is left to its kernels."""

    def update_metadata(self, *mapping: Any, **rest: Any) -> None:
        """Before each forward pass: which rows are whose."""
        super().update_metadata(*mapping, **rest)
        self._groups = groups(self.token_lora_indices)

    def add_lora_linear(
        self,
        y: Any,
        x: Any,
        lora_a_stacked: tuple[Any, ...],
        lora_b_stacked: tuple[Any, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **rest: Any,
    ) -> None:
        """y[:, slice] += scale * x A^T B^T for each slice of y, a layer's fused projections, and each adapter.

        y: (rows, sum of output_slices), changed in place; x: (rows, in); of each slice A: (slots, 1, rank, in) and
        B: (slots, 1, out, rank).
        """
        x, y = x.view(-1, x.shape[-1]).to(lora_a_stacked[0].dtype), y.view(-1, y.shape[-1])
        assert len(x) == len(self.token_lora_indices), "a layer that sees other rows than the batch's"
        for slot, rows in self._groups:
            given, begin = x[rows], 0
            for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                added = (given @ a[slot, 0].T) @ b[slot, 0].T
                y[rows, begin : begin + size] += added if scale == 1 else scale * added
                begin += size


def groups(slots: Any) -> list[tuple[int, Any]]:
    """Each adapter's slot with its rows: a slice where they lie together, else their numbers. `slots`: (rows,), -1 is
    no adapter."""
    import torch

    found = list[tuple[int, Any]]()
    for slot in torch.unique(slots).tolist():
        rows = torch.nonzero(slots == slot).flatten()
        first, last = int(rows[0]), int(rows[-1])
        if slot >= 0:
            found.append((slot, slice(first, last + 1) if last - first + 1 == len(rows) else rows))
    return found


class CpuLora:
    """Mixed into vLLM's worker as its `worker_extension_cls`; it adds nothing there."""


# The platform names the kernels, and there is no option for them.
setattr(type(current_platform), "get_punica_wrapper", classmethod(lambda cls: f"{__name__}.GroupedLora"))  # noqa: B010
