"""What each given option of musubi-tuner becomes: the rows of `options.py`, and those whose value decides.

    translate({"network_dim": 32, "optimizer_type": "adamw8bit"}, find_script("wan_train_network"))

Values have the types of `arguments.read_value`. A method of `_Translation` that has an option's name answers for it.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence

from darkroom.core.errors import ConfigError
from darkroom.options.imports.musubi.architectures import (
    FINETUNE,
    TRAIN,
    Architecture,
    Script,
    by_family,
    recognize,
)
from darkroom.options.imports.musubi.arguments import parse_assignments
from darkroom.options.imports.musubi.optimizers import choose_optimizer
from darkroom.options.imports.musubi.options import OPTIONS, split_words
from darkroom.options.imports.report import ImportedKey, Verdict
from darkroom.options.optimizer import literal

Settings = Mapping[str, object]
_DTYPES = {"fp32": "fp32", "float32": "fp32", "float": "fp32", "fp16": "fp16", "float16": "fp16",
           "bf16": "bf16", "bfloat16": "bf16"}  # fmt: skip
_KERNELS = (
    ("sdpa", "diffusers"),
    ("flash_attn", "flash-attn"),
    ("sage_attn", "sageattention"),
    ("xformers", "xformers"),
    ("flash3", "flash-attn-3"),
)
_ATTENTION_MODES = {"torch": "diffusers", "sdpa": "diffusers", "flash": "flash-attn", "flash2": "flash-attn-2",
                    "flash3": "flash-attn-3", "sageattn": "sageattention", "xformers": "xformers"}  # fmt: skip
SHARED = frozenset(
    {"gradient_checkpointing", "lr_decay_steps", "learning_rate", "lr_scheduler", "max_train_steps", "logging_dir"}
)
"""Options of the same name that are read beside others of musubi-tuner's, or mean more there."""
MARKERS = frozenset(
    split_words(
        """
    network_module network_dim network_alpha network_args sdpa dit optimizer_type optimizer_args discrete_flow_shift
    max_train_epochs save_every_n_epochs output_name task model_version
    """
    )
)
"""Options by which a config is recognized as musubi-tuner's; the others are read in any config."""
MODEL = "model"
"""The key under which a report says which family and flavour are trained."""


def translate(values: Mapping[str, object], script: Script | None = None, family: str = "") -> list[ImportedKey]:
    """One row per option that was given, and first one for the model.

    script  the script that they were given to; None for a config that does not name it
    family  Darkroom's family where the user chose it
    """
    architecture = script.architecture if script else by_family(family) if family else recognize(values)
    return _Translation(values, architecture, script.job if script else TRAIN).run(family)


