"""What diffusers and transformers are told to quantise while they load, and what is refused of it."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file

from darkroom import families
from darkroom.core.errors import ConfigError, MissingPackage
from darkroom.options.precision import Quantized
from darkroom.pretrained import quantized
from darkroom.pretrained.repository import Repository
from tests.families import conformance
from tests.families.test_single_file import model_of

CPU = torch.device("cpu")
PLAIN = {"base_model_precision": "no_change"} | {f"text_encoder_{n}_precision": "no_change" for n in range(1, 5)}


def options(**changes):
    usual = {**PLAIN, "quantize_via": "pipeline", "quantization_config": None, "train_text_encoder": False}
    return SimpleNamespace(**{**usual, **changes})


def classes():
    import diffusers
    import transformers

    return (
        {"transformer": diffusers.FluxTransformer2DModel},
        {"text_encoder": transformers.CLIPTextModel, "text_encoder_2": transformers.T5EncoderModel},
    )


def refused(o) -> str:
    with pytest.raises(ConfigError) as wrong:
        quantized.validate_quantization_config(o, *classes(), CPU)
    return str(wrong.value)


def test_precisions_that_diffusers_has_are_choices():
    assert set(quantized.PRESETS) < set(get_args(Quantized))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"transformer": "int8-quanto"}, ["int8", None, None]),
        ({"default": "int8-quanto", "text_encoder": "no_change"}, ["int8", None, "int8"]),
        ({"default": {"weights_dtype": "int4"}, "transformer": None}, [None, "int4", "int4"]),
    ],
)
def test_a_component_has_its_own_settings_or_the_default(config, expected):
    o = options(quantization_config=config)
    found = [
        quantized.find_quantization(o, name, number)
        for name, number in (("transformer", 0), ("text_encoder", 1), ("te", 2))
    ]

    assert [own and own["weights_dtype"] for own in found] == expected
    assert (
        quantized.find_quantization(options(quantization_config=config, quantize_via="cpu"), "transformer", 0) is None
    )


def test_precisions_say_the_same_by_number():
    o = options(base_model_precision="int8-torchao", text_encoder_2_precision="nf4-bnb")

    assert quantized.find_quantization(o, "transformer", 0) == {"quant_type": "Int8WeightOnlyConfig"}
    assert quantized.find_quantization(o, "text_encoder", 1) is None
    assert quantized.find_quantization(o, "text_encoder_2", 2)["load_in_4bit"] is True


@pytest.mark.parametrize(
    ("own", "package", "name"),
    [
        ({"load_in_4bit": True}, "bitsandbytes", "BitsAndBytesConfig"),
        ({"load_in_8bit": True, "llm_int8_skip_modules": ["proj_out"]}, "bitsandbytes", "BitsAndBytesConfig"),
        ({"weights_dtype": "float8"}, "optimum.quanto", "QuantoConfig"),
        ({"quant_type": "Int8WeightOnlyConfig"}, "torchao", "TorchAoConfig"),
        ({"quant_type": {"group_size": 32}, "modules_to_not_convert": ["proj_out"]}, "torchao", "TorchAoConfig"),
    ],
)
def test_settings_become_the_class_of_the_library_that_loads_the_component(own, package, name):
    pytest.importorskip(package)
    denoisers, encoders = classes()

    for cls, library in ((denoisers["transformer"], "diffusers"), (encoders["text_encoder"], "transformers")):
        made = quantized.build_config(own, cls, torch.bfloat16)
        assert type(made).__name__ == name
        assert type(made).__module__.startswith(library)
        if name == "BitsAndBytesConfig":
            assert made.bnb_4bit_compute_dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantization_config": {"vae": "int8-quanto"}}, "no such component"),
        ({"quantization_config": {"transformer": 8}}, "These are no settings"),
        ({"base_model_precision": "fp8uz-quanto"}, "diffusers has no such precision"),
        ({"text_encoder_1_precision": "uint4-sdnq"}, "diffusers has no such precision"),
        (
            {"quantization_config": {"text_encoder": "int8-quanto"}, "train_text_encoder": True},
            "keeps its own precision",
        ),
        ({"quantization_config": {"transformer": {"load_in_4bit": True}}}, "bitsandbytes on GPUs only"),
        ({"base_model_precision": "int4-torchao"}, "torchao cannot do it here: Requires mslk"),
        (
            {"quantization_config": {"transformer": {"quant_type": "Int8DynamicActivationInt8WeightConfig"}}},
            "No gradient passes through",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes, words):
    assert words in refused(options(**changes))


def test_text_encoders_may_have_what_denoisers_cannot():
    config = {"text_encoder": {"quant_type": "Int8DynamicActivationInt8WeightConfig"}, "text_encoder_2": "nf4-bnb"}
    quantized.validate_quantization_config(options(quantization_config=config), *classes(), CPU)


def test_a_quantiser_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)

    with pytest.raises(MissingPackage, match="torchao"):
        quantized.validate_quantization_config(options(base_model_precision="int8-torchao"), *classes(), CPU)


def test_one_file_is_not_loaded_by_diffusers_and_so_not_quantised_by_it(tmp_path):
    settings = SimpleNamespace(**vars(conformance.options("z_image", "tiny")))
    file = tmp_path / "denoiser.safetensors"
    save_file(model_of("ZImageTransformer2DModel").state_dict(), file)
    settings.pretrained_transformer_model_name_or_path = str(file)
    settings.quantize_via = "pipeline"
    repository = Repository(families.get("z_image", "tiny"), settings, torch.device("cpu"), torch.float32)

    settings.quantization_config = {"text_encoder": "int8-quanto"}
    repository.examine()
    settings.quantization_config = {"default": "int8-quanto"}
    with pytest.raises(ConfigError, match="transformer is quantised while diffusers loads it from a folder"):
        repository.examine()


def test_embeddings_of_another_precision_are_others():
    settings = SimpleNamespace(**vars(conformance.options("flux", "tiny")))
    repository = Repository(families.get("flux", "tiny"), settings, torch.device("cpu"), torch.float32)
    plain = repository.text_identity()
    settings.quantize_via, settings.quantization_config = "pipeline", {"transformer": "int8-quanto"}
    assert repository.text_identity() == plain

    identities = {plain}
    for own in ("int8-quanto", "int4-quanto", {"weights_dtype": "int8", "modules_to_not_convert": ["wo"]}):
        settings.quantization_config = {"text_encoder_2": own}
        identities.add(repository.text_identity())
    assert len(identities) == 4
