"""Weights in the format and the place that the options ask for. The order is here, and nowhere else:

load (families; diffusers may quantise on the way), fuse projections, quantise what is not yet, to the device or into a
stream of blocks, attach what is trained (adapters), checkpoint, choose the attention kernel, compile.

Fusing comes first, as it makes the layers that all others speak of. Quantising comes before anything is attached, as
adapters are never quantised; what is attached later finds its layer wherever that is, and is itself always on the
device; compiling comes last, since it sees what is there by then.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn

from darkroom.core.cards import BF16
from darkroom.core.device import capability, device_name, has_bf16, is_host
from darkroom.core.errors import ConfigError, DiskFullError
from darkroom.core.log import logger
from darkroom.core.precision import cast_weights
from darkroom.core.units import show_size
from darkroom.memory import attention, checkpointing, compiling, float8, fusing, patches, quantize, sla
from darkroom.memory import quantized_cache as kept
from darkroom.memory.stream import Stream, leaves, plain_tensors

if TYPE_CHECKING:
    from darkroom.options.config import Config

Block = TypeVar("Block")
SWAP = "musubi_blocks_to_swap"
OFFLOADS = (SWAP, "ramtorch", "enable_group_offload")
log = logger(__name__)

TEXT_PRECISIONS = (
    "text_encoder_1_precision",
    "text_encoder_2_precision",
    "text_encoder_3_precision",
    "text_encoder_4_precision",
)
PRECISIONS = ("base_model_precision", *TEXT_PRECISIONS)
# bytes between places where torch puts tensors on a CPU
STRAIGHT = 64
ON_GPUS_ONLY = ("accelerator_cache_clear_interval", "disable_tf32")
# what diffusers calls the block between a VAE's way down and its way up
MIDDLE = "mid_block"
# what ramtorch streams with its extensions
STREAMABLE = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def check(options: Config, device: torch.device) -> None:
    """Raises ConfigError for what this machine cannot do, before anything loads."""
    if options.musubi_block_swap_device != "cpu":
        problem = "Weights wait in the host's memory and nowhere else."
        raise ConfigError("musubi_block_swap_device", options.musubi_block_swap_device, "", problem, "Set it to cpu.")
    for name in PRECISIONS:
        quantize.check(name, getattr(options, name), not is_host(device))
    if options.mixed_precision == "fp16" and is_host(device):
        problem = "Gradients in fp16 are scaled on an accelerator, and there is none here."
        raise ConfigError("mixed_precision", "fp16", "", problem, "Set it to bf16, or to no.")
    check_bf16(options, device)
    attention.check(options, device)
    float8.check(options, device)
    compiling.check(options)
    for name, (value, why, change) in WITHOUT_GPU.items():
        if is_host(device) and getattr(options, name) == value:
            raise ConfigError(name, value, "", f"{why}, and there is none here.", change)


def check_bf16(options: Config, device: torch.device) -> None:
    """Raises ConfigError for bfloat16 on a GPU that does not compute in it."""
    able = capability(device)
    if able is None or has_bf16(device):
        return
    have, needed = (".".join(map(str, pair)) for pair in (able, BF16))
    problem = f"{device_name(device)} has compute capability {have}, and computing in bfloat16 takes {needed}."
    for name, change in (("mixed_precision", "Set it to fp16, or to no."), ("vae_dtype", "Set it to fp32.")):
        if getattr(options, name) == "bf16":
            raise ConfigError(name, "bf16", "", problem, change)


def is_quantised(options: Config) -> bool:
    """Are some of a run's weights put into fewer bits?"""
    return bool(options.quantization_config) or any(getattr(options, name) != quantize.NONE for name in PRECISIONS)


# option to the value that needs a GPU, why, and what to do instead
WITHOUT_GPU: Mapping[str, tuple[Any, str, str]] = {
    "gradient_checkpointing_backend": (
        checkpointing.OFFLOADED, "Inputs of blocks wait in host memory, away from a GPU's", "Set it to torch."
    ),
    "group_offload_use_stream": (True, "Streams belong to NVIDIA GPUs", "Set it to false."),
    "quantize_via": ("accelerator", "Weights are quantised on a GPU", "Set it to cpu."),
}  # fmt: skip


