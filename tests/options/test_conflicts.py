"""Each rule refuses what it should, and lets the remedy through."""

import pytest

from darkroom.options.config import Config, option_names
from darkroom.options.conflicts import REMARKS, RULES, FamilyFacts, collect_remarks, validate_options
from tests.rows import each_row

pytestmark = pytest.mark.smoke

FLOW = FamilyFacts(
    "flux",
    "FLUX.1",
    "flow_matching",
    guidance_input=True,
    supports=frozenset({"lora", "full", "control", "controlnet", "train_text_encoder"}),
)
EPSILON = FamilyFacts("sdxl", "SDXL", "epsilon", supports=frozenset({"lora"}))
SAMPLE = FamilyFacts("odd", "Odd", "sample")
MASKED = FamilyFacts("chroma", "Chroma", "flow_matching", masks=frozenset({"training", "inference"}))

# rule: (facts, settings that it refuses, changes that make them allowed)
CASES = {
    "controlnet on a family without it": (
        EPSILON, {"controlnet": True, "controlnet_model_name_or_path": "net"}, {"controlnet": False},
    ),
    "control on a family without it": (
        EPSILON, {"control": True, "flux_lora_target": "controlnet"}, {"control": False},
    ),
    "train_text_encoder on a family without it": (EPSILON, {"train_text_encoder": True}, {"train_text_encoder": False}),
    "a text encoder trained beside control": (
        FLOW, {"train_text_encoder": True, "control": True, "flux_lora_target": "controlnet"}, {"control": False},
    ),
    "an attention kernel without masks where there are some": (
        MASKED, {"attention_mechanism": "sageattention"}, {"attention_mechanism": "flex"},
    ),
    "two ways of control": (
        FLOW, {"control": True, "controlnet": True, "model_type": "full"}, {"control": False},
    ),
    "a control LoRA that leaves the embedder alone": (FLOW, {"control": True}, {"flux_lora_target": "controlnet"}),
    "two lengths": (None, {"max_train_steps": 5, "num_train_epochs": 1}, {"num_train_epochs": 0}),
    "flow prediction on a diffusion family": (EPSILON, {"prediction_type": "flow_matching"}, {"prediction_type": None}),
    "diffusion prediction on a flow family": (FLOW, {"prediction_type": "epsilon"}, {"prediction_type": None}),
    "sample prediction with SNR weights": (SAMPLE, {"snr_gamma": 5}, {"snr_gamma": 0}),
    "offset_noise on a flow family": (FLOW, {"offset_noise": True}, {"offset_noise": False}),
    "model type that the family lacks": (EPSILON, {"model_type": "full"}, {"model_type": "lora"}),
    "several draws of noise levels": (
        FLOW, {"flow_use_uniform_schedule": True, "flux_fast_schedule": True}, {"flux_fast_schedule": False},
    ),
    "static and automatic shift": (
        FLOW, {"flow_schedule_auto_shift": True, "flow_schedule_shift": 2.0}, {"flow_schedule_shift": 0},
    ),
    "empty timestep range": (
        EPSILON, {"timestep_bias_strategy": "range", "timestep_bias_begin": 500, "timestep_bias_end": 500},
        {"timestep_bias_end": 501},
    ),
    "zero terminal SNR with epsilon": (
        EPSILON, {"rescale_betas_zero_snr": True}, {"prediction_type": "v_prediction"},
    ),
    "guidance range upside down": (
        FLOW, {"flux_guidance_mode": "random-range", "flux_guidance_min": 5.0}, {"flux_guidance_max": 6.0},
    ),
    "huber constant above one": (None, {"loss_type": "huber", "huber_c": 2.0}, {"huber_schedule": "constant"}),
    "two SNR weights": (EPSILON, {"snr_gamma": 5, "snr_weight": 2.0}, {"snr_weight": 1.0}),
    "two soft weights": (
        EPSILON, {"use_soft_min_snr": True, "soft_min_snr_sigma_data": 0.5, "snr_gamma": 5}, {"snr_gamma": None},
    ),
    "DoRA on a start from base weights": (None, {"use_dora": True, "lora_init_type": "pissa"}, {"use_dora": False}),
    "two starts of the adapter": (
        None, {"init_lora": "a.safetensors", "lora_init_type": "olora"}, {"lora_init_type": "gaussian"},
    ),
    "a quantised base that is trained": (
        None, {"base_model_precision": "fp8-block", "model_type": "full"}, {"model_type": "lora"},
    ),
    "a GGUF base in yet other bits": (
        None, {"base_model_precision": "fp8-block", "pretrained_model_name_or_path": "a.gguf"},
        {"base_model_precision": "no_change"},
    ),
    "eight-bit products of weights in fewer bits": (
        None, {"mixed_precision": "fp8", "base_model_precision": "fp8-block"}, {"mixed_precision": "bf16"},
    ),
    "diffusers told to quantise nothing": (
        None, {"quantize_via": "pipeline"}, {"text_encoder_2_precision": "int8-quanto"},
    ),
    "a pipeline that would be saved with quantised parts": (
        None, {"quantize_via": "pipeline", "text_encoder_1_precision": "int8-quanto", "model_type": "full"},
        {"quantize_via": "cpu"},
    ),
    "settings and precisions for diffusers": (
        None,
        {
            "quantize_via": "pipeline", "quantization_config": {"default": "int8-quanto"},
            "text_encoder_1_precision": "int8-quanto",
        },
        {"text_encoder_1_precision": "no_change"},
    ),
    "activations quantised by diffusers": (
        None, {"quantize_via": "pipeline", "base_model_precision": "int8-quanto", "quantize_activations": True},
        {"quantize_via": "cpu"},
    ),
    "fused layers from weights that come in fewer bits": (
        None, {"fuse_qkv_projections": True, "quantize_via": "pipeline", "base_model_precision": "int8-quanto"},
        {"quantize_via": "cpu"},
    ),
    "new layers from weights that come in fewer bits": (
        None, {"controlnet": True, "pretrained_unet_model_name_or_path": "a.gguf", "model_type": "full"},
        {"controlnet_model_name_or_path": "a/b"},
    ),
    "two ways of offloading": (None, {"musubi_blocks_to_swap": 2, "ramtorch": True}, {"ramtorch": False}),
    "parts that move and parts that wait": (
        None, {"enable_model_cpu_offload": True, "ramtorch": True}, {"ramtorch": False},
    ),
    "a trained ControlNet that waits elsewhere": (
        None, {"ramtorch": True, "ramtorch_controlnet": True, "controlnet": True, "model_type": "full",
         "controlnet_model_name_or_path": "net"},
        {"model_type": "lora"},
    ),
    "fused layers that are trained themselves": (
        None, {"fuse_qkv_projections": True, "model_type": "full"}, {"model_type": "lora"},
    ),
    "sparse-linear attention beside a ControlNet": (
        None, {"attention_mechanism": "sla", "controlnet": True, "controlnet_model_name_or_path": "net"},
        {"attention_mechanism": "flex"},
    ),
    "sparse-linear attention that is compiled": (
        None, {"attention_mechanism": "sla", "validation_torch_compile": True}, {"validation_torch_compile": False},
    ),
    "a start from weights that are quantised": (
        None, {"base_model_precision": "int8-quanto", "lora_init_type": "pissa"}, {"lora_init_type": "default"},
    ),
    "a start from weights that wait elsewhere": (
        None, {"enable_group_offload": True, "lora_init_type": "olora"}, {"lora_init_type": "gaussian"},
    ),
    "DoRA on rounded or streamed layers": (None, {"use_dora": True, "ramtorch": True}, {"ramtorch": False}),
    "a trained text encoder in fewer bits": (
        None, {"train_text_encoder": True, "text_encoder_1_precision": "fp8-block"}, {"train_text_encoder": False},
    ),
    "compiling what is fetched on the way": (
        None, {"dynamo_backend": "eager", "dynamo_use_regional_compilation": False, "musubi_blocks_to_swap": 1},
        {"dynamo_use_regional_compilation": True},
    ),
    "compiling layers that are fetched": (
        None, {"dynamo_backend": "eager", "enable_group_offload": True, "group_offload_type": "leaf_level"},
        {"group_offload_type": "block_level"},
    ),
    "compiling eight-bit floats of quanto": (
        None, {"dynamo_backend": "eager", "base_model_precision": "fp8-quanto"}, {"base_model_precision": "fp8-block"},
    ),
    "SageAttention in training on four bits": (
        None,
        {
            "attention_mechanism": "sageattention", "sageattention_usage": "training",
            "base_model_precision": "nf4-bnb",
        },
        {"sageattention_usage": "inference"},
    ),
    "one beta alone": (None, {"optimizer_beta1": 0.9}, {"optimizer_beta2": 0.99}),
    "two betas of three": (
        None, {"optimizer": "optimi-adan", "optimizer_beta1": 0.9, "optimizer_beta2": 0.99},
        {"optimizer": "optimi-adamw"},
    ),
    "a beta that is an exponent": (
        None, {"optimizer": "sdnq-adafactor", "optimizer_beta1": 0.9, "optimizer_beta2": 0.99},
        {"optimizer": "sdnq-adamw"},
    ),
    "updates that do not wait for the other batches": (
        None, {"optimizer_release_gradients": True, "gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 1},
    ),
    "a common length of gradients that never meet": (
        None, {"optimizer_release_gradients": True, "grad_clip_method": "norm"}, {"max_grad_norm": 0},
    ),
    "updates in two places": (
        None, {"optimizer_release_gradients": True, "optimizer_cpu_offload_method": "cpu"},
        {"optimizer_cpu_offload_method": "none"},
    ),
    "pages of a state that is on the host": (
        None, {"optimizer": "bnb-lion-paged", "ramtorch": True, "model_type": "full"}, {"optimizer": "bnb-lion"},
    ),
    "scaled gradients that are used elsewhere": (
        None, {"optimizer_release_gradients": True, "mixed_precision": "fp16"}, {"mixed_precision": "bf16"},
    ),
    "bf16 optimizer on fp32 weights": (None, {"base_model_default_dtype": "fp32"}, {"optimizer": "torch-adamw"}),
    "bf16 weights without mixed precision": (
        None, {"model_type": "full", "mixed_precision": "no"}, {"mixed_precision": "bf16"},
    ),
    "schedule that does not decay": (
        None, {"lr_scheduler": "polynomial", "learning_rate": 4e-7, "lr_end": 4e-7}, {"lr_end": 0},
    ),
    "shrinking without a size": (None, {"maximum_image_size": 2048}, {"target_downsample_size": 1536}),
    "shrinking to a larger size": (
        None, {"maximum_image_size": 2048, "target_downsample_size": 4096}, {"target_downsample_size": 2048},
    ),
    "no size left": (
        None, {"minimum_image_size": 2048, "maximum_image_size": 1024, "target_downsample_size": 512},
        {"minimum_image_size": 512},
    ),
    "instance prompt before and instead": (
        None, {"prepend_instance_prompt": True, "only_instance_prompt": True}, {"only_instance_prompt": False},
    ),
    "setting that no schedule has": (
        None, {"lr_scheduler": "rex", "lr_scheduler_args": {"rex_gamma": 1}}, {"lr_scheduler_args": {"rex_alpha": 1}},
    ),
    "no noise level between the limits": (
        FLOW, {"timestep_sampling": "shift", "min_timestep": 500, "max_timestep": 500}, {"max_timestep": 600},
    ),
    "no script for a full disk": (None, {"disk_low_action": "script"}, {"disk_low_script": "make-room.sh"}),
}  # fmt: skip


def made(settings, family="flux"):
    """A Config and the sources it would have if everything given stood on the command line."""
    config = Config(model_family=family, **settings)
    return config, dict.fromkeys(settings, "command line")


def test_every_rule_has_a_case_and_a_name_of_its_own():
    names = [rule.name for rule in RULES]
    assert sorted(names) == sorted(CASES)
    assert {option for rule in (*RULES, *REMARKS) for option in rule.options} <= set(option_names())


@each_row("name", CASES)
def test_a_rule_refuses_its_case_and_nothing_else(name):
    facts, settings, _ = CASES[name]
    rule = next(r for r in RULES if r.name == name)
    config, sources = made(settings)
    errors = validate_options(config, sources, facts)
    assert len(errors) == 1, [str(error) for error in errors]
    assert errors[0].option in rule.options
    assert errors[0].option in settings or errors[0].option == rule.options[0]
    assert errors[0].problem.endswith(".")
    assert errors[0].change.endswith(".")
    assert "{" not in errors[0].problem + errors[0].change


@each_row("name", CASES)
def test_the_remedy_is_accepted(name):
    facts, settings, remedy = CASES[name]
    config, sources = made({**settings, **remedy})
    assert validate_options(config, sources, facts) == []


@pytest.mark.parametrize(
    "rounded",
    [
        {"pretrained_transformer_model_name_or_path": "a.gguf"},
        {"pretrained_model_name_or_path": "a.gguf"},
        {"quantize_via": "pipeline", "quantization_config": {"transformer": "int8-quanto"}},
    ],
    ids=str,
)
def test_a_base_that_comes_in_fewer_bits_is_one_in_fewer_bits(rounded):
    for change in ({"use_dora": True}, {"lora_init_type": "pissa"}, {"mixed_precision": "fp8"}):
        config, sources = made({**rounded, **change})
        (error,) = validate_options(config, sources, FLOW)
        assert error.option in change
    config, sources = made({**rounded, "model_type": "full"})
    assert "cannot be trained" in str(validate_options(config, sources, FLOW)[0])
    config, sources = made(rounded)
    assert validate_options(config, sources, FLOW) == []


@each_row("facts", [None, FLOW, EPSILON, SAMPLE])
def test_defaults_contradict_nothing(facts):
    config, sources = made({})
    assert validate_options(config, sources, facts) == []
    assert collect_remarks(config, sources, facts) == []


def test_what_a_family_prefers_is_no_contradiction():
    config, sources = made({"flow_schedule_shift": 5.0, "flow_schedule_auto_shift": True})
    assert validate_options(config, {**sources, "flow_schedule_shift": "family default"}, FLOW) == []
    assert validate_options(config, {**sources, "flow_schedule_auto_shift": "family default"}, FLOW) == []


def test_an_expert_may_lift_a_rule_that_allows_it():
    config, sources = made({"rescale_betas_zero_snr": True})
    assert "i_know_what_i_am_doing" in str(validate_options(config, sources, EPSILON)[0])
    config, sources = made({"rescale_betas_zero_snr": True, "i_know_what_i_am_doing": True})
    assert validate_options(config, sources, EPSILON) == []


REMARKED = {
    "snr_gamma on a flow family": (FLOW, {"snr_gamma": 5}),
    "use_soft_min_snr on a flow family": (FLOW, {"use_soft_min_snr": True}),
    "snr_weight on a flow family": (FLOW, {"snr_weight": 0.5}),
    "rescale_betas_zero_snr on a flow family": (FLOW, {"rescale_betas_zero_snr": True}),
    "timestep_bias_strategy on a flow family": (FLOW, {"timestep_bias_strategy": "later"}),
    "flow_sigmoid_scale on a diffusion family": (EPSILON, {"flow_sigmoid_scale": 2.0}),
    "flow_use_uniform_schedule on a diffusion family": (EPSILON, {"flow_use_uniform_schedule": True}),
    "flow_use_beta_schedule on a diffusion family": (EPSILON, {"flow_use_beta_schedule": True}),
    "flow_schedule_shift on a diffusion family": (EPSILON, {"flow_schedule_shift": 2.0}),
    "flow_schedule_auto_shift on a diffusion family": (EPSILON, {"flow_schedule_auto_shift": True}),
    "flux_fast_schedule on a diffusion family": (EPSILON, {"flux_fast_schedule": True}),
    "guidance without an input for it": (EPSILON, {"flux_guidance_mode": "random-range"}),
    "disable_segmented_timestep_sampling has no effect on a flow family": (
        FLOW, {"disable_segmented_timestep_sampling": True},
    ),
    "training_scheduler_timestep_spacing has no effect on a flow family": (
        FLOW, {"training_scheduler_timestep_spacing": "leading"},
    ),
    "inference_scheduler_timestep_spacing has no effect on a flow family": (
        FLOW, {"inference_scheduler_timestep_spacing": "leading"},
    ),
    "schedule of a schedule-free optimizer": (None, {"optimizer": "adamw_schedulefree", "lr_scheduler": "cosine"}),
    "average of an averaging optimizer": (None, {"optimizer": "adamw_schedulefree", "use_ema": True}),
    "density without its mode": (FLOW, {"timestep_sampling": "shift", "weighting_scheme": "mode"}),
    "timestep_sampling on a diffusion family": (EPSILON, {"timestep_sampling": "shift"}),
    "weighting_scheme on a diffusion family": (EPSILON, {"weighting_scheme": "cosmap"}),
    "learning rate of Prodigy": (None, {"optimizer": "prodigy", "learning_rate": 1e-4}),
    "warm-up longer than the run": (None, {"lr_warmup_steps": 11, "max_train_steps": 10}),
    "no caption dropout": (None, {"caption_dropout_probability": 0}),
    "range bias on segments": (EPSILON, {"timestep_bias_strategy": "range", "train_batch_size": 2}),
    "LayerSync of a block with itself": (
        FLOW, {"layersync_enabled": True, "layersync_student_block": 0, "layersync_teacher_block": 1},
    ),
}  # fmt: skip


@each_row("name", REMARKED)
def test_a_remark_is_made(name):
    facts, settings = REMARKED[name]
    config, sources = made(settings)
    notes = collect_remarks(config, sources, facts)
    assert [note.option for note in notes] == [next(r for r in REMARKS if r.name == name).options[0]]
    assert validate_options(config, sources, facts) == []


def test_every_remark_has_a_case():
    assert sorted(rule.name for rule in REMARKS) == sorted(REMARKED)


def test_strict_refuses_what_has_no_effect():
    config, sources = made({"disable_segmented_timestep_sampling": True, "strict": True})
    assert [error.option for error in validate_options(config, sources, FLOW)] == [
        "disable_segmented_timestep_sampling"
    ]
    config, sources = made({"caption_dropout_probability": 0, "strict": True})
    assert validate_options(config, sources, FLOW) == []
