"""The precision and device of a run's weights. The order of the steps is defined here and nowhere else:

load (diffusers may quantize while loading), fuse projections, quantize the rest, move to the device or stream blocks,
attach adapters, enable checkpointing, set the attention kernel, compile.

Fusing comes first because later steps use the fused layers. Quantizing comes before adapters are attached, as adapters
are never quantized; adapters are always on the device; compiling comes last, so it sees the final modules.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

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
from darkroom.memory.stream import WeightStreamer, find_leaf_layers, iterate_plain_tensors

if TYPE_CHECKING:
    from torch.nn import Module

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
# alignment in bytes of torch's CPU tensors
ALIGNMENT = 64
GPU_ONLY = ("accelerator_cache_clear_interval", "disable_tf32")
# diffusers' name of the middle block of a VAE
MIDDLE_BLOCK = "mid_block"
# layer types that ramtorch streams with its extensions
STREAMABLE_LAYERS = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def validate_memory_options(options: Config, device: torch.device) -> None:
    """Raises ConfigError for options that this machine does not support, before anything is loaded."""
    if options.musubi_block_swap_device != "cpu":
        problem = "Weights wait in the host's memory and nowhere else."
        raise ConfigError("musubi_block_swap_device", options.musubi_block_swap_device, "", problem, "Set it to cpu.")
    for name in PRECISIONS:
        quantize.validate_precision(name, getattr(options, name), not is_host(device))
    if options.mixed_precision == "fp16" and is_host(device):
        problem = "Gradients in fp16 are scaled on an accelerator, and there is none here."
        raise ConfigError("mixed_precision", "fp16", "", problem, "Set it to bf16, or to no.")
    validate_bf16(options, device)
    attention.validate_attention_options(options, device)
    float8.validate_float8(options, device)
    compiling.validate_backend(options)
    for name, (value, reason, change) in WITHOUT_GPU.items():
        if is_host(device) and getattr(options, name) == value:
            raise ConfigError(name, value, "", f"{reason}, and there is none here.", change)


def validate_bf16(options: Config, device: torch.device) -> None:
    """Raises ConfigError for bfloat16 on a GPU without bfloat16 support."""
    available_pair = capability(device)
    if available_pair is None or has_bf16(device):
        return
    available, required = (".".join(map(str, pair)) for pair in (available_pair, BF16))
    problem = f"{device_name(device)} has compute capability {available}, and computing in bfloat16 takes {required}."
    for name, change in (("mixed_precision", "Set it to fp16, or to no."), ("vae_dtype", "Set it to fp32.")):
        if getattr(options, name) == "bf16":
            raise ConfigError(name, "bf16", "", problem, change)


def has_quantized_weights(options: Config) -> bool:
    """Does the run quantize any weights?"""
    return bool(options.quantization_config) or any(getattr(options, name) != quantize.NONE for name in PRECISIONS)


# option to the value that needs a GPU, the reason, and the remedy
WITHOUT_GPU: Mapping[str, tuple[object, str, str]] = {
    "group_offload_use_stream": (True, "Streams belong to NVIDIA GPUs", "Set it to false."),
}
WITHOUT_EFFECT_ON_CPU: Mapping[str, tuple[object, str]] = {
    "gradient_checkpointing_backend": (checkpointing.OFFLOADED, "inputs of blocks are in CPU RAM already"),
    "quantize_via": ("accelerator", "weights are quantized on the CPU"),
}
"""Values that mean a GPU where there is none, and do no harm there."""


@dataclasses.dataclass
class MemoryPolicy:
    """Precision, device and offloading of a run's models. `blocks` are the names of a denoiser's block lists."""

    options: Config
    device: torch.device
    blocks: Sequence[str]
    streamers: list[WeightStreamer] = dataclasses.field(default_factory=list)
    # streamers with trained weights
    trained_streamers: list[WeightStreamer] = dataclasses.field(default_factory=list)
    # folder for cached quantized denoisers; None: no cache
    quantized_cache_dir: Path | None = None
    # by model: preset, number of quantized linear layers, number of linear layers
    quantized_layers: dict[str, tuple[str, int, int]] = dataclasses.field(default_factory=dict)
    # by model: number of layers with FP8 matrix multiplication
    float8_layers: dict[str, int] = dataclasses.field(default_factory=dict)

    # -- frozen models --------------------------------------------------------------------------------------------

    def prepare_denoisers(
        self, denoisers: Mapping[str, nn.Module], trained: Collection[str] = (), dtype: torch.dtype | None = None
    ) -> None:
        """Quantize and move denoisers, by component, freshly loaded on the CPU; `trained` ones train in `dtype`."""
        for name, model in denoisers.items():
            self._realign(model)
            if name in trained and self.options.controlnet:
                self.convert_to_float8(name, model)
                self._move_controlnet(model)
            elif name in trained:
                self.convert_to_float8(name, model)
                if dtype:  # offloaded weights keep their dtype
                    cast_weights(model, dtype)
                self._offload(model, trained=True)
            else:
                self._fuse(model)
                model.requires_grad_(False)
                self.quantize_frozen(name, model)
                self._offload(model)

    def _realign(self, model: nn.Module) -> None:
        realign_storage(model)

    def _move_controlnet(self, model: nn.Module) -> None:
        """Move a ControlNet to the device; one that only a LoRA changes may be streamed."""
        if self.options.ramtorch and self.options.ramtorch_controlnet:
            self.streamers.append(
                self._make_streamer(model.requires_grad_(False), self._pick_streamed_layers(model, None, 100))
            )
        else:
            model.to(self.device)

    def load_or_quantize(
        self, name: str, identity: str, empty: Callable[[], Module], load: Callable[[], Module]
    ) -> Module:
        """A frozen quantized denoiser from the cache, or loaded, quantized and written to the cache."""
        import diffusers

        preset = self.options.base_model_precision
        if (
            self.quantized_cache_dir is None
            or not self.options.keep_quantised_weights
            or not kept.is_serializable(preset)
        ):
            return load()
        facts = [identity, preset, self.options.fp8_format, self.blocks, diffusers.__version__]
        facts += [fusing.OPTION] * self.options.fuse_qkv_projections
        file = kept.cache_file(self.quantized_cache_dir, facts)
        if file.exists():
            try:
                model, count = kept.load(file, lambda: self._fuse(empty()))
                total = sum(isinstance(module, nn.Linear) for module in model.modules())
                self.quantized_layers[name] = preset, count, total
                return model
            except (OSError, ValueError, KeyError, SafetensorError) as cause:
                log.warning("%s cannot be used (%s); the weights are quantised again.", file, cause)
        model = self._fuse(load())
        self.quantize_frozen(name, model.requires_grad_(False))
        try:
            kept.save(model, file)
        except DiskFullError as cause:  # the next start quantizes again, and this one goes on
            log.warning("The quantised weights are not kept: %s", cause)
        return model

    def _fuse(self, model: Module) -> Module:
        """Fuse the denoiser's projections if the options ask for it."""
        if self.options.fuse_qkv_projections:
            fusing.fuse(model)
        return model

    def quantize_frozen(self, name: str, denoiser: nn.Module) -> None:
        """Quantize a frozen denoiser and enable FP8 matrix multiplication, as the options ask."""
        self._quantize(name, denoiser, self.options.base_model_precision, self.blocks)
        self.convert_to_float8(name, denoiser)

    def convert_to_float8(self, name: str, denoiser: nn.Module) -> None:
        """Enable FP8 matrix multiplication in a denoiser if the options ask for it. Idempotent."""
        if self.options.mixed_precision == float8.CHOICE and (count := float8.convert(denoiser, self.blocks)):
            self.float8_layers[name] = count

    def prepare_text_encoder(self, encoder: nn.Module, number: int) -> None:
        """Quantize and move a frozen text encoder; `number` counts from 1."""
        o = self.options
        self._quantize(f"text encoder {number}", encoder, getattr(o, TEXT_PRECISIONS[number - 1]))
        if o.ramtorch and o.ramtorch_text_encoder:
            layers = self._pick_streamed_layers(encoder, None, o.ramtorch_text_encoder_percent)
            if layers:
                self._make_streamer(encoder, layers)
                return
        encoder.to(self.device)

    def prepare_vae(self, vae: nn.Module) -> None:
        """Move a frozen VAE to the device, or stream it."""
        if self.options.vae_enable_patch_conv:
            patches.patch(vae)
        if self.options.ramtorch and self.options.ramtorch_vae:
            self._make_streamer(vae, self._find_middle_layers(vae))
        else:
            vae.to(self.device)

    def _find_middle_layers(self, vae: nn.Module) -> list[list[nn.Module]]:
        """The layers of a VAE that ramtorch streams: those in the middle blocks of encoder and decoder."""
        middle = [module for name, module in vae.named_modules() if name.endswith(MIDDLE_BLOCK)]
        return [[layer] for layer in find_leaf_layers(middle, self._layer_types)]

    def validate_models(
        self, denoisers: Callable[[], Iterable[nn.Module]], vae: Callable[[], nn.Module | None]
    ) -> None:
        """Raises ConfigError for options that these models do not support; builds them without weights if needed."""
        o = self.options
        attends = o.attention_mechanism != attention.DEFAULT_KERNEL
        for denoiser in denoisers() if attends or o.musubi_blocks_to_swap or o.fuse_qkv_projections else ():
            self._fuse(denoiser)
            if o.attention_mechanism == sla.NAME:
                sla.add_sparse_linear(denoiser, sla.parse_settings(o.sla_config), torch.float32, self.device)
            else:
                attention.validate_kernel(denoiser, o.attention_mechanism)
            if o.musubi_blocks_to_swap:
                pick_spread_blocks(self.blocks_of(denoiser), o.musubi_blocks_to_swap)
        for name, is_set, find, lacks in (
            ("vae_enable_patch_conv", o.vae_enable_patch_conv, patches.find_convolutions, "no 3-D convolutions"),
            ("ramtorch_vae", o.ramtorch and o.ramtorch_vae, self._find_middle_layers, "no such layers in its middle"),
        ):
            if is_set and not ((model := vae()) and find(model)):
                raise ConfigError(name, True, "", f"This model's VAE has {lacks}.", "Leave it out.")

    def _quantize(self, name: str, model: nn.Module, preset: str, blocks: Sequence[str] = ()) -> None:
        if name in self.quantized_layers:
            return
        if preset != quantize.NONE and self.options.quantize_via != "pipeline":
            at = self.device if self.options.quantize_via == "accelerator" else torch.device("cpu")
            self.quantized_layers[name] = preset, *quantize.quantize_model(model, preset, self.options, at, blocks)
            detach_from_mmap(model)
        elif method := getattr(model, "quantization_method", None):
            self.quantized_layers[name] = f"{method.value}, as loaded", *quantize.count_quantized(model)

    def _offload(self, model: nn.Module, trained: bool = False) -> None:
        """Move a denoiser to the device; offloaded modules go into a streamer."""
        units = self._group_modules(model)
        if units:
            self.streamers.append(self._make_streamer(model, units, trained))
        else:
            model.to(self.device)

    @property
    def _layer_types(self) -> tuple[type[nn.Module], ...]:
        """The layer types that ramtorch streams."""
        return (nn.Linear,) if self.options.ramtorch_disable_extensions else STREAMABLE_LAYERS

    def _pick_streamed_layers(self, model: nn.Module, patterns: str | None, percent: float) -> list[list[nn.Module]]:
        """The layers of a model that ramtorch streams, each as a group."""
        layers = _exclude_first(model, find_leaf_layers([model], self._layer_types, patterns))
        return [[layer] for layer in layers[: math.ceil(len(layers) * percent / 100)]]

    def _group_modules(self, model: nn.Module) -> list[list[nn.Module]]:
        """Groups of modules to stream, in the order of use; empty without offloading."""
        o, blocks = self.options, self.blocks_of(model)
        if o.musubi_blocks_to_swap:
            return [[block] for block in pick_spread_blocks(blocks, o.musubi_blocks_to_swap)]
        if o.ramtorch:
            return self._pick_streamed_layers(model, o.ramtorch_target_modules, o.ramtorch_transformer_percent)
        if o.enable_group_offload and o.group_offload_type == "leaf_level":
            return [[layer] for layer in _exclude_first(model, find_leaf_layers([model]))]
        if o.enable_group_offload:
            size = o.group_offload_blocks_per_group
            return [blocks[i : i + size] for i in range(0, len(blocks), size)]
        return []

    @property
    def streams_single_layers(self) -> bool:
        """Are layers streamed one by one, and not whole blocks?"""
        o = self.options
        return o.ramtorch or (o.enable_group_offload and o.group_offload_type == "leaf_level")

    @property
    def _count_slots(self) -> int:
        """Number of device buffers for streamed groups."""
        if not self.options.enable_group_offload:
            return self.options.block_swap_ring_size
        # without a CUDA stream every copy is waited for, so a second buffer would be unused
        return 2 if self.options.group_offload_use_stream else 1

    def _make_streamer(self, model: nn.Module, groups: list[list[nn.Module]], trained: bool = False) -> WeightStreamer:
        o = self.options
        folder = None
        if o.enable_group_offload:
            folder = _make_folder(o.group_offload_to_disk_path, len(self.streamers))
        streamed = {id(t) for group in groups for module in group for t in iterate_parameters_and_buffers(module)}
        move_except(model, streamed, self.device)
        # several processes share gradients, not weights that never change
        names = [name for name, p in model.named_parameters() if id(p) in streamed]
        model._ddp_params_and_buffers_to_ignore = names  # type: ignore[assignment]
        streamer = WeightStreamer(
            groups, self.device, self._count_slots, o.use_pinned_memory_for_block_swap, folder, trained
        )
        if folder:
            weakref.finalize(streamer, shutil.rmtree, folder, ignore_errors=True)
        return streamer

    def remarks(self) -> list[str]:
        """Notes for the user about options without effect."""
        missed = [(name, preset) for name, (preset, count, _) in self.quantized_layers.items() if not count]
        notes = [f"{preset}: no layer of the {name} is large enough for it." for name, preset in missed]
        eight = self.options.mixed_precision == float8.CHOICE
        if eight and not self.float8_layers:
            notes.append("mixed_precision fp8: no layer is large enough for it, and all compute in bf16.")
        if is_host(self.device):
            if self.streamers or self.options.enable_model_cpu_offload:
                notes.append("Weights wait in host memory for a device that is the host itself: that saves nothing.")
            if self.options.attention_mechanism == sla.NAME:
                notes.append("Sparse-linear attention has its kernel on GPUs alone: here the formula saves nothing.")
            if self.options.attention_mechanism == attention.FLEX:
                notes.append("Flex attention has no backward pass on a CPU: PyTorch's usual kernel computes here.")
            if eight and self.float8_layers:
                notes.append("mixed_precision fp8 takes longer without a GPU that has such products.")
            idle = [name for name in GPU_ONLY if getattr(self.options, name)]
            notes += [f"{name} has no effect without a GPU." for name in idle]
        return notes

    def describe(self) -> list[str]:
        """What was quantized and offloaded, one line each."""
        rows = self.quantized_layers.items()
        lines = [f"{name}: {count} of {total} linear layers as {preset}" for name, (preset, count, total) in rows]
        lines += [f"{name}: {count} layers compute in fp8" for name, count in self.float8_layers.items()]
        for stream in self.streamers:
            waiting, room = show_size(stream.bytes_on_host), show_size(stream.bytes_on_device)
            lines.append(f"in host memory: {len(stream.units)} parts, {waiting}; room for them on the device: {room}")
        return lines

    # -- what is trained -------------------------------------------------------------------------------------------

    def attach_trained(self, model: nn.Module, denoisers: Mapping[str, nn.Module]) -> None:
        """Finish the run's model after adapters are attached: devices, attention kernel, compilation."""
        o = self.options
        self.trained_streamers = [stream for stream in self.streamers if stream.hook_gradients()]
        self.collect_offloaded_grads()
        waiting = {id(span.tensor) for stream in self.trained_streamers for unit in stream.units for span in unit.spans}
        for parameter in model.parameters():
            if parameter.requires_grad and id(parameter) not in waiting:
                parameter.data = parameter.data.to(self.device)
        for denoiser in denoisers.values():
            if o.attention_mechanism == sla.NAME:
                dtype = next(p.dtype for p in model.parameters() if p.requires_grad)
                sla.add_sparse_linear(denoiser, sla.parse_settings(o.sla_config), dtype, self.device)
            elif attention.is_sage(o.attention_mechanism):
                attention.set_kernel_for_usage(denoiser, o.attention_mechanism, o.sageattention_usage)
            else:
                attention.set_kernel(denoiser, attention.kernel_for_device(self.device, o.attention_mechanism))
            if o.unet_attention_slice:
                denoiser.set_attention_slice("auto")  # type: ignore[operator]
            if o.dynamo_backend != compiling.OFF:
                compiling.compile_blocks(denoiser, self.blocks_of(denoiser), o)
            elif o.validation_torch_compile:
                compiling.compile_for_validation(self.blocks_of(denoiser))

    def collect_offloaded_grads(self) -> None:
        """Move offloaded trained weights and their gradients to CPU RAM before an update."""
        for stream in self.trained_streamers:
            stream.collect_offloaded_grads()

    def blocks_of(self, model: nn.Module) -> list[nn.Module]:
        """A denoiser's blocks in order. A ControlNet has only some of the lists."""
        lists = (getattr(model, name, ()) for name in self.blocks)
        return [block for blocks in lists for block in blocks]