@dataclasses.dataclass
class Placement:
    """What becomes of a run's models. `blocks` are the names of a denoiser's lists of blocks."""

    options: Config
    device: torch.device
    blocks: Sequence[str]
    streams: list[Stream] = dataclasses.field(default_factory=list)
    # those with weights that are trained
    learning: list[Stream] = dataclasses.field(default_factory=list)
    # where quantised denoisers are kept, if they are
    shelf: Path | None = None
    # by model: the preset, how many linear layers became smaller, and of how many
    quantised: dict[str, tuple[str, int, int]] = dataclasses.field(default_factory=dict)
    # by model: how many layers compute products in eight bits
    in_float8: dict[str, int] = dataclasses.field(default_factory=dict)

    # -- what is frozen --------------------------------------------------------------------------------------------

    def base(
        self, denoisers: Mapping[str, nn.Module], whole: Collection[str] = (), dtype: torch.dtype | None = None
    ) -> None:
        """Denoisers fresh from their files, by component, on the CPU; those in `whole` are trained, in `dtype`."""
        for name, model in denoisers.items():
            self._straighten(model)
            if name in whole and self.options.controlnet:
                self.speed_up(name, model)
                self._beside(model)
            elif name in whole:
                self.speed_up(name, model)
                if dtype:  # what waits has its format for good
                    cast_weights(model, dtype)
                self._offload(model, trained=True)
            else:
                self._fuse(model)
                model.requires_grad_(False)
                self.narrow(name, model)
                self._offload(model)

    def _straighten(self, model: nn.Module) -> None:
        straighten(model)

    def _beside(self, model: nn.Module) -> None:
        """Send what is beside the base to the device; a ControlNet that only a LoRA changes may be streamed."""
        if self.options.ramtorch and self.options.ramtorch_controlnet:
            self.streams.append(self._stream(model.requires_grad_(False), self._streamed_layers(model, None, 100)))
        else:
            model.to(self.device)

    def kept(self, name: str, identity: str, empty: Callable[[], Any], load: Callable[[], Any]) -> Any:
        """A frozen denoiser, narrow already if there is a file of it; else it is narrowed and such a file is made."""
        import diffusers

        preset = self.options.base_model_precision
        if self.shelf is None or not self.options.keep_quantised_weights or not kept.can_keep(preset):
            return load()
        facts = [identity, preset, self.options.fp8_format, self.blocks, diffusers.__version__]
        facts += [fusing.OPTION] * self.options.fuse_qkv_projections
        file = kept.file_in(self.shelf, facts)
        if file.exists():
            try:
                model, few = kept.load(file, lambda: self._fuse(empty()))
                total = sum(isinstance(module, nn.Linear) for module in model.modules())
                self.quantised[name] = preset, few, total
                return model
            except (OSError, ValueError, KeyError, SafetensorError) as cause:
                log.warning("%s cannot be used (%s); the weights are quantised again.", file, cause)
        model = self._fuse(load())
        self.narrow(name, model.requires_grad_(False))
        try:
            kept.save(model, file)
        except DiskFullError as cause:  # the next start quantises again, and this one goes on
            log.warning("The quantised weights are not kept: %s", cause)
        return model

    def _fuse(self, model: Any) -> Any:
        """The denoiser, with fused projections if the options ask for them."""
        if self.options.fuse_qkv_projections:
            fusing.fuse(model)
        return model

    def narrow(self, name: str, denoiser: nn.Module) -> None:
        """Quantise a frozen denoiser, or let it compute in fewer bits, as the options ask."""
        self._quantise(name, denoiser, self.options.base_model_precision, self.blocks)
        self.speed_up(name, denoiser)

    def speed_up(self, name: str, denoiser: nn.Module) -> None:
        """Let a denoiser compute products in eight bits if the options ask for it; once is enough."""
        if self.options.mixed_precision == float8.CHOICE and (few := float8.convert(denoiser, self.blocks)):
            self.in_float8[name] = few

    def text(self, encoder: nn.Module, number: int) -> None:
        """A frozen text encoder, the first one being number 1."""
        o = self.options
        self._quantise(f"text encoder {number}", encoder, getattr(o, TEXT_PRECISIONS[number - 1]))
        if o.ramtorch and o.ramtorch_text_encoder:
            layers = self._streamed_layers(encoder, None, o.ramtorch_text_encoder_percent)
            if layers:
                self._stream(encoder, layers)
                return
        encoder.to(self.device)

    def vae(self, vae: nn.Module) -> None:
        """A frozen VAE."""
        if self.options.vae_enable_patch_conv:
            patches.patch(vae)
        if self.options.ramtorch and self.options.ramtorch_vae:
            self._stream(vae, self._middle(vae))
        else:
            vae.to(self.device)

    def _middle(self, vae: nn.Module) -> list[list[nn.Module]]:
        """What ramtorch streams of a VAE: layers of the blocks in the middle of its encoder and decoder."""
        middle = [module for name, module in vae.named_modules() if name.endswith(MIDDLE)]
        return [[layer] for layer in leaves(middle, self._kinds)]

    def examine(self, denoisers: Callable[[], Iterable[nn.Module]], vae: Callable[[], nn.Module | None]) -> None:
        """Raises ConfigError for what these models cannot do; they are asked for, without weights, if it matters."""
        o = self.options
        attends = o.attention_mechanism != attention.USUAL
        for each in denoisers() if attends or o.musubi_blocks_to_swap or o.fuse_qkv_projections else ():
            self._fuse(each)
            if o.attention_mechanism == sla.NAME:
                sla.use(each, sla.read(o.sla_config), torch.float32, self.device)
            else:
                attention.validate(each, o.attention_mechanism)
            if o.musubi_blocks_to_swap:
                spread(self.blocks_of(each), o.musubi_blocks_to_swap)
        for name, asked, found, lacks in (
            ("vae_enable_patch_conv", o.vae_enable_patch_conv, patches.convolutions, "no 3-D convolutions"),
            ("ramtorch_vae", o.ramtorch and o.ramtorch_vae, self._middle, "no such layers in its middle"),
        ):
            if asked and not ((model := vae()) and found(model)):
                raise ConfigError(name, True, "", f"This model's VAE has {lacks}.", "Leave it out.")

    def _quantise(self, name: str, model: nn.Module, preset: str, blocks: Sequence[str] = ()) -> None:
        if name in self.quantised:
            return
        if preset != quantize.NONE and self.options.quantize_via != "pipeline":
            at = self.device if self.options.quantize_via == "accelerator" else torch.device("cpu")
            self.quantised[name] = preset, *quantize.quantise(model, preset, self.options, at, blocks)
            let_go(model)
        elif method := getattr(model, "quantization_method", None):
            self.quantised[name] = f"{method.value}, as loaded", *quantize.counted(model)

    def _offload(self, model: nn.Module, trained: bool = False) -> None:
        """Send a denoiser to the device, or what there is no room for into a stream."""
        units = self._units(model)
        if units:
            self.streams.append(self._stream(model, units, trained))
        else:
            model.to(self.device)

    @property
    def _kinds(self) -> tuple[type[nn.Module], ...]:
        """The kinds of layers that ramtorch streams."""
        return (nn.Linear,) if self.options.ramtorch_disable_extensions else STREAMABLE

    def _streamed_layers(self, model: nn.Module, patterns: str | None, percent: float) -> list[list[nn.Module]]:
        """What ramtorch streams of a model."""
        layers = _but_the_first(model, leaves([model], self._kinds, patterns))
        return [[layer] for layer in layers[: math.ceil(len(layers) * percent / 100)]]

    def _units(self, model: nn.Module) -> list[list[nn.Module]]:
        """What travels together, in the order of use; nothing if all of it stays."""
        o, blocks = self.options, self.blocks_of(model)
        if o.musubi_blocks_to_swap:
            return [[block] for block in spread(blocks, o.musubi_blocks_to_swap)]
        if o.ramtorch:
            return self._streamed_layers(model, o.ramtorch_target_modules, o.ramtorch_transformer_percent)
        if o.enable_group_offload and o.group_offload_type == "leaf_level":
            return [[layer] for layer in _but_the_first(model, leaves([model]))]
        if o.enable_group_offload:
            size = o.group_offload_blocks_per_group
            return [blocks[i : i + size] for i in range(0, len(blocks), size)]
        return []

    @property
    def layers_move(self) -> bool:
        """Do layers come to the device one by one, and not with all of their block?"""
        o = self.options
        return o.ramtorch or (o.enable_group_offload and o.group_offload_type == "leaf_level")

    @property
    def _slots(self) -> int:
        """Places on the device for what waits."""
        if not self.options.enable_group_offload:
            return self.options.block_swap_ring_size
        # without a stream of its own a copy is waited for, and a second place would stay empty
        return 2 if self.options.group_offload_use_stream else 1

    def _stream(self, model: nn.Module, groups: list[list[nn.Module]], trained: bool = False) -> Stream:
        o = self.options
        folder = None
        if o.enable_group_offload:
            folder = _folder(o.group_offload_to_disk_path, len(self.streams))
        streamed = {id(t) for each in groups for module in each for t in tensors_of(module)}
        move_all_but(model, streamed, self.device)
        # several processes share gradients, not weights that never change
        names = [name for name, p in model.named_parameters() if id(p) in streamed]
        model._ddp_params_and_buffers_to_ignore = names  # type: ignore[assignment]
        made = Stream(groups, self.device, self._slots, o.use_pinned_memory_for_block_swap, folder, trained)
        if folder:
            weakref.finalize(made, shutil.rmtree, folder, ignore_errors=True)
        return made

    def remarks(self) -> list[str]:
        """What a person should know of it although nothing is wrong."""
        missed = [(name, preset) for name, (preset, few, _) in self.quantised.items() if not few]
        found = [f"{preset}: no layer of the {name} is large enough for it." for name, preset in missed]
        eight = self.options.mixed_precision == float8.CHOICE
        if eight and not self.in_float8:
            found.append("mixed_precision fp8: no layer is large enough for it, and all compute in bf16.")
        if is_host(self.device):
            if self.streams or self.options.enable_model_cpu_offload:
                found.append("Weights wait in host memory for a device that is the host itself: that saves nothing.")
            if self.options.attention_mechanism == sla.NAME:
                found.append("Sparse-linear attention has its kernel on GPUs alone: here the formula saves nothing.")
            if self.options.attention_mechanism == attention.FLEX:
                found.append("Flex attention has no backward pass on a CPU: PyTorch's usual kernel computes here.")
            if eight and self.in_float8:
                found.append("mixed_precision fp8 takes longer without a GPU that has such products.")
            idle = [name for name in ON_GPUS_ONLY if getattr(self.options, name)]
            found += [f"{name} has no effect without a GPU." for name in idle]
        return found

    def describe(self) -> list[str]:
        """What was done, a line each, for people."""
        rows = self.quantised.items()
        lines = [f"{name}: {few} of {total} linear layers as {preset}" for name, (preset, few, total) in rows]
        lines += [f"{name}: {few} layers compute in fp8" for name, few in self.in_float8.items()]
        for stream in self.streams:
            waiting, room = show_size(stream.bytes_on_host), show_size(stream.bytes_on_device)
            lines.append(f"in host memory: {len(stream.units)} parts, {waiting}; room for them on the device: {room}")
        return lines

    # -- what is trained -------------------------------------------------------------------------------------------

    def attached(self, model: nn.Module, denoisers: Mapping[str, nn.Module]) -> None:
        """The run's model, with what is trained in it."""
        o = self.options
        self.learning = [stream for stream in self.streams if stream.catch()]
        self.settle()
        waiting = {id(place.tensor) for stream in self.learning for unit in stream.units for place in unit.places}
        for parameter in model.parameters():
            if parameter.requires_grad and id(parameter) not in waiting:
                parameter.data = parameter.data.to(self.device)
        for each in denoisers.values():
            if o.attention_mechanism == sla.NAME:
                trained = next(p.dtype for p in model.parameters() if p.requires_grad)
                sla.use(each, sla.read(o.sla_config), trained, self.device)
            elif attention.is_sage(o.attention_mechanism):
                attention.use_in(each, o.attention_mechanism, o.sageattention_usage)
            else:
                attention.use(each, attention.on(self.device, o.attention_mechanism))
            if o.unet_attention_slice:
                each.set_attention_slice("auto")  # type: ignore[operator]
            if o.dynamo_backend != compiling.OFF:
                compiling.compile_blocks(each, self.blocks_of(each), o)
            elif o.validation_torch_compile:
                compiling.compile_for_drawing(self.blocks_of(each))

    def settle(self) -> None:
        """Have trained weights that wait at home, with their gradients: between passes, before an update."""
        for stream in self.learning:
            stream.settle()

    def blocks_of(self, model: nn.Module) -> list[nn.Module]:
        """A denoiser's blocks in their order. A ControlNet has some of the lists."""
        lists = (getattr(model, name, ()) for name in self.blocks)
        return [block for each in lists for block in each]


