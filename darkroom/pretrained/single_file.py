"""One part of a model out of one safetensors or GGUF file, or a set that was split, in its own or an original layout.

The header is fitted first: keys and shapes go through the layout's conversion as tensors without data, so that a wrong
file is told from a right one in a second, and `check` needs no more than that. Only then are weights read.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from darkroom.families.shared.classes import named, short
from darkroom.pretrained import gguf
from darkroom.pretrained.gguf import is_gguf
from darkroom.pretrained.layouts import ADAPTER, LAYOUTS, QUANTISED, Layout, layout_of, seems
from darkroom.pretrained.weight_files import Misfit, State, header, read, some

# where whole checkpoints keep a part; a file of one part may have the prefix too
PREFIXES = {
    "denoiser": ("model.diffusion_model.", "diffusion_model.", "net."),
    "vae": ("first_stage_model.", "vae."),
    "text": ("text_encoders.t5xxl.transformer.",),
}
# around everything in a file, from whoever saved it
WRAPPERS = ("model.", "module.", "transformer.")
# text encoders that diffusers' pipelines take out of a whole checkpoint
TEXT_INSIDE = r"cond_stage_model\.|conditioner\.embedders\.|text_encoders\.(clip_[lg]|t5xxl)\."
# what files of text encoders hold that a family's class has not: other halves of a model, a tokenizer
BESIDE_TEXT = (
    r"lm_head\.|decoder\.|(.*\.)?(visual|vision_model|vision_tower|multi_modal_projector)\.|logit_scale"
    r"|spiece_model|tekken_model|(text|visual)_projection\."
)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The part that a file is to give.

    title     for messages, as in "the VAE of FLUX.1"
    kind      which prefixes it may have; cls: its class by name
    settings  reads its config.json, perhaps from the hub: asked only of files that may be right
    """

    title: str
    kind: Literal["denoiser", "vae", "text"]
    cls: str
    settings: Callable[[], Mapping[str, Any]]

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:
        """Its config.json."""
        return self.settings()

    @property
    def needed(self) -> str:
        """What a file has to be."""
        titles = [layout.title for layout in LAYOUTS.get(self.cls, ())]
        library = "transformers" if self.kind == "text" else "diffusers"
        names = " or ".join([f"with the names of {library}", *titles])
        return f"{self.title} needs the weights of {short(self.cls)}: {names}"


def inside(path: Path) -> frozenset[str]:
    """What else than a denoiser a file holds: "vae", "text". Raises Misfit."""
    if is_gguf(path):
        return frozenset()
    keys = list(header(path))
    text = {"text"} if any(re.match(TEXT_INSIDE, key) for key in keys) else set()
    vae = {"vae"} if any(key.startswith(PREFIXES["vae"]) for key in keys) else set()
    return frozenset(text | vae)


# -- fitting -----------------------------------------------------------------------------------------------------------


def own_keys(kind: str, keys: Collection[str]) -> dict[str, str]:
    """Of a file's keys those of one part, each with its name below the prefix that the part has in the file."""
    for prefix in PREFIXES[kind]:
        if below := [key for key in keys if key.startswith(prefix)]:
            return {key: key.removeprefix(prefix) for key in below}
    if kind != "text":  # transformers knows its own prefixes
        for prefix in WRAPPERS:
            if all(key.startswith(prefix) for key in keys):
                return {key: key.removeprefix(prefix) for key in keys}
    return {key: key for key in keys}


def tensors(path: Path) -> State:
    """The tensors of a file or set with their shapes and without data. Raises Misfit."""
    return gguf.header(path) if is_gguf(path) else header(path)


def check(wanted: Wanted, path: Path) -> None:
    """Would `load` find what it needs? Reads the header only. Raises Misfit."""
    found = tensors(path)
    refuse(wanted, path, found)
    if wanted.kind != "text":
        fit(wanted, path, found)


def refuse(wanted: Wanted, path: Path, keys: Collection[str]) -> None:
    """Raises Misfit for a file that is something else whatever its shapes: an adapter, quantised, of another kind."""
    change = f"{wanted.needed}. Give such a file, or a folder or hub id in the diffusers layout."
    if is_gguf(path) and wanted.kind != "denoiser":
        raise Misfit(path, "It is a GGUF file, of which only denoisers are read.", change)
    if any(re.match(QUANTISED, key) for key in keys):
        raise Misfit(path, "It is a quantised file, whose weights come with scales; training needs plain ones.", change)
    if any(re.match(ADAPTER, key) for key in keys):
        raise Misfit(
            path,
            "It is a LoRA or another adapter, which changes a model and is none.",
            f"{change} An adapter to go on from belongs into init_lora.",
        )
    seeming = seems(keys)
    if wanted.kind == "text" and seeming and not re.search("text encoder|language model|image encoder", seeming):
        raise Misfit(path, f"It seems to be {seeming}.", change)


