"""LoRA's linear layers in as few operations as they need.

PEFT composes y = x W^T + s (x A^T) B^T of modules, and torch differentiates each by itself: some fifteen kernels a
layer and pass, most of them on small tensors, so that a GPU waits for the host that launches them. Here a layer is one
node of the graph, of three matrix products in the forward pass and five in the backward pass.

What else a layer may be asked (several adapters, none, a merged one, dropout, variants such as DoRA, mixed dtypes) is
left to PEFT; it is looked at anew in each call.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

_shaped = torch.ops.aten._unsafe_view.default
"""What a function makes and returns may be changed in place (`hidden += ...`), but no view of what it makes."""


class _Adapted(torch.autograd.Function):
    """As `_adapted`, with gradients for x, A and B; W and bias are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Any, W_OD: Any, bias_O: Any, A_RD: Any, B_OR: Any, scale: float) -> Any:
        y, x_ND, xa_NR = _adapted(x, W_OD, bias_O, A_RD, B_OR, scale)
        ctx.save_for_backward(x_ND, xa_NR, W_OD, A_RD, B_OR)
        ctx.scale, ctx.shape = scale, x.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Any) -> Any:
        x_ND, xa_NR, W_OD, A_RD, B_OR = ctx.saved_tensors
        for_x, _, _, for_A, for_B, _ = ctx.needs_input_grad
        dy_NO, dx, dA_RD, dB_OR = dy.flatten(0, -2), None, None, None
        if for_B:
            dB_OR = torch.addmm(B_OR, dy_NO.t(), xa_NR, beta=0, alpha=ctx.scale)
        if for_A or for_x:
            dxa_NR = torch.addmm(xa_NR, dy_NO, B_OR, beta=0, alpha=ctx.scale)
            if for_A:
                dA_RD = dxa_NR.t().mm(x_ND)
            if for_x:
                dx = dy_NO.mm(W_OD).addmm_(dxa_NR, A_RD).view(ctx.shape)
        return dx, None, None, dA_RD, dB_OR, None


def _adapted(x: Any, W_OD: Any, bias_O: Any, A_RD: Any, B_OR: Any, scale: float) -> tuple[Any, Any, Any]:
    """x W^T + bias + scale (x A^T) B^T, (..., O), of x (..., D); and x and x A^T, (N, D) and (N, R). All are of one
    dtype."""
    x_ND = x.flatten(0, -2)
    y_NO, xa_NR = linear(x_ND, W_OD, bias_O), linear(x_ND, A_RD)
    y_NO.addmm_(xa_NR, B_OR.t(), alpha=scale)
    return _shaped(y_NO, (*x.shape[:-1], y_NO.shape[-1])), x_ND, xa_NR


class OneNodeLinear(Linear):
    """PEFT's layer, with the plain case reckoned by `_adapted`. A layer becomes one by its class alone (`install`), so
    what it holds, and what is saved of it, is PEFT's. Its name says Linear because PEFT goes by names."""

    def forward(self, x: Any, *args: Any, **rest: Any) -> Any:
        """x: (..., D) -> (..., O)."""
        parts = None if args or rest else self._plain_parts(x)
        if parts is None:
            return super().forward(x, *args, **rest)
        return _Adapted.apply(x, *parts) if torch.is_grad_enabled() else _adapted(x, *parts)[0]

    def _plain_parts(self, x: Any) -> tuple[Any, ...] | None:
        """W, bias, A, B, scale; None where there is more to it. Each call of each layer asks: members are looked up
        without `Module.__getattr__`, which costs as much as a product of matrices."""
        active = self.active_adapters
        if self._disable_adapters or self.merged_adapters or len(active) != 1:
            return None
        name, members = active[0], self._modules
        base, down = members["base_layer"], members["lora_A"]._modules.get(name)
        if down is None or name in self.lora_variant:
            return None
        up, drops = members["lora_B"]._modules[name], members["lora_dropout"]._modules[name]
        if drops.training and type(drops) is not torch.nn.Identity and drops.p:
            return None
        for module in (base, down, up):
            if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
                return None
        W_OD, bias_O = base._parameters["weight"], base._parameters["bias"]
        A_RD, B_OR = down._parameters["weight"], up._parameters["weight"]
        if W_OD.requires_grad or (bias_O is not None and bias_O.requires_grad) or up._parameters["bias"] is not None:
            return None
        if x.dim() < 2 or not x.dtype == W_OD.dtype == A_RD.dtype == B_OR.dtype:
            return None
        if torch.is_autocast_enabled(x.device.type):
            return None
        return W_OD, bias_O, A_RD, B_OR, self.scaling[name]


def install(model: Any) -> None:
    """Let the LoRA layers of a model, if it has any, go this way from now on. Not for ZeRO-3: it brings weights when
    the module that they belong to is called, and the adapters' modules are not."""
    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is torch.nn.Linear and not module.fan_in_fan_out:
            module.__class__ = OneNodeLinear