def tensors_of(module: nn.Module, recurse: bool = True) -> Iterator[torch.Tensor]:
    """A module's parameters and buffers; without `recurse` not those of the modules inside it."""
    yield from module.parameters(recurse)
    yield from module.buffers(recurse)


def move_all_but(module: nn.Module, streamed: Collection[int], device: torch.device) -> None:
    """Send a module to `device`, but for the modules inside it that hold streamed tensors, given by their `id`.

    Modules move by their own `to`: quantized weights have more than `.data`, such as scales in tensors of their own.
    """
    if all(id(tensor) not in streamed for tensor in tensors_of(module)):
        module.to(device)
        return
    for child in module.children():
        move_all_but(child, streamed, device)
    if all(id(tensor) not in streamed for tensor in tensors_of(module, recurse=False)):
        module._apply(lambda tensor: tensor.to(device), recurse=False)


def straighten(model: nn.Module) -> None:
    """Move weights that lie at odd places, as in a file that is mapped into memory: sums over them would be added up in
    another order than the same sums over weights that lie straight, and end in another bit."""
    for tensor in tensors_of(model):
        for plain in plain_tensors(tensor):
            if plain.device.type == "cpu" and plain.data_ptr() % STRAIGHT:
                plain.data = plain.data.clone()


def let_go(model: nn.Module) -> None:
    """Take weights out of the file that they are mapped from with many others, so that it need not stay in memory."""
    for tensor in tensors_of(model):
        for plain in plain_tensors(tensor):
            if plain.device.type == "cpu" and plain.untyped_storage().nbytes() > plain.nbytes:
                plain.data = plain.data.clone()


def spread(blocks: Sequence[Block], count: int) -> list[Block]:
    """So many of the blocks, as far from each other as possible, that each copy has the most time.

    Raises ConfigError if none would be left.
    """
    if count >= len(blocks):
        problem = f"The network has {len(blocks)} blocks, and one at least has to stay."
        raise ConfigError(SWAP, count, "", problem, f"Choose {len(blocks) - 1} or less.")
    return [blocks[(i + 1) * len(blocks) // count - 1] for i in range(count)]


def _but_the_first(model: nn.Module, layers: list[nn.Module]) -> list[nn.Module]:
    """The layers but for the one with the model's first parameter, whose place diffusers takes for the model's."""
    first = next(model.parameters())
    return [layer for layer in layers if all(p is not first for p in layer.parameters())]


def _folder(path: str | None, number: int) -> Path | None:
    """A folder for a stream's weights. Raises ConfigError if there can be none."""
    if not path:
        return None
    folder = Path(path).expanduser() / f"stream_{os.getpid()}_{number}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        problem = f"Nothing can be written there: {cause.strerror}."
        raise ConfigError("group_offload_to_disk_path", path, "", problem, "Choose another folder.") from cause
    return folder