def fit(wanted: Wanted, path: Path, found: State) -> tuple[Any, Layout | None]:
    """The model, without data, that a header fits, and the header's layout. Raises Misfit."""
    below = own_keys(wanted.kind, found)
    layout = layout_of(wanted.cls, below.values())
    model = empty(wanted.cls, {**wanted.config, **(layout.shows if layout else {})})
    state = {name: found[key] for key, name in below.items()}
    try:
        converted = layout.convert(state, model.config) if layout else state
    except (KeyError, IndexError, RuntimeError, ValueError) as cause:
        raise misfit(wanted, path, found, f"Converting it stopped at {type(cause).__name__}: {cause}.") from cause
    differences = compare(model.state_dict(), converted, model)
    if differences:
        raise misfit(wanted, path, found, differences)
    return model, layout


def compare(needed: Mapping[str, Tensor], given: Mapping[str, Tensor], model: Any = None) -> str:
    """How tensors differ in names and shapes from what is needed, in a sentence; empty if they do not."""
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    extra = [key for key in given if key not in needed and not any(re.search(p, key) for p in ignored)]
    shapes = [
        f"{key} {list(given[key].shape)} instead of {list(tensor.shape)}"
        for key, tensor in needed.items()
        if key in given and given[key].shape != tensor.shape
    ]
    return differences([key for key in needed if key not in given], extra, shapes, len(needed))


def differences(missing: list[str], extra: list[str], shapes: list[str], count: int) -> str:
    """Counts and first names; empty without any."""
    said = [f"missing {len(missing)} of {count} ({some(missing)})" if missing else ""]
    said += [f"unknown {len(extra)} ({some(extra)})" if extra else ""]
    said += [f"of another shape {len(shapes)} ({some(shapes)})" if shapes else ""]
    text = "; ".join(part for part in said if part)
    return f"Its tensors differ: {text}." if text else ""


def misfit(wanted: Wanted, path: Path, keys: Collection[str], what: str) -> Misfit:
    """The error for a file that does not fit: what it seems to be, how it differs, what was expected."""
    seeming = seems(keys)
    seemed = f"It seems to be {seeming}" if seeming else "It is nothing that Darkroom knows by its names"
    return Misfit(
        path,
        f"{seemed}, with {len(keys)} tensors. {what}",
        f"{wanted.needed}, in the sizes of the chosen model_flavour. Choose the flavour that the file is of, or give "
        "another file.",
    )


# -- loading -----------------------------------------------------------------------------------------------------------


def load(wanted: Wanted, path: Path, dtype: torch.dtype) -> Any:
    """The part with the file's weights, on the CPU, ready to be used. Raises Misfit."""
    found = tensors(path)
    refuse(wanted, path, found)
    if wanted.kind == "text":
        return _load_text(wanted, path, found, dtype)
    model, layout = fit(wanted, path, found)
    state = (gguf.read if is_gguf(path) else read)(path, own_keys(wanted.kind, found))
    if layout:
        state = layout.convert(state, model.config)
    needed = model.state_dict()
    state = {key: tensor for key, tensor in state.items() if key in needed}
    if is_gguf(path):
        return gguf.fill(model, state, dtype).eval()
    model.load_state_dict(cast(state, dtype, getattr(model, "_keep_in_fp32_modules", None)), assign=True)
    return model.eval()


def _load_text(wanted: Wanted, path: Path, found: State, dtype: torch.dtype) -> Any:
    """By transformers, which knows the older names of its models and which of their weights are one."""
    cls = named(wanted.cls)
    state = read(path, own_keys("text", found))
    if layout := layout_of(wanted.cls, state):
        state = layout.convert(state, wanted.config)
    config = cls.config_class.from_dict(plain(wanted.config))
    model, report = cls.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True
    )
    extra = [key for key in sorted(report["unexpected_keys"]) if not re.match(BESIDE_TEXT, key)]
    shapes = [f"{key} {list(own)} instead of {list(need)}" for key, own, need in sorted(report["mismatched_keys"])]
    text = differences(sorted(report["missing_keys"]), extra, shapes, len(model.state_dict()))
    if text:
        raise misfit(wanted, path, found, text)
    return model.eval()


def empty(cls: str, config: Mapping[str, Any]) -> Any:
    """A model without data for its weights; buffers that no file holds are computed as ever."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return named(cls).from_config(plain(config))


def shapes(cls: str, config: Mapping[str, Any]) -> Any:
    """A model without data for its weights or its buffers: it can be counted, and no more."""
    with torch.device("meta"):
        return named(cls).from_config(plain(config))


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those of a quantised copy: what a file holds here is not quantised."""
    return {key: value for key, value in config.items() if key != "quantization_config"}


def cast(state: State, dtype: torch.dtype, in_float32: Iterable[str] | None) -> State:
    """Weights in a precision, but for those of modules that the class keeps in float32, as diffusers does it."""
    precise = set(in_float32 or ())

    def of(key: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(torch.float32 if precise & set(key.split(".")) else dtype).contiguous()

    return {key: of(key, tensor) for key, tensor in state.items()}
