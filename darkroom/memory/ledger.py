"""What memory a computation would take, found by computing with shapes alone.

Inside a `Ledger` torch's big tensors are fake (they have a shape, a type and a device, and no numbers), so a model of
any size runs in no memory to speak of, forwards and backwards, on the device that is meant. Small tensors, such as
masks and positions, stay real: models ask for their values. The ledger knows which storages live at each moment.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import (
    FakeTensor,
    FakeTensorMode,
    in_kernel_invocation_manager,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from darkroom.core.device import ASSUMED, HOST

if TYPE_CHECKING:
    from torch._ops import OpOverload


# elements of what is computed for real
SMALL = 1 << 14
# the product of the sizes of what is computed with for real: more of it may be far more in the end, such as a mask
MAX_REAL_WORK = 1 << 30
# elements of an answer that is never computed for real, whatever it is made of
LARGE = 1 << 26
# kinds of places where bytes are
ON_HOST, ON_DEVICE, ON_DISK = "cpu", "device", "disk"
_DEVICE = torch.ops.prim.device.default
_REPEAT = torch.ops.aten.repeat.default
_MOVE = torch.ops.aten._to_copy.default
_VALUE = torch.ops.aten._local_scalar_dense.default
_INDEXING = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
)
# what fake tensors raise where values decide, and how other code complains of them
FAKE_ERRORS = (
    NotImplementedError,
    fake_tensor.UnsupportedFakeTensorException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.DataDependentOutputException,
    fake_tensor.UnsupportedOperatorException,
    fake_tensor.FakeTensorDeviceMismatchError,
)
FAKE_MESSAGES = ("FakeTensor", "fake tensor", "meta tensor", "data pointer", "data-dependent", "invalid python storage")


def build_fake_mode() -> FakeTensorMode:
    """What makes tensors fake; several ledgers share it if they are to know each other's."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # torch remembers what operators answer by weak references, and then refuses to move a parameter that is remembered
    mode.fake_tensor_converter.set_tensor_memo = lambda t, v: None  # type: ignore[method-assign]
    return mode


class _Answer(NamedTuple):
    """What a new tensor is like."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


Value = TypeVar("Value")
Arguments: TypeAlias = tuple[Any, ...]
"""Of an operator: what its schema says."""


class _Fills(TorchFunctionMode):
    """Leaves out that a number is put into places of a fake tensor: it changes no bytes, and a loop over the rows of a
    mask would be hundreds of thousands of operators."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Arguments = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func is Tensor.__setitem__ and _is_fill(*args):
            return None
        return func(*args, **(kwargs or {}))


