"""The skeleton of a family, written from a stock pipeline's own signatures.

    darkroom dev new-family MochiPipeline

writes `darkroom/families/NAME.py` and `tests/families/faults/NAME.py`. What the classes say of themselves is filled in:
components, latent channels, patch, blocks, layers for adapters, arguments. What only the paper, the model card or the
pipeline's code says is marked with FILL IN, and the tests of families fail until it is right.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, get_type_hints

from darkroom.core.errors import missing_option
from darkroom.core.files import write_text
from darkroom.core.registry import find_nearest

if TYPE_CHECKING:
    from diffusers import ModelMixin

COMMAND, FILL = "new-family", "FILL IN"
# the layers that adapters of other families go to, as diffusers calls them
ADAPTED = ("to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")
# arguments of a pipeline's call that are given for every family, or never
COMMON_ARGUMENTS = frozenset({
    "height", "width", "num_inference_steps", "timesteps", "sigmas", "num_images_per_prompt", "eta",
    "num_videos_per_prompt", "generator", "latents", "output_type", "return_dict", "attention_kwargs",
    "callback_on_step_end", "callback_on_step_end_tensor_inputs",
})  # fmt: skip
CALL = {
    "guidance_scale": "options.validation_guidance",
    "max_sequence_length": "options.tokenizer_max_length",
    "num_frames": "self.spec.clip_frames(options)",
}
FORWARD = {"hidden_states": "x_t", "timestep": "t.float() * 1000", "return_dict": "False"}
# an option's default, from the default of an argument of the pipeline's call
DEFAULTS = {
    "tokenizer_max_length": "max_sequence_length",
    "validation_guidance": "guidance_scale",
    "validation_num_inference_steps": "num_inference_steps",
    "validation_num_video_frames": "num_frames",
}
LONGEST = 60  # characters of a default that is worth repeating

FAMILY = Template('''"""$title: $fill: what its network is, what reads text for it, which autoencoder it has.

$fill: paper; upstream repository. The network takes the noise level as 0..1000 and answers noise - x0.
Shapes: latents (B, $channels, ${frames}H, W); text (B, L, D).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from darkroom.families.base import Family
from darkroom.families.shared.spec import ComponentSpec, ComponentSpecs, Flavour, Latents
from darkroom.families.shared.text import encode_prompt

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor

    from darkroom.options.config import Config


class $title(Family):
    name, title = "$name", "$title"
    pipeline, denoiser = "$pipeline", "$denoiser"
    denoiser_component = "$denoiser_component"
    prediction = "$prediction"
    # $fill: pixels, and frames, for one latent, and how the VAE's output becomes one
    latents = Latents($latents)
    blocks = $blocks$video
    # $fill: what the published networks have other than their classes' defaults
    sizes = {"": {}}
    default_flavour = "base"
    flavours = {"base": Flavour("$fill: owner/repository")}
    # $fill: as the model card has them
    defaults = {
$defaults
    }
    targets = {"default": $targets}
    # $fill: small numbers in place of the classes' defaults, and two layers of each kind of block
    tiny = ComponentSpecs(
        denoiser=ComponentSpec(
            "$denoiser",
            {
$network
            },
        ),
        vae=ComponentSpec(
            "$vae",
            {
$vae_settings
            },
        ),
        # a builder of `families.tiny.components` for each, or a ComponentSpec
        encoders={$encoders},
        # each by its name in `families.tiny.tokenizers`
        tokenizers={$tokenizers},
        scheduler=ComponentSpec("$scheduler", {}),
    )

    def count_text_values(self, configs: Mapping[str, Mapping[str, object]], options: Config) -> int:
        # $fill: the numbers of one caption's entry in the cache
        return options.tokenizer_max_length * configs["text_encoder"]["hidden_size"]

    def encode_text(self, pipe: DiffusionPipeline, captions: list[str], options: Config) -> dict[str, Tensor]:
        """text (B, L, D)."""
        # $fill: what encode_prompt answers; its arguments are
