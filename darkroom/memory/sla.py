"""Sparse-linear attention (SLA, 2509.24006, after thu-ml/SLA): the most telling keys by softmax, all of them by a sum.

For a block of queries the keys' blocks are ranked by the product of their means. Over the best of them, a share of
`topk`, attention is computed as ever; to that comes linear attention over all keys, through a small projection that is
learned and begins with zeros. On a GPU the authors' package computes it; elsewhere the formula below does, which saves
nothing.

The projections are trained and belong to no model's file: theirs is `sla_attention.safetensors`, beside the adapter.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from darkroom.core.device import is_host
from darkroom.core.errors import ConfigError

if TYPE_CHECKING:
    from darkroom.options.config import Config

NAME, OPTION, SETTINGS = "sla", "attention_mechanism", "sla_config"
FILE, PACKAGE = "sla_attention.safetensors", "sparse_linear_attention"
FEATURES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(dim=-1),
    "elu": lambda x: F.elu(x) + 1,
    "relu": F.relu,
}
# keeps a sum from being zero that divides
EPS = 1e-5


class Settings(BaseModel):
    """What `sla_config` may say: the share of the keys' blocks, the blocks' sizes, and what is summed up."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    topk: float = Field(0.2, gt=0, le=1)
    blkq: int = Field(64, ge=1)
    blkk: int = Field(64, ge=1)
    feature_map: Literal["softmax", "elu", "relu"] = "softmax"
    # of the package alone: none of these maps has weights, so tied or not is the same
    tie_feature_map_qk: bool = True
    use_bf16: bool = True


def parse_settings(values: Mapping[str, object] | None) -> Settings:
    """The settings that `sla_config` gives. Raises ConfigError."""
    try:
        return Settings.model_validate(values or {})
    except ValidationError as cause:
        first = cause.errors()[0]
        problem = f"{first['loc'][0]}: {first['msg']}."
        change = f"It may hold: {', '.join(Settings.model_fields)}."
        raise ConfigError(SETTINGS, dict(values or {}), "", problem, change) from cause


def validate_sla(options: Config, device: torch.device) -> None:
    """Raises ConfigError for wrong settings, or where a GPU is without the package."""
    parse_settings(options.sla_config)
    if not is_host(device):
        _package()


def _package() -> ModuleType:
    try:
        return importlib.import_module(PACKAGE)
    except ImportError as cause:
        problem = f"Its kernel is in the package {PACKAGE}, which cannot be imported: {cause}."
        raise ConfigError(OPTION, NAME, "", problem, "Run pip install git+https://github.com/thu-ml/SLA.") from cause


class SparseLinear(nn.Module):
    """The attention of one layer: q, k, v (B, H, L, D) to the same shape."""

    file_name = FILE

    def __init__(self, width: int, settings: Settings, dtype: torch.dtype, device: torch.device):
        super().__init__()
        self.settings, self.enabled, self.calls = settings, True, 0
        self.proj_l = nn.Linear(width, width, dtype=dtype, device=device)
        nn.init.zeros_(self.proj_l.weight)
        nn.init.zeros_(self.proj_l.bias)
        self.compute = self._by_formula if device.type == "cpu" else self._by_package(width)

    @property
    def header(self) -> dict[str, str]:
        """What a file of such modules says of them."""
        return {SETTINGS: self.settings.model_dump_json()}

    def state_dict(  # type: ignore[override]
        self, *args: object, destination: dict[str, object] | None = None, **kwargs: object
    ) -> dict[str, object]:
        """Nothing: the model's own files stay as they are."""
        return {} if destination is None else destination

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        """Attention of as many queries as keys."""
        self.calls += 1
        if scale is not None:
            q = q * (scale * math.sqrt(q.shape[-1]))
        if k.shape[1] != q.shape[1]:
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        return self.compute(q, k, v)

    def _by_formula(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        s = self.settings
        mask = select_blocks(q, k, s).repeat_interleave(s.blkq, -2).repeat_interleave(s.blkk, -1)
        sparse = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[..., : q.shape[2], : k.shape[2]])
        return sparse + self.proj_l(linear_attention(q, k, v, s.feature_map).to(self.proj_l.weight.dtype)).to(q.dtype)

    def _by_package(self, width: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        s = self.settings
        kernel = _package().SparseLinearAttention(
            width, s.topk, s.feature_map, s.blkq, s.blkk, use_bf16=s.use_bf16, tie_feature_map_qk=s.tie_feature_map_qk
        )
        kernel.proj_l = self.proj_l

        def compute(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            # the package rounds the number of blocks down, also to none
            kernel.topk = max(s.topk, 1.001 * s.blkk / k.shape[2])
            return kernel(q, k, v)

        return compute


def select_blocks(q: Tensor, k: Tensor, settings: Settings) -> Tensor:
    """Which blocks of keys each block of queries looks at: bool (B, H, L / blkq, L / blkk), rounded up."""
    with torch.no_grad():
        k = k - k.mean(dim=-2, keepdim=True)
        queries, keys = _means(q, settings.blkq), _means(k, settings.blkk)
        scores = queries @ keys.transpose(-1, -2)
        best = scores.topk(max(1, int(settings.topk * scores.shape[-1])), dim=-1).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, value=True)


def _means(x: Tensor, block: int) -> Tensor:
    return torch.stack([rows.mean(dim=-2) for rows in x.split(block, dim=-2)], dim=-2)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, feature_map: str) -> Tensor:
    """Attention without a softmax: the products of features weigh the values. All (B, H, L, D)."""
    q, k = FEATURES[feature_map](q), FEATURES[feature_map](k)
    weights = (q * k.sum(dim=-2, keepdim=True)).sum(dim=-1, keepdim=True)
    return (q @ (k.transpose(-1, -2) @ v)) / (weights + EPS)


