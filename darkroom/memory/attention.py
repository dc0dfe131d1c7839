"""Which kernel computes attention: by diffusers' dispatcher or, for older networks, as torch is told to choose."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from darkroom.core.device import is_host
from darkroom.core.errors import ConfigError
from darkroom.memory import sla

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from darkroom.options.config import Config

OPTION = "attention_mechanism"
DEFAULT_KERNEL = "diffusers"
# the option's names, and diffusers'
BACKENDS: Mapping[str, str] = {
    "xformers": "xformers",
    "flash-attn": "flash",
    "flash-attn-2": "flash",
    "flash-attn-3": "_flash_3",
    "flash-attn-3-varlen": "_flash_varlen_3",
    "flex": "flex",
    "cudnn": "_native_cudnn",
    "native-efficient": "_native_efficient",
    "native-flash": "_native_flash",
    "native-math": "_native_math",
    "native-npu": "_native_npu",
    "native-xla": "_native_xla",
    "sageattention": "sage",
    "sageattention-int8-fp16-triton": "_sage_qk_int8_pv_fp16_triton",
    "sageattention-int8-fp16-cuda": "_sage_qk_int8_pv_fp16_cuda",
    "sageattention-int8-fp8-cuda": "_sage_qk_int8_pv_fp8_cuda",
}
# those that torch itself brings, by which it can be told to choose
NATIVE: Mapping[str, SDPBackend] = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "native-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "native-flash": SDPBackend.FLASH_ATTENTION,
    "native-math": SDPBackend.MATH,
}
FLEX = "flex"
CPU_KERNELS = frozenset({DEFAULT_KERNEL, "native-flash", "native-math", sla.NAME, FLEX})


def is_sage(name: str) -> bool:
    """SageAttention rounds queries and keys to eight bits, which has no backward pass of its own."""
    return name.startswith("sageattention")


def validate_attention_options(options: Config, device: torch.device) -> None:
    """Raises ConfigError for a kernel that this machine lacks."""
    name = options.attention_mechanism
    if name not in CPU_KERNELS and is_host(device):
        problem = "Its kernel needs an accelerator, and there is none here."
        raise ConfigError(OPTION, name, "", problem, f"Choose one of: {', '.join(sorted(CPU_KERNELS))}.")
    if name == sla.NAME:
        sla.validate_sla(options, device)
    if name not in BACKENDS:
        return
    from diffusers.models.attention_dispatch import AttentionBackendName, _check_attention_backend_requirements

    try:
        _check_attention_backend_requirements(AttentionBackendName(BACKENDS[name]))
    except (RuntimeError, ImportError, ValueError) as cause:
        first = str(cause).splitlines()[0]
        raise ConfigError(OPTION, name, "", first, "Install the package, or choose another kernel.") from cause


def kernel_for_device(device: torch.device, name: str) -> str:
    """The kernel that computes on a device: flex attention has no backward pass on a CPU."""
    return DEFAULT_KERNEL if name == FLEX and is_host(device) else name


def validate_kernel(model: nn.Module, name: str) -> None:
    """Raises ConfigError for a kernel that this model has no way to choose."""
    if name in (DEFAULT_KERNEL, "xformers") or _is_dispatched(model) or (name in NATIVE and _find_attentions(model)):
        return
    problem = f"{type(model).__name__} does not let its attention kernel be chosen in diffusers."
    usable = ", ".join([DEFAULT_KERNEL, *(NATIVE if _find_attentions(model) else ()), "xformers"])
    raise ConfigError(OPTION, name, "", problem, f"Choose one of: {usable}.")


def set_kernel(model: nn.Module, name: str) -> None:
    """Let every attention of a denoiser be computed by a kernel. Raises ConfigError where it has no choice of them."""
    validate_kernel(model, name)
    if name == DEFAULT_KERNEL:
        return
    if _is_dispatched(model):
        _set_backend(model, BACKENDS[name])
    elif name == "xformers":
        model.enable_xformers_memory_efficient_attention()  # type: ignore[operator]
    else:
        # each by itself: gradient checkpointing computes parts of the model again, outside the model's own forward
        for attention in _find_attentions(model):
            attention.forward = _with_sdpa_backend(attention.forward, NATIVE[name])


def _find_attentions(model: nn.Module) -> list[nn.Module]:
    """The attentions of diffusers' kind."""
    return [module for module in model.modules() if hasattr(module, "processor")]


def _is_dispatched(model: nn.Module) -> bool:
    """Does diffusers' dispatcher choose the kernel of this model's attentions?"""
    return any(hasattr(attention.processor, "_attention_backend") for attention in _find_attentions(model))


def _set_backend(model: ModelMixin, backend: str) -> None:
    """Choose a model's kernel, and leave the one that diffusers takes for every other model as it was."""
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    usual, _ = _AttentionBackendRegistry.get_active_backend()
    model.set_attention_backend(backend)
    _AttentionBackendRegistry.set_active_backend(usual)


def set_kernel_for_usage(model: nn.Module, name: str, usage: str) -> None:
    """The same in training only, in validation only, or in both (`sageattention_usage`)."""
    if usage == "training+inference":
        return set_kernel(model, name)
    in_training, current = usage == "training", ""

    def before(module: nn.Module, args: object) -> None:
        nonlocal current
        kernel = name if module.training == in_training else DEFAULT_KERNEL
        if kernel == current:
            return
        if kernel == name:
            set_kernel(module, name)
        else:
            _set_backend(module, "native")
        current = kernel

    model.register_forward_pre_hook(before)


def _with_sdpa_backend(forward: Callable[..., object], backend: SDPBackend) -> Callable[..., object]:
    """The same `forward`, in which torch has one kernel to choose from."""

    @functools.wraps(forward)
    def inside(*args: object, **kwargs: object) -> object:
        with sdpa_kernel(backend):
            return forward(*args, **kwargs)

    return inside
