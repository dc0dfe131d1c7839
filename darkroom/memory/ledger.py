"""What memory a computation would take, found by computing with shapes alone.

Inside a `Ledger` torch's big tensors are fake (they have a shape, a type and a device, and no numbers), so a model of
any size runs in no memory to speak of, forwards and backwards, on the device that is meant. Small tensors, such as
masks and positions, stay real: models ask for their values. The ledger knows which storages live at each moment.
"""

from __future__ import annotations

import functools
import gc
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# elements of what is computed for real
SMALL = 1 << 14
# storages are looked over for those that have gone after so many new ones
SWEEP = 64
# what a peak may be short of, for fewer looks
CLOSE = 1.002
_VALUE = torch.ops.aten._local_scalar_dense.default
_INDEXING = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
)
# what fake tensors raise where values decide, and how other code complains of them
WANT_NUMBERS = (
    NotImplementedError,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.DataDependentOutputException,
    fake_tensor.UnsupportedOperatorException,
    fake_tensor.FakeTensorDeviceMismatchError,
)
OF_FAKES = ("FakeTensor", "fake tensor", "meta tensor", "data pointer", "data-dependent", "invalid python storage")


class Ledger(TorchDispatchMode):
    """Counts the bytes of living fake tensors, by kind of device: `now`, and at their highest `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.living: dict[int, tuple[StorageWeakRef, str, int]] = {}
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()

    def __enter__(self) -> Ledger:
        self.fake.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *cause: Any) -> None:
        super().__exit__(*cause)
        self.fake.__exit__(*cause)

    def empty(self, like: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """A fake tensor of another's shape."""
        with self.fake:
            made = torch.empty(like.shape, dtype=dtype or like.dtype, device=device)
        self._enter(made)
        return made

    def count(self, tensor: Tensor) -> Tensor:
        """Count a tensor that has numbers."""
        self._enter(tensor)
        return tensor

    def hollow(self, model: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> nn.Module:
        """Make a model's weights fake, in place; floating ones in `dtype`, but for those that the model keeps wide."""
        wide = getattr(model, "_keep_in_fp32_modules", None) or ()
        for path, module in model.named_modules():
            # torch's own way would exchange the numbers inside each weight, and there are none
            module._apply = functools.partial(self._converted, module)
            for name, weight in module._parameters.items():
                if weight is None or isinstance(weight, FakeTensor):
                    continue
                keeps = any(part in f"{path}.{name}".split(".") for part in wide)
                kind = torch.float32 if keeps else dtype if weight.is_floating_point() else None
                fake = self.empty(weight, device, kind)
                module._parameters[name] = nn.Parameter(fake, weight.requires_grad)
        return model

    def _converted(self, module: nn.Module, change: Any, recurse: bool = True) -> nn.Module:
        """What `Module.to` and its like do, for weights that are fake."""
        for child in module.children() if recurse else ():
            child._apply(change)
        for name, weight in module._parameters.items():
            if weight is None:
                continue
            made = change(weight.detach())
            if (made.dtype, made.device) != (weight.dtype, weight.device):
                self._enter(made)
                module._parameters[name] = nn.Parameter(made, weight.requires_grad)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else change(buffer)
        return module

    def move(self, tensor: Tensor, kind: str) -> None:
        """Count a tensor's storage as one that is elsewhere, such as "cpu" or "disk"."""
        key = tensor.untyped_storage()._cdata
        if key in self.living:
            storage, was, size = self.living[key]
            self.living[key] = storage, kind, size
            self.now[was] -= size
            self.now[kind] += size

    def mark(self) -> Counter[str]:
        """Begin to look for a new peak. Returns the bytes that live now."""
        gc.collect()
        self._sweep()
        self.peak = self.now.copy()
        return self.now.copy()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in pytree.arg_tree_leaves(*args, **kwargs) if isinstance(t, Tensor)]
        if given and not any(isinstance(t, FakeTensor) for t in given):
            return self._really(func, args, kwargs)
        if func is _VALUE and given[0].dtype == torch.bool:
            return False  # whether something is so throughout, or anywhere not a number, only numbers tell
        if func in _INDEXING:
            args = (args[0], self._places(args[1]), *args[2:])
        # chance has no values here
        faked = func(*args, **{**kwargs, **({"generator": None} if "generator" in kwargs else {})})
        made = [t for t in pytree.tree_leaves(faked) if isinstance(t, FakeTensor)]
        if not given and made and all(t.numel() <= SMALL for t in made):
            return self._really(func, args, kwargs)
        for tensor in made:
            self._enter(tensor)
        return faked

    def _places(self, indices: Any) -> Any:
        """Masks with numbers, as the places that they name: how many those are is known."""
        found: list[Any] = []
        for index in indices:
            if index is None or isinstance(index, FakeTensor) or index.dtype not in (torch.bool, torch.uint8):
                found.append(index)
            else:
                found.extend(self._really(torch.nonzero, (index,), {}).unbind(1))
        return found

    def _really(self, func: Any, args: Any, kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return func(*args, **kwargs)

    def _enter(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.living and not self.living[key][0].expired():
            return
        if len(self.living) % SWEEP == 0 or key in self.living:
            self._sweep()
        kind, size = tensor.device.type, storage.nbytes()
        self.living[key] = StorageWeakRef(storage), kind, size
        self.now[kind] += size
        if self.now[kind] > self.peak[kind] * CLOSE:
            self._sweep()
            self.peak[kind] = max(self.peak[kind], self.now[kind])

    def _sweep(self) -> None:
        for key in [key for key, (storage, _, _) in self.living.items() if storage.expired()]:
            _, kind, size = self.living.pop(key)
            self.now[kind] -= size


def wants_numbers(cause: Exception) -> bool:
    """Did code fail only because it had shapes without numbers, and not for what would stop it with numbers too?"""
    return isinstance(cause, WANT_NUMBERS) or any(word in str(cause) for word in OF_FAKES)