def iterate_parameters_and_buffers(module: nn.Module, recurse: bool = True) -> Iterator[torch.Tensor]:
    """A module's parameters and buffers; without `recurse` only its own."""
    yield from module.parameters(recurse)
    yield from module.buffers(recurse)


def move_except(module: nn.Module, streamed: Collection[int], device: torch.device) -> None:
    """Move a module to `device`, except submodules with streamed tensors, given by `id`.

    Modules move by their own `to`: quantized weights have more than `.data`, such as scales in tensors of their own.
    """
    if all(id(tensor) not in streamed for tensor in iterate_parameters_and_buffers(module)):
        module.to(device)
        return
    for child in module.children():
        move_except(child, streamed, device)
    if all(id(tensor) not in streamed for tensor in iterate_parameters_and_buffers(module, recurse=False)):
        module._apply(lambda tensor: tensor.to(device), recurse=False)


def realign_storage(model: nn.Module) -> None:
    """Copy weights at unaligned addresses, as in a memory-mapped file: sums over them would be computed in another
    order than over aligned weights, and differ in the last bits."""
    for tensor in iterate_parameters_and_buffers(model):
        for plain in iterate_plain_tensors(tensor):
            if plain.device.type == "cpu" and plain.data_ptr() % ALIGNMENT:
                plain.data = plain.data.clone()


