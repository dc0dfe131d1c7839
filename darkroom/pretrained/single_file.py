"""Load one component from a safetensors or GGUF file, or a set of shards, in the names of diffusers or original ones.

The header is checked first: keys and shapes go through the layout's conversion on the meta device, so a wrong file is
found within a second; `validate_file` does no more than that. Only then are weights read.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from darkroom.families.shared.classes import find_class, short_class_name
from darkroom.pretrained import gguf
from darkroom.pretrained.gguf import is_gguf
from darkroom.pretrained.layouts import ADAPTER, LAYOUTS, QUANTIZED, Layout, find_layout, guess_content
from darkroom.pretrained.weight_files import Misfit, State, join_names, read, read_header

if TYPE_CHECKING:
    from diffusers import ModelMixin
    from torch.nn import Module

    from darkroom.families.shared.types import Settings

# key prefixes of a component in whole checkpoints; a file of one component may have them too
PREFIXES = {
    "denoiser": ("model.diffusion_model.", "diffusion_model.", "net."),
    "vae": ("first_stage_model.", "vae."),
    "text": ("text_encoders.t5xxl.transformer.",),
}
# prefixes of all keys, from a wrapper that was saved with the model
WRAPPERS = ("model.", "module.", "transformer.")
# keys of text encoders that diffusers' pipelines read from a whole checkpoint
BUNDLED_TEXT = r"cond_stage_model\.|conditioner\.embedders\.|text_encoders\.(clip_[lg]|t5xxl)\."
# keys in text encoder files that the class does not have: the other half of a model, a tokenizer
UNUSED_TEXT_KEYS = (
    r"lm_head\.|decoder\.|(.*\.)?(visual|vision_model|vision_tower|multi_modal_projector)\.|logit_scale"
    r"|spiece_model|tekken_model|(text|visual)_projection\."
)


@dataclasses.dataclass(frozen=True)
class ExpectedComponent:
    """The component that a file must hold.

    title     for messages, as in "the VAE of FLUX.1"
    role      selects the key prefixes; cls: the class by name
    settings  reads config.json, perhaps from the hub: called only for files that may be right
    """

    title: str
    role: Literal["denoiser", "vae", "text"]
    cls: str
    settings: Callable[[], Settings]

    @functools.cached_property
    def config(self) -> Settings:
        """Its config.json."""
        return self.settings()

    @property
    def requirement(self) -> str:
        """What a file must be, as a sentence."""
        titles = [layout.title for layout in LAYOUTS.get(self.cls, ())]
        library = "transformers" if self.role == "text" else "diffusers"
        names = " or ".join([f"with the names of {library}", *titles])
        return f"{self.title} needs the weights of {short_class_name(self.cls)}: {names}"


def find_bundled_components(path: Path) -> frozenset[str]:
    """What a file holds besides a denoiser: "vae", "text". Raises Misfit."""
    if is_gguf(path):
        return frozenset()
    keys = list(read_header(path))
    text = {"text"} if any(re.match(BUNDLED_TEXT, key) for key in keys) else set()
    vae = {"vae"} if any(key.startswith(PREFIXES["vae"]) for key in keys) else set()
    return frozenset(text | vae)


# -- fitting -----------------------------------------------------------------------------------------------------------


def select_keys(role: str, keys: Collection[str]) -> dict[str, str]:
    """The keys of one component in a file, each with its name below the component's prefix."""
    for prefix in PREFIXES[role]:
        if below := [key for key in keys if key.startswith(prefix)]:
            return {key: key.removeprefix(prefix) for key in below}
    if role != "text":  # transformers knows its own prefixes
        for prefix in WRAPPERS:
            if all(key.startswith(prefix) for key in keys):
                return {key: key.removeprefix(prefix) for key in keys}
    return {key: key for key in keys}


def read_shapes(path: Path) -> State:
    """The tensors of a file or set of shards on the meta device. Raises Misfit."""
    return gguf.read_header(path) if is_gguf(path) else read_header(path)


def validate_file(expected: ExpectedComponent, path: Path) -> None:
    """Check that `load` would work. Reads only the header. Raises Misfit."""
    tensors = read_shapes(path)
    reject_other_content(expected, path, tensors)
    if expected.role != "text":
        fit(expected, path, tensors)


def reject_other_content(expected: ExpectedComponent, path: Path, keys: Collection[str]) -> None:
    """Raises Misfit for a file with other content: an adapter, quantized weights, another component."""
    change = f"{expected.requirement}. Give such a file, or a folder or hub id in the diffusers layout."
    if is_gguf(path) and expected.role != "denoiser":
        raise Misfit(path, "It is a GGUF file, of which only denoisers are read.", change)
    if any(re.match(QUANTIZED, key) for key in keys):
        raise Misfit(
            path, "It is a quantised file, whose weights come with scales; training needs unquantized weights.", change
        )
    if any(re.match(ADAPTER, key) for key in keys):
        raise Misfit(
            path,
            "It is a LoRA or another adapter, not a model.",
            f"{change} To continue from an adapter, set init_lora.",
        )
    guess = guess_content(keys)
    if expected.role == "text" and guess and not re.search("text encoder|language model|image encoder", guess):
        raise Misfit(path, f"It seems to be {guess}.", change)