# -- in a model --------------------------------------------------------------------------------------------------------


class _ReplaceAttention(TorchFunctionMode):
    """Inside, torch's attention is answered by a layer's own."""

    def __init__(self, layer: SparseLinear, name: str):
        super().__init__()
        self.layer, self.name = layer, name

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or not self.layer.enabled:
            return func(*args, **kwargs)
        answer: Callable[..., Tensor] = self._answer
        return answer(*args, **kwargs)

    def _answer(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        if query.shape[-2] != key.shape[-2]:
            raise _config_error(f"{self.name} looks at something else than itself.")
        if is_causal or (attn_mask is not None and not (attn_mask.dtype == torch.bool and attn_mask.all())):
            raise _config_error(f"{self.name} leaves tokens out, which sparse-linear attention cannot.")
        return self.layer(query, key, value, scale)


def add_sparse_linear(model: nn.Module, settings: Settings, dtype: torch.dtype, device: torch.device) -> None:
    """Give each attention of a denoiser that looks at itself a sparse-linear one, to be trained.

    Raises ConfigError where there is none, and at the model's first answer where one cannot be.
    """
    layers = {}
    for name, attention in model.named_modules():
        if hasattr(attention, "processor") and hasattr(attention, "inner_dim") and not _is_cross_attention(attention):
            layer = SparseLinear(attention.inner_dim // attention.heads, settings, dtype, device)
            layers[name] = layer
            attention.forward = _replace_forward(layer, attention.forward, name)
    for name, layer in layers.items():
        model.get_submodule(name).add_module(NAME, layer)
    if not layers:
        raise _config_error(f"{type(model).__name__} has no attention of diffusers' kind that looks at itself.")

    def after(*_: object) -> None:
        handle.remove()
        if idle := [name for name, layer in layers.items() if not layer.calls]:
            raise _config_error(f"{idle[0]} has an attention of its own, and never asks torch for one.")

    handle = model.register_forward_hook(after)


def _is_cross_attention(attention: nn.Module) -> bool:
    width = getattr(attention, "query_dim", None)
    return bool(
        getattr(attention, "is_cross_attention", False)
        or getattr(attention, "cross_attention_dim", None) not in (None, width)
    )


def _replace_forward(layer: SparseLinear, plain: Callable[..., object], name: str) -> Callable[..., object]:
    @functools.wraps(plain)
    def forward(*args: object, **kwargs: object) -> object:
        with _ReplaceAttention(layer, name):
            return plain(*args, **kwargs)

    return forward


def restore(model: nn.Module, file: Path, component: str) -> None:
    """Give a pipeline's denoiser the attention that a run left in a file. Raises what the reader does, and KeyError."""
    with safe_open(file, "pt") as content:
        settings = parse_settings(json.loads(content.metadata()[SETTINGS]))
        tensors = {name: content.get_tensor(name) for name in list(content.keys())}
    add_sparse_linear(model, settings, next(iter(tensors.values())).dtype, next(model.parameters()).device)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, SparseLinear):
                for parameter_name, parameter in module.named_parameters():
                    parameter.copy_(tensors[f"{component}.{name}.{parameter_name}"])


def _config_error(problem: str) -> ConfigError:
    change = "Choose another attention_mechanism; where captions differ in length, train_batch_size 1 may do."
    return ConfigError(OPTION, NAME, "", problem, change)
