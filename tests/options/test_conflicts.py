"""Each rule refuses what it should, and lets the remedy through."""

import pytest

from darkroom.options.config import Config, option_names
from darkroom.options.conflicts import REMARKS, RULES, FamilyFacts, check, remarks

FLOW = FamilyFacts(
    "flux",
    "FLUX.1",
    "flow_matching",
    guidance_input=True,
    supports=frozenset({"lora", "full", "control", "controlnet"}),
)
EPSILON = FamilyFacts("sdxl", "SDXL", "epsilon", supports=frozenset({"lora"}))
SAMPLE = FamilyFacts("odd", "Odd", "sample")

# rule: (facts, settings that it refuses, changes that make them allowed)
CASES = {
    "controlnet on a family without it": (
        EPSILON, {"controlnet": True, "controlnet_model_name_or_path": "net"}, {"controlnet": False},
    ),
    "control on a family without it": (
        EPSILON, {"control": True, "flux_lora_target": "controlnet"}, {"control": False},
    ),
    "two ways of control": (
        FLOW, {"control": True, "controlnet": True, "model_type": "full"}, {"control": False},
    ),
    "a LoRA on a new ControlNet": (FLOW, {"controlnet": True}, {"model_type": "full"}),
    "a control LoRA that leaves the embedder alone": (FLOW, {"control": True}, {"flux_lora_target": "controlnet"}),
    "two lengths": (None, {"max_train_steps": 5, "num_train_epochs": 1}, {"num_train_epochs": 0}),
    "flow prediction on a diffusion family": (EPSILON, {"prediction_type": "flow_matching"}, {"prediction_type": None}),
    "diffusion prediction on a flow family": (FLOW, {"prediction_type": "epsilon"}, {"prediction_type": None}),
    "sample prediction with SNR weights": (SAMPLE, {"snr_gamma": 5}, {"snr_gamma": 0}),
    "snr_gamma on a flow family": (FLOW, {"snr_gamma": 5}, {"snr_gamma": 0}),
    "use_soft_min_snr on a flow family": (FLOW, {"use_soft_min_snr": True}, {"use_soft_min_snr": False}),
    "snr_weight on a flow family": (FLOW, {"snr_weight": 0.5}, {"snr_weight": 1}),
    "offset_noise on a flow family": (FLOW, {"offset_noise": True}, {"offset_noise": False}),
    "rescale_betas_zero_snr on a flow family": (
        FLOW, {"rescale_betas_zero_snr": True}, {"rescale_betas_zero_snr": False},
    ),
    "timestep_bias_strategy on a flow family": (
        FLOW, {"timestep_bias_strategy": "later"}, {"timestep_bias_strategy": "none"},
    ),
    "flow_sigmoid_scale on a diffusion family": (EPSILON, {"flow_sigmoid_scale": 2.0}, {"flow_sigmoid_scale": 1.0}),
    "flow_use_uniform_schedule on a diffusion family": (
        EPSILON, {"flow_use_uniform_schedule": True}, {"flow_use_uniform_schedule": False},
    ),
    "flow_use_beta_schedule on a diffusion family": (
        EPSILON, {"flow_use_beta_schedule": True}, {"flow_use_beta_schedule": False},
    ),
    "flow_schedule_shift on a diffusion family": (EPSILON, {"flow_schedule_shift": 2.0}, {"flow_schedule_shift": 3.0}),
    "flow_schedule_auto_shift on a diffusion family": (
        EPSILON, {"flow_schedule_auto_shift": True}, {"flow_schedule_auto_shift": False},
    ),
    "flux_fast_schedule on a diffusion family": (EPSILON, {"flux_fast_schedule": True}, {"flux_fast_schedule": False}),
    "guidance without an input for it": (EPSILON, {"flux_guidance_value": 3.0}, {"flux_guidance_value": 1.0}),
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
    "one beta alone": (None, {"optimizer_beta1": 0.9}, {"optimizer_beta2": 0.99}),
    "two betas of three": (
        None, {"optimizer": "optimi-adan", "optimizer_beta1": 0.9, "optimizer_beta2": 0.99},
        {"optimizer": "optimi-adamw"},
    ),
    "bf16 optimizer on fp32 weights": (None, {"base_model_default_dtype": "fp32"}, {"optimizer": "torch-adamw"}),
    "schedule that does not decay": (
        None, {"lr_scheduler": "polynomial", "learning_rate": 4e-7, "lr_end": 4e-7}, {"lr_end": 0},
    ),
    "warm-up longer than the run": (None, {"max_train_steps": 10, "lr_warmup_steps": 11}, {"lr_warmup_steps": 10}),
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


@pytest.mark.parametrize("name", CASES)
def test_a_rule_refuses_its_case_and_nothing_else(name):
    facts, settings, _ = CASES[name]
    rule = next(r for r in RULES if r.name == name)
    config, sources = made(settings)
    errors = check(config, sources, facts)
    assert len(errors) == 1, [str(error) for error in errors]
    assert errors[0].option in rule.options
    assert errors[0].option in settings or errors[0].option == rule.options[0]
    assert errors[0].problem.endswith(".")
    assert errors[0].change.endswith(".")
    assert "{" not in str(errors[0])


@pytest.mark.parametrize("name", CASES)
def test_the_remedy_is_accepted(name):
    facts, settings, remedy = CASES[name]
    config, sources = made({**settings, **remedy})
    assert check(config, sources, facts) == []


@pytest.mark.parametrize("facts", [None, FLOW, EPSILON, SAMPLE])
def test_defaults_contradict_nothing(facts):
    config, sources = made({})
    assert check(config, sources, facts) == []
    assert remarks(config, sources, facts) == []


def test_what_a_family_prefers_is_no_contradiction():
    config, sources = made({"flow_schedule_shift": 5.0, "flow_schedule_auto_shift": True})
    assert check(config, {**sources, "flow_schedule_shift": "family default"}, FLOW) == []
    assert check(config, {**sources, "flow_schedule_auto_shift": "family default"}, FLOW) == []


def test_an_expert_may_lift_a_rule_that_allows_it():
    config, sources = made({"rescale_betas_zero_snr": True})
    assert "i_know_what_i_am_doing" in str(check(config, sources, EPSILON)[0])
    config, sources = made({"rescale_betas_zero_snr": True, "i_know_what_i_am_doing": True})
    assert check(config, sources, EPSILON) == []


REMARKED = {
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
    "learning rate of Prodigy": (None, {"optimizer": "prodigy", "learning_rate": 1e-4}),
    "no caption dropout": (None, {"caption_dropout_probability": 0}),
    "range bias on segments": (EPSILON, {"timestep_bias_strategy": "range", "train_batch_size": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", REMARKED)
def test_a_remark_is_made(name):
    facts, settings = REMARKED[name]
    config, sources = made(settings)
    notes = remarks(config, sources, facts)
    assert [note.option for note in notes] == [next(r for r in REMARKS if r.name == name).options[0]]
    assert check(config, sources, facts) == []


def test_every_remark_has_a_case():
    assert sorted(rule.name for rule in REMARKS) == sorted(REMARKED)


def test_strict_refuses_what_has_no_effect():
    config, sources = made({"disable_segmented_timestep_sampling": True, "strict": True})
    assert [error.option for error in check(config, sources, FLOW)] == ["disable_segmented_timestep_sampling"]
    config, sources = made({"caption_dropout_probability": 0, "strict": True})
    assert check(config, sources, FLOW) == []