class Ledger(TorchDispatchMode):
    """Counts the bytes of living fake tensors, by kind of place: `current`, and at their highest `peaks` by moment.

    What is on `ASSUMED` is on the device, all else on the host. Small tensors, which have numbers, are on neither: they
    are taken to be where what they meet is.
    """

    def __init__(self, fake: FakeTensorMode | None = None) -> None:
        super().__init__()
        self.fake = fake or build_fake_mode()
        self._fills = _Fills()
        # by its address in memory: what tells when a storage goes, the kind of device, bytes
        self.living: dict[int, tuple[weakref.ref[torch.UntypedStorage], str, int]] = {}
        self.current: Counter[str] = Counter()
        # where new tensors count, if not by their device
        self._location_override: str | None = None
        # what the present change of a module's weights has made of each of them: some have several names
        self._change: Callable[[Tensor], Tensor] | None = None
        self._converted_weights = WeakTensorKeyDictionary()
        # what operators answer, by what that hangs on: torch's own way to find it again takes longer
        self._answers: dict[Hashable, _Answer | tuple[_Answer | None, ...]] = {}
        self.peaks: dict[str, Counter[str]] = {}
        self._phase_counts: Counter[str] = Counter()
        self._peak: Counter[str] = Counter()
        self.begin_phase("start")

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would guard each operator against its compiler, which is not at work here

    @property
    def peak(self) -> Counter[str]:
        """The highest of all moments since the mark, by kind of device."""
        locations = {location for moment in self.peaks.values() for location in moment}
        return Counter({location: max(moment[location] for moment in self.peaks.values()) for location in locations})

    def __enter__(self) -> Ledger:
        self.fake.__enter__()
        super().__enter__()
        self._fills.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        cause: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self._fills.__exit__(kind, cause, trace)
        super().__exit__(kind, cause, trace)
        self.fake.__exit__(kind, cause, trace)

    def empty(self, like: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """A fake tensor of another's shape."""
        with self.fake:
            tensor = torch.empty(like.shape, dtype=dtype or like.dtype, device=device)
        self._track(tensor)
        return tensor

    def count(self, tensor: Tensor) -> Tensor:
        """Count a tensor that has numbers."""
        self._track(tensor)
        return tensor

    def make_fake(self, model: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> nn.Module:
        """Make a model's weights fake, in place; floating ones in `dtype`, but for those that the model keeps wide."""
        wide = _find_float32_modules(model, dtype)
        replaced: dict[int, nn.Parameter] = {}
        for path, module in model.named_modules():
            # torch's own way would exchange the numbers inside each weight, and there are none
            module._apply = functools.partial(self._convert, module)
            for name, weight in module._parameters.items():
                if weight is None or isinstance(weight, FakeTensor):
                    continue
                if id(weight) not in replaced:  # a weight may have several names
                    keeps = any(part in f"{path}.{name}".split(".") for part in wide)
                    weight_dtype = torch.float32 if keeps else dtype if weight.is_floating_point() else None
                    replaced[id(weight)] = nn.Parameter(self.empty(weight, device, weight_dtype), weight.requires_grad)
                module._parameters[name] = replaced[id(weight)]
        return model

    @contextlib.contextmanager
    def count_as(self, location: str) -> Iterator[None]:
        """Inside, new storages count as bytes of a kind of place, whatever their device."""
        before, self._location_override = self._location_override, location
        try:
            yield
        finally:
            self._location_override = before

    def _convert(self, module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """What `Module.to` and its like do, for weights that are fake."""
        for child in module.children() if recurse else ():
            child._apply(change)
        if self._change is not change:
            self._change, self._converted_weights = change, WeakTensorKeyDictionary()
        for name, weight in module._parameters.items():
            if weight is None:
                continue
            if weight in self._converted_weights:
                module._parameters[name] = self._converted_weights[weight]
                continue
            converted = _apply_to_storage(change, weight.detach())
            if (converted.dtype, converted.device) != (weight.dtype, weight.device):
                self._track(converted)
                self._converted_weights[weight] = module._parameters[name] = nn.Parameter(
                    converted, weight.requires_grad
                )
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else change(buffer)
        return module

    def move(self, tensor: Tensor, location: str) -> None:
        """Count a tensor's storage as one that is at another kind of place."""
        key = tensor.untyped_storage()._cdata
        if key in self.living:
            storage, previous, size = self.living[key]
            self.living[key] = storage, location, size
            self.current[previous] -= size
            self.current[location] += size

    def reset_peaks(self) -> Counter[str]:
        """Begin to look for a new peak. Returns the bytes that live now."""
        gc.collect()
        self.peaks = {}
        self._phase_counts.clear()
        self.begin_phase("start")
        return self.current.copy()

    def begin_phase(self, name: str) -> None:
        """A moment begins, whose peak is looked for by itself. One that comes again is another moment."""
        self._phase_counts[name] += 1
        self._peak = self.peaks[f"{name} {self._phase_counts[name]}"] = self.current.copy()

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: Arguments = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        kwargs = kwargs or {}
        inputs = [t for t in pytree.arg_tree_leaves(*args, **kwargs) if isinstance(t, Tensor)]
        if (
            inputs
            and not any(isinstance(t, FakeTensor) for t in inputs)
            and math.prod(t.numel() for t in inputs) <= MAX_REAL_WORK
        ):
            if func is _MOVE and kwargs.get("device") == ASSUMED and args[0].numel() > SMALL:
                return self.empty(args[0], ASSUMED, cast("torch.dtype | None", kwargs.get("dtype")))
            if not _makes_large(func, args):
                return self._run_real(func, args, kwargs)
        if func is _VALUE and inputs[0].dtype == torch.bool:
            return False  # whether something is so throughout, or anywhere not a number, only numbers tell
        if inputs and _writes_only(func):
            return args[0]
        if _is_foreach(func):
            if not any(isinstance(t, FakeTensor) for t in inputs):
                return self._run_real(func, args, kwargs)
            return [self._repeat_answer(_describe(t)) for t in args[0]] if func._schema.returns else None
        if inputs and _is_view(func) and isinstance(args[0], FakeTensor):
            return self._make_view(func, args, kwargs)
        if func in _INDEXING:
            args = (args[0], self._resolve_masks(args[1]), *args[2:])
        if len({t.fake_device if isinstance(t, FakeTensor) else None for t in inputs}) > 1:
            args, kwargs = self._align_devices(inputs, args, kwargs)
        key = self._key(func, args, kwargs)
        if key is not None and (answer := self._answers.get(key)) is not None:
            return (
                self._repeat_answer(answer)
                if isinstance(answer, _Answer)
                else tuple(k and self._repeat_answer(k) for k in answer)
            )
        # chance has no values here
        faked = func(*args, **{**kwargs, **({"generator": None} if "generator" in kwargs else {})})
        outputs = [t for t in pytree.tree_leaves(faked) if isinstance(t, FakeTensor)]
        if not inputs and outputs and all(t.numel() <= SMALL for t in outputs):
            return self._run_real(func, args, kwargs)
        for tensor in outputs:
            self._track(tensor)
        if key is not None and isinstance(faked, FakeTensor) and _is_plain(faked, inputs):
            self._answers[key] = _describe(faked)
        elif key is not None and isinstance(faked, tuple) and all(t is None or _is_plain(t, inputs) for t in faked):
            self._answers[key] = tuple(t if t is None else _describe(t) for t in faked)
        return faked

    def _key(self, func: OpOverload, args: Arguments, kwargs: Mapping[str, object]) -> Hashable:
        """What an operator's answer hangs on; None where that is more than shapes."""
        try:
            hash(key := (func, *map(_key_of, args), *((name, _key_of(value)) for name, value in kwargs.items())))
        except TypeError:
            return None
        return key

    def _make_view(self, func: OpOverload, args: Arguments, kwargs: Mapping[str, object]) -> object:
        """A view of a fake tensor."""
        with in_kernel_invocation_manager(self.fake):
            bare = func(*args, **kwargs)
        view = FakeTensor(self.fake, bare, args[0].fake_device)
        self._track(view)  # some look where they can, and copy elsewhere
        return view

    def _repeat_answer(self, answer: _Answer) -> Tensor:
        """A new tensor as an operator has answered before."""
        with unset_fake_temporarily():
            bare = torch.empty_strided(answer.shape, answer.stride, dtype=answer.dtype, device="meta")
        tensor = FakeTensor(self.fake, bare, answer.device)
        self._track(tensor)
        return tensor

    def _align_devices(
        self, tensors: Sequence[Tensor], args: Arguments, kwargs: Mapping[str, object]
    ) -> tuple[Arguments, Mapping[str, object]]:
        """An operator's arguments, with what is small, or came of what is small, where the others are."""
        device = ASSUMED if any(isinstance(t, FakeTensor) and t.fake_device == ASSUMED for t in tensors) else HOST

        def align(tensor: Tensor) -> Tensor:
            if isinstance(tensor, FakeTensor):
                if tensor.fake_device == device:
                    return tensor
                if not tensor.ndim:
                    return tensor
                self.move(tensor, ON_DEVICE)
            with unset_fake_temporarily():
                bare = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            return FakeTensor(self.fake, bare, device)

        return pytree.tree_map_only(Tensor, align, (args, kwargs))

    def _resolve_masks(self, indices: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Masks with numbers, as the places that they name: how many those are is known."""
        resolved: list[Tensor | None] = []
        for index in indices:
            if index is None or isinstance(index, FakeTensor) or index.dtype not in (torch.bool, torch.uint8):
                resolved.append(index)
            else:
                resolved.extend(self._run_real(torch.nonzero, (index,), {}).unbind(1))
        return resolved

    def _run_real(self, func: Callable[..., Value], args: Arguments, kwargs: Mapping[str, object]) -> Value:
        with unset_fake_temporarily():
            return func(*args, **kwargs)

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.living:
            return
        device = tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device
        location, size = self._location_override or (ON_DEVICE if device == ASSUMED else ON_HOST), storage.nbytes()
        self.living[key] = weakref.ref(storage, lambda _: self._untrack(key)), location, size
        self.current[location] += size
        if self.current[location] > self._peak[location]:
            self._peak[location] = self.current[location]

    def _untrack(self, key: int) -> None:
        _, location, size = self.living.pop(key)
        self.current[location] -= size


def _is_fill(tensor: object, places: object, value: object) -> bool:
    """Is a number put into places of a fake tensor that are named by numbers and slices?"""
    each = places if isinstance(places, tuple) else (places,)
    return (
        isinstance(tensor, FakeTensor)
        and not tensor.requires_grad
        and isinstance(value, (bool, int, float))
        and all(place is None or place is ... or isinstance(place, (int, slice)) for place in each)
    )


def _makes_large(func: OpOverload, args: Arguments) -> bool:
    """Is an operator told to answer too much to be computed for real, such as a mask of every token by every other?"""
    sizes = [math.prod(a) for a in args if isinstance(a, (list, tuple)) and a and all(type(n) is int for n in a)]
    if not sizes or _is_view(func):
        return False
    return max(sizes) * (args[0].numel() if func is _REPEAT else 1) > LARGE


def _describe(tensor: Tensor) -> _Answer:
    device = tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device
    return _Answer(tensor.shape, tensor.stride(), tensor.dtype, device)


@functools.cache
def _is_foreach(func: OpOverload) -> bool:
    """Does an operator do the same with each tensor of a list, and answer nothing, or a tensor like each of them?"""
    name = func._schema.name.removeprefix("aten::")
    return name.startswith("_foreach_") and not name.startswith(("_foreach_norm", "_foreach_max", "_foreach_powsum"))


def _key_of(value: object) -> Hashable:
    """An argument as a part of a key, which holds no tensor. Raises TypeError for what has numbers."""
    if isinstance(value, FakeTensor):
        if value.dtype.is_complex:
            raise TypeError("conjugates are known by a bit that is not among these")
        return value.shape, value.stride(), value.dtype, value.fake_device
    if isinstance(value, torch.Generator):
        return None
    if isinstance(value, Tensor):
        raise TypeError("it has numbers")
    return type(value), tuple(map(_key_of, value)) if isinstance(value, (list, tuple)) else value


@functools.cache
def _writes_only(func: OpOverload) -> bool:
    """Does an operator write over its first argument, answer that, and leave its shape?"""
    first = func._schema.arguments[0].alias_info if func._schema.arguments else None
    answers = [answer.alias_info for answer in func._schema.returns]
    return bool(
        first and first.is_write and len(answers) == 1 and answers[0] and answers[0].is_write
        and torch.Tag.inplace_view not in func.tags and func._schema.name.endswith("_")
        and "resize" not in func._schema.name and "set_" not in func._schema.name
    )  # fmt: skip


@functools.cache
def _is_view(func: OpOverload) -> bool:
    """Is an operator's one answer a view of its first argument?"""
    first = func._schema.arguments[0].alias_info if func._schema.arguments else None
    returned = func._schema.returns
    is_single = len(returned) == 1 and str(returned[0].type) == "Tensor"
    is_view = bool(first and not first.is_write and is_single and returned[0].alias_info)
    return is_view or func is torch.ops.aten._unsafe_view.default


def _is_plain(answer: object, inputs: list[Tensor]) -> bool:
    """Is an answer a tensor with a storage of its own, just as large as its strides say?"""
    if not isinstance(answer, FakeTensor):
        return False
    storage = answer.untyped_storage()
    return (
        answer.storage_offset() == 0
        and all(storage._cdata != t.untyped_storage()._cdata for t in inputs)
        and storage.nbytes()
        == answer.itemsize * (1 + sum((n - 1) * s for n, s in zip(answer.shape, answer.stride(), strict=True)))
    )


def _find_float32_modules(model: nn.Module, dtype: torch.dtype | None) -> Collection[str]:
    """Names of modules that a library loads in float32 whatever it is asked for.

    Those of transformers have a list for float16 alone, and a strict one.
    """
    wide = getattr(model, "_keep_in_fp32_modules", None) or ()
    if (strict := getattr(model, "_keep_in_fp32_modules_strict", wide)) is wide:
        return wide
    return {*wide, *(strict or ())} if dtype == torch.float16 else strict or ()


def _apply_to_storage(change: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
    """What a change makes of a weight, which may be as wide as its layer over a storage as narrow as its bits."""
    size = weight.untyped_storage().nbytes()
    if size >= weight.numel() * weight.itemsize:
        return change(weight)
    return change(weight.as_strided((size // weight.itemsize,), (1,))).as_strided(weight.shape, weight.stride())


def needs_real_values(cause: Exception) -> bool:
    """Did code fail only because it had shapes without numbers, and not for what would stop it with numbers too?"""
    return isinstance(cause, FAKE_ERRORS) or any(word in str(cause) for word in FAKE_MESSAGES)