$encode_prompt
        text, *_ = encode_prompt(pipe, captions, options)
        return {"text": text}

    def predict(self, model: Any, x_t: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """$fill: what is answered, as x_t. The sign, and the scale and direction of times, are converted here."""
        return model(
$forward
        )[0]

    def pipeline_kwargs(self, options: Config) -> dict[str, object]:
        # $fill: what else it needs of
$others
        return {$call}


FAMILY = $title
''')

FAULTS = Template("""from tests.families.faults.kit import Fault, predict, text

FAULTS = [
    Fault("sign of the answer", "$name", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "$name", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "$name", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("latent scale", "$name", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("dropped leading tokens", "$name", "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
]
""")


def write(pipeline: str, root: Path, name: str = "") -> list[Path]:
    """Write the skeleton below the checkout `root` and return its files.

    Raises ConfigError for a class that diffusers does not have, a name that is taken, or a folder that is no checkout.
    """
    title = pipeline.removesuffix("Pipeline")
    name = name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", title).lower()
    files = [root / "darkroom" / "families" / f"{name}.py", root / "tests" / "families" / "faults" / f"{name}.py"]
    for file in files:
        if not file.parent.is_dir():
            raise missing_option(COMMAND, f"There is no folder '{file.parent}'.", "Give a checkout with --root.")
        if file.exists():
            raise missing_option(COMMAND, f"'{file}' is there already.", "Give another name with --name.")
    for file, text in zip(files, (format_family(Pipeline(pipeline), name, title), format_faults(name)), strict=True):
        write_text(file, text)
    return files


def format_family(stock: Pipeline, name: str, title: str) -> str:
    """The text of the family's file. Raises ConfigError as `Pipeline` does."""
    network = stock.network
    config = {key: value for key, value in network.config.items() if not key.startswith("_")}
    video = f'\n    # {FILL}\n    fps = 24.0\n    supports = Family.supports | {{"video"}}' if stock.is_video else ""
    return FAMILY.substitute(
        fill=FILL,
        name=name,
        title=title,
        pipeline=stock.cls.__name__,
        channels=config.get("in_channels"),
        frames="F, " * stock.is_video,
        denoiser=type(network).__name__,
        denoiser_component=stock.denoiser,
        prediction="flow_matching" if stock.class_of("scheduler").startswith("FlowMatch") else "epsilon",
        latents=stock.latents(),
        blocks=_quote(stock.blocks()),
        video=video,
        defaults=_lines(8, (f'"{key}": {value},' for key, value in stock.defaults().items())),
        targets=_quote(stock.targets()),
        network=_settings(config),
        vae=stock.class_of("vae"),
        vae_settings=_settings(_defaults_of(stock.components["vae"])) if "vae" in stock.components else "",
        encoders=", ".join(
            f'"{key}": ComponentSpec("{stock.class_of(key)}", {{}})' for key in stock.named("text_encoder")
        ),
        tokenizers=", ".join(f'"{key}": "{FILL}"' for key in stock.named("tokenizer")),
        scheduler=stock.class_of("scheduler"),
        encode_prompt=_comment(stock.parameters("encode_prompt")),
        forward=_lines(12, stock.forward()),
        others=_comment(stock.own_arguments()),
        call=", ".join(f'"{key}": {CALL[key]}' for key in stock.own_arguments() if key in CALL),
    )


def format_faults(name: str) -> str:
    """The text of its faults file. The faults that one of the checks has to notice: at least sign, time and scale."""
    return FAULTS.substitute(name=name)


class Pipeline:
    """What a pipeline class of diffusers says of itself.

    Raises ConfigError with the nearest names if there is no such class, or if its network cannot be built.
    """

    def __init__(self, name: str) -> None:
        import diffusers

        cls = getattr(diffusers, name, None)
        if not inspect.isclass(cls) or not issubclass(cls, diffusers.DiffusionPipeline):
            hint = find_nearest(name, [each for each in dir(diffusers) if each.endswith("Pipeline")])
            remedy = f"Did you mean {' or '.join(hint)}?" if hint else "Give the name of one of its pipeline classes."
            raise missing_option(COMMAND, f"diffusers has no pipeline {name}.", remedy)
        self.cls = cls
        # of a choice of classes, and of one that may be absent, the first
        hints = {
            key: next(iter([*getattr(hint, "__args__", ()), hint]))
            for key, hint in get_type_hints(cls.__init__).items()
        }
        self.components: dict[str, type] = {
            key: hint for key, hint in hints.items() if inspect.isclass(hint) and hint.__module__ != "builtins"
        }
        self.is_video = "num_frames" in self.parameters("__call__")
        networks = [key for key, hint in self.components.items() if issubclass(hint, diffusers.ModelMixin)]
        self.denoiser = next((key for key in ("transformer", "unet", "prior", *networks) if key in networks), "")
        self.network = self._build_network()

    def _build_network(self) -> ModelMixin:
        """The denoiser with its class's default settings and without weights."""
        import torch

        if not self.denoiser:
            problem = f"{self.cls.__name__} has no network of diffusers."
            raise missing_option(COMMAND, problem, "Copy the file of a family that is like it.")
        cls = self.components[self.denoiser]
        try:
            with torch.device("meta"):
                return cls()
        except (TypeError, ValueError, AssertionError, AttributeError) as cause:
            problem = f"{cls.__name__} cannot be built from the defaults of its class: {cause}."
            raise missing_option(COMMAND, problem, "Copy the file of a family that is like it.") from cause

    def class_of(self, component: str) -> str:
        """The name of a component's class."""
        return self.components[component].__name__ if component in self.components else FILL

    def named(self, prefix: str) -> list[str]:
        """The components whose names begin so."""
        return [key for key in self.components if key.startswith(prefix)]

    def parameters(self, method: str) -> dict[str, inspect.Parameter]:
        """The arguments of a method."""
        function = getattr(self.cls, method, None)
        takes = {} if function is None else inspect.signature(function).parameters
        return {key: parameter for key, parameter in takes.items() if key != "self"}

    def own_arguments(self) -> list[str]:
        """The arguments of its call that not every family has."""
        return [key for key in self.parameters("__call__") if key not in COMMON_ARGUMENTS and "prompt" not in key]

    def defaults(self) -> dict[str, str]:
        """Defaults of options."""
        takes = self.parameters("__call__")
        own = {option: repr(takes[key].default) for option, key in DEFAULTS.items() if key in takes}
        return {"resolution": "1024", "validation_resolution": '"1024"', **own}

    def latents(self) -> str:
        """The facts about its latents, as arguments."""
        patch = self.network.config.get("patch_size", 1)
        patch = patch[-1] if isinstance(patch, (tuple, list)) else patch
        has_statistics = "vae" in self.components and "latents_mean" in _defaults_of(self.components["vae"])
        facts = [f"channels={self.network.config.get('in_channels')}", "downscale=8", f"patch={patch}"]
        facts.append(f'normalizer="{"channels" if has_statistics else "scale"}"')
        return ", ".join([*facts, "temporal=4"] if self.is_video else facts)

    def blocks(self) -> list[str]:
        """Its network's lists of blocks."""
        from torch.nn import ModuleList

        return [key for key, child in self.network.named_children() if isinstance(child, ModuleList) and len(child) > 1]

    def targets(self) -> list[str]:
        """The layers that adapters usually go to."""
        names = [name for name, _ in self.network.named_modules()]
        return [layer for layer in ADAPTED if any(name.endswith(f".{layer}") for name in names)]

    def forward(self) -> list[str]:
        """The arguments of its network's call."""
        lines = []
        for key, parameter in inspect.signature(type(self.network).forward).parameters.items():
            if key in FORWARD:
                lines.append(f"{key}={FORWARD[key]},")
            elif key != "self" and (parameter.default is inspect.Parameter.empty or key.startswith("encoder_")):
                lines.append(f'{key}=cond["{"mask" if "mask" in key else "text"}"],')
        return lines


def _defaults_of(cls: type) -> dict[str, object]:
    takes = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    return {each.name: each.default for each in takes if each.default is not inspect.Parameter.empty}


def _settings(settings: Mapping[str, object]) -> str:
    return _lines(16, (f'"{key}": {_quote(value)},' for key, value in settings.items() if len(repr(value)) <= LONGEST))


def _lines(indent: int, lines: Iterable[str]) -> str:
    return "\n".join(" " * indent + line for line in lines)


def _comment(words: Iterable[str]) -> str:
    return textwrap.indent(textwrap.fill(", ".join(words) or "nothing", 100), "        # ")


def _quote(value: object) -> str:
    return repr(tuple(value) if isinstance(value, list) else value).replace("'", '"')