def fit(expected: ExpectedComponent, path: Path, tensors: State) -> tuple[ModelMixin, Layout | None]:
    """The model on the meta device and the layout of the file, if names and shapes match. Raises Misfit."""
    below = select_keys(expected.role, tensors)
    layout = find_layout(expected.cls, below.values())
    model = build_empty(expected.cls, {**expected.config, **(layout.implied_config if layout else {})})
    state = {name: tensors[key] for key, name in below.items()}
    try:
        converted = layout.convert(state, model.config) if layout else state
    except (KeyError, IndexError, RuntimeError, ValueError) as cause:
        raise make_misfit(
            expected, path, tensors, f"Converting it stopped at {type(cause).__name__}: {cause}."
        ) from cause
    problem = compare(model.state_dict(), converted, model)
    if problem:
        raise make_misfit(expected, path, tensors, problem)
    return model, layout


def compare(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], model: Module | None = None) -> str:
    """How tensors differ in names and shapes from the expected ones, as a sentence; empty if they match."""
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    extra = [key for key in actual if key not in expected and not any(re.search(p, key) for p in ignored)]
    shapes = [
        f"{key} {list(actual[key].shape)} instead of {list(tensor.shape)}"
        for key, tensor in expected.items()
        if key in actual and actual[key].shape != tensor.shape
    ]
    return describe_differences([key for key in expected if key not in actual], extra, shapes, len(expected))


def describe_differences(missing: list[str], extra: list[str], shapes: list[str], count: int) -> str:
    """Counts and first names as a sentence; empty without differences."""
    sentences = [f"missing {len(missing)} of {count} ({join_names(missing)})" if missing else ""]
    sentences += [f"unknown {len(extra)} ({join_names(extra)})" if extra else ""]
    sentences += [f"of another shape {len(shapes)} ({join_names(shapes)})" if shapes else ""]
    text = "; ".join(part for part in sentences if part)
    return f"Its tensors differ: {text}." if text else ""


def make_misfit(expected: ExpectedComponent, path: Path, keys: Collection[str], difference: str) -> Misfit:
    """The error for a file that does not match: what it seems to be, how it differs, what was expected."""
    guess = guess_content(keys)
    seemed = f"It seems to be {guess}" if guess else "It is nothing that Darkroom knows by its names"
    return Misfit(
        path,
        f"{seemed}, with {len(keys)} tensors. {difference}",
        f"{expected.requirement}, in the sizes of the chosen model_flavour. Choose the flavour of the file, or "
        "another file.",
    )


# -- loading -----------------------------------------------------------------------------------------------------------


def load(expected: ExpectedComponent, path: Path, dtype: torch.dtype) -> Module:
    """The component with the file's weights, on the CPU, in eval mode. Raises Misfit."""
    tensors = read_shapes(path)
    reject_other_content(expected, path, tensors)
    if expected.role == "text":
        return _load_text(expected, path, tensors, dtype)
    model, layout = fit(expected, path, tensors)
    state = (gguf.read if is_gguf(path) else read)(path, select_keys(expected.role, tensors))
    if layout:
        state = layout.convert(state, model.config)
    parameters = model.state_dict()
    state = {key: tensor for key, tensor in state.items() if key in parameters}
    if is_gguf(path):
        return gguf.fill(model, state, dtype).eval()
    model.load_state_dict(cast(state, dtype, getattr(model, "_keep_in_fp32_modules", None)), assign=True)
    return model.eval()


def _load_text(expected: ExpectedComponent, path: Path, tensors: State, dtype: torch.dtype) -> Module:
    """Load with transformers, which knows the older key names and the tied weights of its models."""
    cls = find_class(expected.cls)
    state = read(path, select_keys("text", tensors))
    if layout := find_layout(expected.cls, state):
        state = layout.convert(state, expected.config)
    config = cls.config_class.from_dict(drop_quantization(expected.config))
    model, report = cls.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True
    )
    extra = [key for key in sorted(report["unexpected_keys"]) if not re.match(UNUSED_TEXT_KEYS, key)]
    shapes = [
        f"{key} {list(shape)} instead of {list(expected_shape)}"
        for key, shape, expected_shape in sorted(report["mismatched_keys"])
    ]
    text = describe_differences(sorted(report["missing_keys"]), extra, shapes, len(model.state_dict()))
    if text:
        raise make_misfit(expected, path, tensors, text)
    return model.eval()


def build_empty(cls: str, config: Mapping[str, object]) -> ModelMixin:
    """A model with parameters on the meta device and real buffers."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return find_class(cls).from_config(drop_quantization(config))


def build_shapes(cls: str, config: Mapping[str, object]) -> Module:
    """A model with parameters and buffers on the meta device, for counting."""
    with torch.device("meta"):
        return find_class(cls).from_config(drop_quantization(config))


def drop_quantization(config: Mapping[str, object]) -> Settings:
    """A config without quantization settings: files are read unquantized here."""
    return {key: value for key, value in config.items() if key != "quantization_config"}


def cast(state: State, dtype: torch.dtype, in_float32: Iterable[str] | None) -> State:
    """Cast weights to `dtype`, except modules that the class keeps in float32, as diffusers does."""
    precise = set(in_float32 or ())

    def of(key: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(torch.float32 if precise & set(key.split(".")) else dtype).contiguous()

    return {key: of(key, tensor) for key, tensor in state.items()}