class _Translation:
    def __init__(self, values: Mapping[str, object], architecture: Architecture | None, job: str):
        self.values, self.architecture, self.job = values, architecture, job

    def run(self, family: str) -> list[ImportedKey]:
        rows = [] if family else self._model()
        for name, value in self.values.items():
            rows += self._translate(name, value)
        return rows

    def _translate(self, name: str, value: object) -> Sequence[ImportedKey]:
        option = OPTIONS[name]
        if option.kind == "switch" and value is False and name != "cuda_allow_tf32":
            return [ImportedKey(name, value, Verdict.EXACT, {}, "off, as it is anyway")]
        method = getattr(self, f"_{name}", None)
        if method is not None:
            rows = method(value)
            return rows if isinstance(rows, list) else [rows]
        if option.to and option.verdict is not Verdict.NOT_OFFERED:
            return [ImportedKey(name, value, option.verdict, {option.to: value}, option.remark)]
        return [ImportedKey(name, value, option.verdict, {}, option.remark, option.trains)]

    def _set(self, name: str, settings: Settings, remark: str = "", exact: bool = True) -> ImportedKey:
        return ImportedKey(
            name, self.values.get(name), Verdict.EXACT if exact else Verdict.APPROXIMATED, settings, remark
        )

    def _refuse(self, name: str, remark: str, trains: bool = True) -> ImportedKey:
        return ImportedKey(name, self.values.get(name), Verdict.NOT_OFFERED, {}, remark, trains)

    # -- model ---------------------------------------------------------------------------------

    def _model(self) -> list[ImportedKey]:
        """Family and flavour, and for a LoRA the layers that musubi-tuner adapts."""
        architecture = self.architecture
        if architecture is None:
            return []
        kind = "full" if self.job == FINETUNE else "lora"
        chosen = architecture.choose(self.values)
        if not architecture.family or chosen is None:
            reason = architecture.reason or "this task has no flavour here; `darkroom families` lists those there are"
            return [ImportedKey(MODEL, architecture.title, Verdict.NOT_OFFERED, {}, reason, trains=True)]
        family, flavour = chosen
        settings: dict[str, object] = {"model_family": family, "model_flavour": flavour.name, "model_type": kind}
        if kind == "lora":
            settings["peft_lora_target_modules"] = [architecture.layers]
        verdict = Verdict.APPROXIMATED if flavour.remark else Verdict.EXACT
        return [ImportedKey(MODEL, architecture.title, verdict, settings, flavour.remark)]

    def _network_module(self, value: str) -> ImportedKey:
        kind = value.rpartition(".")[2]
        if kind in ("loha", "lokr"):
            return self._refuse("network_module", f"{kind} is not offered yet; networks.lora... trains a LoRA")
        if self.architecture is None or kind == self.architecture.module or kind.startswith("lora"):
            return self._set("network_module", {"model_type": "lora"})
        return self._refuse("network_module", "a module of your own has no counterpart; a LoRA is trained")

    def _network_alpha(self, value: float) -> ImportedKey:
        rank = int(str(self.values.get("network_dim", 4)))
        return self._set("network_alpha", {"lora_alpha": float(value or rank)}, "" if value else "0 means the rank")

    def _network_args(self, value: Sequence[object]) -> list[ImportedKey]:
        reasons = {
            "loraplus_lr_ratio": "both matrices of the adapter have one learning rate",
            "rank_dropout": "a LoRA has no dropout of ranks",
            "module_dropout": "no layer of the adapter is skipped",
            "conv_dim": "layers that convolve get no adapter",
            "conv_alpha": "layers that convolve get no adapter",
            "exclude_patterns": "name the layers with peft_lora_target_modules, under their names in diffusers",
            "include_patterns": "name the layers with peft_lora_target_modules, under their names in diffusers",
            "factor": "it belongs to LoKr, which is not offered yet",
        }
        rows = []
        for name, text in parse_assignments("network_args", value).items():
            key = f"network_args {name}"
            if name == "verbose":
                rows.append(ImportedKey(key, text, Verdict.EXACT, {}, "it prints the names of layers"))
            else:
                reason = reasons.get(name, "there is no such argument of an adapter here")
                rows.append(ImportedKey(key, text, Verdict.NOT_OFFERED, {}, reason, trains=True))
        return rows

    def _t5(self, value: str) -> ImportedKey:
        return self._encoder("t5", value)

    def _encoder(self, name: str, value: str) -> ImportedKey:
        """A single file of an encoder is none that is read; a folder or repository is."""
        if value.endswith((".safetensors", ".pth", ".pt", ".bin")):
            return self._set(
                name, {}, "the encoder comes from the flavour's repository, not from this file", exact=False
            )
        return self._set(name, {"pretrained_t5_model_name_or_path": value})

    def _dit_high_noise(self, value: str) -> ImportedKey:
        return self._set("dit_high_noise", {}, "both experts are trained; the high-noise one comes from the flavour's "
                         "repository", exact=False)  # fmt: skip

    def _dit_in_channels(self, value: int) -> ImportedKey:
        return self._set("dit_in_channels", {}, "it says which flavour is meant")

    def _latent_window_size(self, value: int) -> ImportedKey:
        return self._set("latent_window_size", {"framepack_latent_window_size": value})

    def _timestep_boundary(self, value: float) -> ImportedKey:
        share = value / 1000 if value > 1 else float(value)
        return self._set("timestep_boundary", {"timestep_boundary": share}, OPTIONS["timestep_boundary"].remark, False)

    # -- precision and memory ---------------------------------------------------------------------------------

    def _dit_dtype(self, value: str) -> ImportedKey:
        kind = _DTYPES.get(value.lower())
        if kind not in ("bf16", "fp32"):
            return self._refuse("dit_dtype", "weights are held in bf16 or fp32, or as base_model_precision says", False)
        return self._set("dit_dtype", {"base_model_default_dtype": kind})

    def _full_bf16(self, value: bool) -> ImportedKey:
        return self._set("full_bf16", {"base_model_default_dtype": "bf16"}, "weights are trained in bfloat16", False)

    def _vae_dtype(self, value: str) -> ImportedKey:
        kind = _DTYPES.get(value.lower())
        if kind is None:
            raise ConfigError("vae_dtype", value, "", "This is no dtype.", "Write fp32, fp16 or bf16.")
        return self._set("vae_dtype", {"vae_dtype": kind})

    def _vae_tiling(self, value: object) -> ImportedKey:
        return self._tiling("vae_tiling")

    def _vae_enable_tiling(self, value: object) -> ImportedKey:
        return self._tiling("vae_enable_tiling")

    def _vae_spatial_tile_sample_min_size(self, value: int) -> ImportedKey:
        return self._tiling("vae_spatial_tile_sample_min_size")

    def _vae_sample_size(self, value: int) -> ImportedKey:
        return self._tiling("vae_sample_size", bool(value))

    def _tiling(self, name: str, on: bool = True) -> ImportedKey:
        return self._set(name, {"vae_enable_tiling": on}, OPTIONS[name].remark, exact=False)

    def _quantized_qwen(self, value: bool) -> ImportedKey:
        return self._set("quantized_qwen", {"text_encoder_1_precision": "nf4-bnb"}, "4 bits of bitsandbytes", False)

    def _fp8(self, value: bool) -> ImportedKey:
        return self._base_precision("fp8")

    def _fp8_base(self, value: bool) -> ImportedKey:
        return self._base_precision("fp8_base")

    def _fp8_scaled(self, value: bool) -> ImportedKey:
        return self._base_precision("fp8_scaled")

    def _base_precision(self, name: str) -> ImportedKey:
        scaled = self.values.get("fp8_scaled") is True
        return self._set(name, {"base_model_precision": "fp8-block" if scaled else "fp8-cast"})

    def _fp8_t5(self, value: bool) -> ImportedKey:
        number = 2 if self.architecture and self.architecture.prefix == "flux_kontext_" else 1
        return self._set("fp8_t5", {f"text_encoder_{number}_precision": "fp8-cast"})

    def _fp8_llm(self, value: bool) -> ImportedKey:
        return self._text_precision("fp8_llm")

    def _fp8_te(self, value: bool) -> ImportedKey:
        return self._text_precision("fp8_te")

    def _fp8_vl(self, value: bool) -> ImportedKey:
        return self._text_precision("fp8_vl")

    def _fp8_text_encoder(self, value: bool) -> ImportedKey:
        return self._text_precision("fp8_text_encoder")

    def _text_precision(self, name: str) -> ImportedKey:
        return self._set(name, {"text_encoder_1_precision": "fp8-cast"})

    def _gradient_checkpointing_cpu_offload(self, value: bool) -> ImportedKey:
        name = "gradient_checkpointing_cpu_offload"
        if not self.values.get("gradient_checkpointing"):
            return self._set(name, {}, "it acts beside gradient_checkpointing only, as there")
        return self._set(name, {"gradient_checkpointing_backend": "unsloth"}, OPTIONS[name].remark, exact=False)

    def _flash_attn(self, value: bool) -> ImportedKey:
        return self._kernel("flash_attn")

    def _flash3(self, value: bool) -> ImportedKey:
        return self._kernel("flash3")

    def _sage_attn(self, value: bool) -> ImportedKey:
        return self._kernel("sage_attn", "musubi-tuner refuses it in training")

    def _xformers(self, value: bool) -> ImportedKey:
        return self._kernel("xformers")

    def _kernel(self, name: str, remark: str = "") -> ImportedKey:
        """musubi-tuner takes the first of those that are on."""
        first, kernel = next((key, kernel) for key, kernel in _KERNELS if self.values.get(key) is True)
        if first != name:
            return self._set(name, {}, f"{first} counts before it")
        return self._set(name, {"attention_mechanism": kernel}, remark, exact=not remark)

    def _attn_mode(self, value: str) -> ImportedKey:
        if value not in _ATTENTION_MODES:
            raise ConfigError(
                "attn_mode", value, "", "There is no such kernel.", f"One of {', '.join(_ATTENTION_MODES)}."
            )
        return self._set("attn_mode", {"attention_mechanism": _ATTENTION_MODES[value]})

    def _cuda_allow_tf32(self, value: bool) -> ImportedKey:
        return self._set("cuda_allow_tf32", {"disable_tf32": not value})

    def _compile(self, value: bool) -> ImportedKey:
        return self._set("compile", {"dynamo_backend": str(self.values.get("compile_backend") or "inductor").lower()})

    def _compile_backend(self, value: str) -> ImportedKey:
        remark = "" if self.values.get("compile") else "it acts only when compile is true"
        return self._set("compile_backend", {}, remark)

    def _compile_dynamic(self, value: str) -> ImportedKey:
        word = str(value).lower()
        return self._set("compile_dynamic", {} if word == "auto" else {"dynamo_dynamic": word == "true"})

    def _compile_args(self, value: Sequence[str]) -> ImportedKey:
        if len(value) != 4:
            raise ConfigError("compile_args", value, "", "It has four words.", "Write BACKEND MODE DYNAMIC FULLGRAPH.")
        backend, mode, dynamic, full = (str(word).lower() for word in value)
        settings: dict[str, object] = {
            "dynamo_backend": backend,
            "dynamo_mode": mode,
            "dynamo_fullgraph": full == "true",
        }
        return self._set(
            "compile_args", settings | ({} if dynamic == "auto" else {"dynamo_dynamic": dynamic == "true"})
        )

    def _dynamo_backend(self, value: str) -> ImportedKey:
        return self._set("dynamo_backend", {"dynamo_backend": value.lower()})

    # -- optimizer and schedule ---------------------------------------------------------------------------------

    def _optimizer_type(self, value: str) -> ImportedKey:
        chosen = choose_optimizer(value, self._optimizer_arguments())
        settings: dict[str, object] = {"optimizer": chosen.optimizer}
        if chosen.rate is not None:
            settings |= {"learning_rate": chosen.rate, "lr_scheduler": "constant", "lr_warmup_steps": 0}
        if chosen.settings and "optimizer_args" not in self.values:
            settings["optimizer_config"] = dict(chosen.settings)
        return self._set("optimizer_type", settings, chosen.remark, exact=not chosen.remark)

    def _optimizer_args(self, value: Sequence[object]) -> ImportedKey:
        arguments = self._optimizer_arguments()
        chosen = choose_optimizer(str(self.values.get("optimizer_type") or ""), arguments)
        if chosen.rate is not None:  # arguments of the other class
            keep = {name: item for name, item in arguments.items() if name == "weight_decay"}
            return self._set("optimizer_args", {"optimizer_config": {**chosen.settings, **keep}},
                             "only weight_decay has a meaning beside relative steps", exact=False)  # fmt: skip
        return self._set("optimizer_args", {"optimizer_config": {**chosen.settings, **arguments}})

    def _optimizer_arguments(self) -> dict[str, object]:
        words = self.values.get("optimizer_args")
        pairs = parse_assignments("optimizer_args", words if isinstance(words, list) else [])
        return {name: literal(text) for name, text in pairs.items()}

    def _learning_rate(self, value: float) -> ImportedKey:
        chosen = choose_optimizer(str(self.values.get("optimizer_type") or ""), self._optimizer_arguments())
        if chosen.rate is not None:
            return self._set("learning_rate", {}, "relative steps of Adafactor have a rate of their own, as there")
        return self._set("learning_rate", {"learning_rate": value})

    def _lr_scheduler(self, value: str) -> ImportedKey:
        name = value.lower().removeprefix("schedulertype.")
        if name.startswith("adafactor"):
            return self._set("lr_scheduler", {"lr_scheduler": "constant"}, "it reports the rate that Adafactor chooses")
        return self._set("lr_scheduler", {"lr_scheduler": name})

    def _lr_warmup_steps(self, value: float) -> ImportedKey:
        if 0 < value < 1:
            return self._set("lr_warmup_steps", {"lr_warmup_ratio": float(value)})
        return self._set("lr_warmup_steps", {"lr_warmup_steps": int(value)})

    def _lr_decay_steps(self, value: float) -> ImportedKey:
        if 0 < value < 1:
            return self._set("lr_decay_steps", {"lr_decay_ratio": float(value)})
        return self._set("lr_decay_steps", {"lr_decay_steps": int(value)})

    def _lr_scheduler_args(self, value: Sequence[object]) -> ImportedKey:
        pairs = parse_assignments("lr_scheduler_args", value)
        return self._set("lr_scheduler_args", {"lr_scheduler_args": {k: _literal_or_text(v) for k, v in pairs.items()}})

    def _max_train_steps(self, value: int) -> ImportedKey:
        if self.values.get("max_train_epochs"):
            return self._set("max_train_steps", {}, "max_train_epochs counts before it, as there")
        return self._set("max_train_steps", {"max_train_steps": value})

    def _fused_backward_pass(self, value: bool) -> ImportedKey:
        return self._set("fused_backward_pass", {"optimizer_release_gradients": True},
                         OPTIONS["fused_backward_pass"].remark, exact=False)  # fmt: skip

    def _trainable_modules(self, value: Sequence[str]) -> ImportedKey:
        if list(value) == ["."]:
            return self._set("trainable_modules", {}, "everything is trained")
        return self._refuse("trainable_modules", "full training trains the whole denoiser")

    def _training_comment(self, value: str) -> ImportedKey:
        return self._set("training_comment", {"modelspec_comment": [value]}, "written as modelspec.comment", False)

    def _guidance_scale(self, value: float) -> ImportedKey:
        if self.job not in (TRAIN, FINETUNE):
            return self._set("guidance_scale", {"validation_guidance_real": value})
        if value == 1.0:
            return self._set("guidance_scale", {}, "it is 1 here too")
        return self._refuse("guidance_scale", "the guidance that a distilled model is trained with is its family's own")

    def _dino_loss_weight(self, value: float) -> ImportedKey:
        if not value:
            return self._set("dino_loss_weight", {}, "0 is off")
        return self._refuse("dino_loss_weight", OPTIONS["dino_loss_weight"].remark)

    # -- saving, samples, logging ---------------------------------------------------------------------------------

    def _save_last_n_steps(self, value: int) -> ImportedKey:
        every = int(str(self.values.get("save_every_n_steps") or 0))
        if not every:
            return self._set("save_last_n_steps", {}, "it acts beside save_every_n_steps only")
        return self._set("save_last_n_steps", {"checkpoints_total_limit": value // every + 1},
                         OPTIONS["save_last_n_steps"].remark, exact=False)  # fmt: skip

    def _resume(self, value: str) -> ImportedKey:
        return self._refuse(
            "resume",
            "a state folder of musubi-tuner holds no order of data and no step; start from its adapter with "
            "network_weights, or give a checkpoint of Darkroom as resume_from_checkpoint",
        )

    def _log_with(self, value: str) -> ImportedKey:
        return self._set("log_with", {"report_to": value.lower()})

    def _logging_dir(self, value: str) -> ImportedKey:
        settings: dict[str, object] = {"logging_dir": value}
        return self._set(
            "logging_dir", settings if self.values.get("log_with") else settings | {"report_to": "tensorboard"}
        )

    def _sample_prompts(self, value: str) -> ImportedKey:
        return self._set("sample_prompts", {"user_prompt_library": value, "validation_disable": False})

    # -- generating ---------------------------------------------------------------------------------

    def _image_size(self, value: Sequence[object]) -> ImportedKey:
        return self._size("image_size", value)

    def _video_size(self, value: Sequence[object]) -> ImportedKey:
        return self._size("video_size", value)

    def _size(self, name: str, value: Sequence[object]) -> ImportedKey:
        if len(value) != 2:
            raise ConfigError(name, value, "", "It has two numbers.", "Write height and width.")
        return self._set(name, {"validation_resolution": f"{value[1]}x{value[0]}"}, "height comes first there")

    def _height(self, value: int) -> ImportedKey:
        return self._set("height", {"validation_resolution": f"{self.values.get('width', value)}x{value}"})

    def _width(self, value: int) -> ImportedKey:
        return self._set("width", {"validation_resolution": f"{value}x{self.values.get('height', value)}"})

    def _video_seconds(self, value: float) -> ImportedKey:
        frames = int(value * 30) // 4 * 4 + 1
        return self._set("video_seconds", {"validation_num_video_frames": frames}, "30 frames a second", exact=False)

    def _num_images(self, value: int) -> ImportedKey:
        return self._set("num_images", {"num_validation_images": value})

    def _sample_solver(self, value: str) -> ImportedKey:
        solver = {"vanilla": "euler"}.get(value, value)
        return self._set(
            "sample_solver", {"validation_noise_scheduler": solver}, OPTIONS["sample_solver"].remark, False
        )


def _literal_or_text(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text.strip("'\"")