def detach_from_mmap(model: nn.Module) -> None:
    """Copy weights out of the memory-mapped file that they share with others, so that the file can be unmapped."""
    for tensor in iterate_parameters_and_buffers(model):
        for plain in iterate_plain_tensors(tensor):
            if plain.device.type == "cpu" and plain.untyped_storage().nbytes() > plain.nbytes:
                plain.data = plain.data.clone()


def pick_spread_blocks(blocks: Sequence[Block], count: int) -> list[Block]:
    """Pick `count` blocks, spread evenly so that each copy has the most time.

    Raises ConfigError if no block would be left on the device.
    """
    if count >= len(blocks):
        problem = f"The network has {len(blocks)} blocks, and one at least has to stay."
        raise ConfigError(SWAP, count, "", problem, f"Choose {len(blocks) - 1} or less.")
    return [blocks[(i + 1) * len(blocks) // count - 1] for i in range(count)]


def _exclude_first(model: nn.Module, layers: list[nn.Module]) -> list[nn.Module]:
    """The layers except the one with the model's first parameter, whose device diffusers takes as the model's."""
    first = next(model.parameters())
    return [layer for layer in layers if all(p is not first for p in layer.parameters())]


def _make_folder(path: str | None, number: int) -> Path | None:
    """Create a folder for a streamer's weights. Raises ConfigError if that fails."""
    if not path:
        return None
    folder = Path(path).expanduser() / f"stream_{os.getpid()}_{number}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        problem = f"Nothing can be written there: {cause.strerror}."
        raise ConfigError("group_offload_to_disk_path", path, "", problem, "Choose another folder.") from cause
    return folder
