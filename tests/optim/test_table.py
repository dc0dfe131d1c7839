"""Every optimizer of the table that can be imported here, and what `build` refuses."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from darkroom.core.errors import ConfigError, MissingPackage, UserError
from darkroom.optim.schedules import Scheduler, ScheduleShape
from darkroom.optim.table import OPTIMIZERS, build, find_optimizer, validate_optimizer
from darkroom.options.config import Config
from darkroom.options.optimizer import OPTIMIZERS as NAMES
from darkroom.train.pack import flatten, restore
from tests.rows import each_row

from .ways import CPU, INSTALLED

# these need more than 60 steps, another rate, or find their own rate first
SLOW = {
    "optimi-radam", "optimi-ranger", "optimi-sgd", "torch-radam", "torch-adadelta", "torch-sgd", "prodigy", "soap",
    "sdnq-muon", "sdnq-muon+quantized_matmul",
}  # fmt: skip
# of their state at most this share of AdamW's bytes is left
SMALL = {
    "ao-adamw8bit": 0.27, "ao-adamw4bit": 0.14, "ao-adamfp8": 0.27, "ao-adamwfp8": 0.27, "bnb-adam8bit": 0.27,
    "bnb-adamw8bit": 0.27, "bnb-lion8bit": 0.14, "bnb-adagrad8bit": 0.14, "bnb-ademamix8bit": 0.4, "sdnq-adamw": 0.32,
    "sdnq-lion": 0.16, "sdnq-came": 0.18, "sdnq-muon": 0.16, "sdnq-adafactor": 0.01,
}  # fmt: skip
SCHEDULE_FREE = [name for name in INSTALLED if OPTIMIZERS[name].schedule_free]


@pytest.fixture(autouse=True)
def uncompiled(request):
    """Updates that torch would compile run as they are written, but for the test of the compiled ones."""
    with torch.compiler.set_stance("default" if request.node.get_closest_marker("slow") else "force_eager"):
        yield


def options(name: str, **values: Any) -> Config:
    return Config(model_family="flux", optimizer=name, **values)


class Bowl:
    """A quadratic with its lowest point at 1, and an optimizer on it."""

    def __init__(self, name: str, rate: float = 0.05, **values: Any):
        dtype = torch.bfloat16 if name == "adamw_bf16" else torch.float32
        start = torch.Generator().manual_seed(0)
        self.parameters = [nn.Parameter(torch.randn(s, generator=start).to(dtype)) for s in ((128, 128), (8,))]
        self.optimizer = build(options(name, **values), self.parameters, rate, seed=3)

    def loss(self) -> torch.Tensor:
        return sum(((p.float() - 1) ** 2).sum() for p in self.parameters)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()


def settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Settings of the first group by their usual names; optimi keeps betas apart."""
    group = dict(optimizer.param_groups[0])
    betas = tuple(group[f"beta{i}"] for i in (1, 2, 3) if group.get(f"beta{i}") is not None)
    return {"betas": betas, **group} if betas else group


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state as a checkpoint writes and reads it."""
    plain, tensors = flatten(state)
    return restore(json.loads(json.dumps(plain, sort_keys=True)), load(save(tensors)) if tensors else {})


@each_row("name", INSTALLED)
def test_it_descends(name):
    bowl = Bowl(name)
    first = bowl.loss().item()

    bowl.run(60)

    assert bowl.loss().item() < first * (1.0 if name in SLOW else 0.5)


@each_row("name", INSTALLED)
def test_its_state_survives_a_checkpoint_to_the_byte(name):
    resume_through_a_file(name)


def resume_through_a_file(name: str) -> None:
    """Asks that seven steps, a checkpoint and five more are twelve steps."""
    bowl, resumed = Bowl(name), Bowl(name)
    bowl.run(7)
    with torch.no_grad():
        for mine, theirs in zip(resumed.parameters, bowl.parameters, strict=True):
            mine.copy_(theirs)

    resumed.optimizer.load_state_dict(through_a_file(bowl.optimizer.state_dict()))
    generator = torch.get_rng_state()  # a checkpoint has it too, and stochastic rounding draws from it
    bowl.run(5)
    torch.set_rng_state(generator)
    resumed.run(5)

    for mine, theirs in zip(resumed.parameters, bowl.parameters, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.slow
# they share their compiled update, but for what is done to the state
@pytest.mark.parametrize("name", [name for name in INSTALLED if OPTIMIZERS[name].compiles][:2])
def test_a_compiled_update_resumes_to_the_byte_and_is_the_written_one(name):
    resume_through_a_file(name)
    bowl, written = Bowl(name), Bowl(name)
    bowl.run(3)
    with torch.compiler.set_stance("force_eager"):
        written.run(3)

    torch.testing.assert_close(bowl.parameters[0], written.parameters[0], rtol=1e-3, atol=1e-3)


@each_row("name", [name for name in SMALL if name in INSTALLED])
def test_a_small_state_is_small(name):
    sizes = []
    for each in (name, "torch-adamw"):
        bowl = Bowl(each)
        bowl.run(1)
        sizes.append(sum(tensor.nbytes for tensor in flatten(bowl.optimizer.state_dict())[1].values()))

    assert sizes[0] / sizes[1] < SMALL[name]


@each_row("name", INSTALLED)
def test_the_schedule_sets_the_rate_that_is_used(name):
    bowl = Bowl(name)
    before = [p.detach().clone() for p in bowl.parameters]
    schedule = Scheduler(bowl.optimizer, "constant_with_warmup", ScheduleShape(warmup=10, total=100))

    assert [schedule.set(step) for step in (5, 0)] == pytest.approx([0.025, 0])
    bowl.run(2)

    assert all(torch.equal(p, was) for p, was in zip(bowl.parameters, before, strict=True))


@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_a_schedule_free_optimizer_is_built_ready_to_train(name):
    bowl = Bowl(name)

    bowl.run(1)

    assert all(group["train_mode"] for group in bowl.optimizer.param_groups)


def test_a_schedule_free_optimizer_saves_other_weights_than_it_trains():
    bowl = Bowl("adamw_schedulefree")
    bowl.run(10)
    trained = bowl.parameters[0].detach().clone()

    bowl.optimizer.eval()

    assert not torch.equal(trained, bowl.parameters[0])


@pytest.mark.parametrize("name", ["adamw_schedulefree", "adamw_schedulefree+aggressive", "adamw_schedulefree+no_kahan"])
def test_warm_up_steps_go_into_a_schedule_free_optimizer(name):
    assert Bowl(name, lr_warmup_steps=12).optimizer.param_groups[0]["warmup_steps"] == 12


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("adamw_bf16", {"betas": (0.9, 0.999), "weight_decay": 0.01, "eps": 1e-6}),
        ("adamw_schedulefree", {"betas": (0.9, 0.999), "weight_decay": 0.01, "eps": 1e-8}),
        ("adamw_schedulefree+aggressive", {"weight_decay": 1e-3, "eps": 1e-6}),
        ("adamw_schedulefree+no_kahan", {"weight_decay": 1e-3, "eps": 1e-6}),
        ("optimi-stableadamw", {"betas": (0.9, 0.99), "weight_decay": 0.01, "eps": 1e-6, "kahan_sum": True}),
        ("optimi-adamw", {"betas": (0.9, 0.99), "weight_decay": 0.0, "eps": 1e-6, "kahan_sum": True}),
        ("optimi-lion", {"betas": (0.9, 0.99), "weight_decay": 0.0, "kahan_sum": True}),
        ("optimi-radam", {"betas": (0.9, 0.99), "weight_decay": 0.0, "decouple_wd": True}),
        ("optimi-ranger", {"betas": (0.9, 0.99), "k": 6, "alpha": 0.5, "decouple_wd": True}),
        ("optimi-adan", {"betas": (0.98, 0.92, 0.999), "weight_decay": 0.02, "adam_wd": False}),
        ("optimi-adam", {"betas": (0.9, 0.99), "weight_decay": 0.0, "decouple_wd": False}),
        ("optimi-sgd", {"momentum": 0.0, "weight_decay": 0.0, "dampening": False}),
        ("prodigy", {"betas": (0.9, 0.99), "weight_decay": 0.0, "d0": 1e-6, "d_coef": 1.0, "prodigy_steps": 0}),
        ("torch-adamw", {"weight_decay": 0.01}),
        ("ao-adamw8bit", {"betas": (0.9, 0.999), "weight_decay": 0.01, "eps": 1e-6}),
        ("bnb-adamw", {"betas": (0.9, 0.999), "weight_decay": 0.01, "eps": 1e-6}),
        ("bnb-adam8bit", {"betas": (0.9, 0.999), "weight_decay": 0, "eps": 1e-8}),
        ("bnb-lion8bit", {"betas": (0.9, 0.99), "weight_decay": 0}),
        ("bnb-ademamix", {"betas": (0.9, 0.999, 0.9999), "alpha": 5.0, "weight_decay": 0.01}),
        ("sdnq-adamw", {"betas": (0.9, 0.95), "weight_decay": 0.01, "clip_threshold": (1.0, 1e-3, 1e-3),
                        "quantized_buffers_dtype": "uint8", "quantized_buffers_group_size": 32,
                        "use_stochastic_buffers": True}),
        ("sdnq-lion", {"betas": (0.9, 0.99), "use_quantized_buffers": True}),
        ("sdnq-muon+quantized_matmul", {"use_quantized_matmul": True, "use_quantized_buffers": True}),
        ("soap", {"betas": (0.95, 0.95), "eps": 1e-8, "weight_decay": 0.01, "precondition_frequency": 10,
                  "max_precondition_dim": 10000, "merge_dims": False, "correct_bias": True}),
        ("torch-adafactor", {"beta2_decay": -0.8, "eps": (None, 1e-3), "d": 1.0}),
    ],
)  # fmt: skip
def test_defaults_are_the_published_ones(name, values):
    if name not in INSTALLED:
        pytest.skip(f"{find_optimizer(name).path} is not installed")

    group = settings(Bowl(name).optimizer)

    assert {key: group[key] for key in values} == values


def test_the_rate_reaches_the_optimizer():
    assert Bowl("torch-adamw", rate=0.125).optimizer.param_groups[0]["lr"] == 0.125


def test_both_optimizer_betas_are_taken():
    bowl = Bowl("torch-adamw", optimizer_beta1=0.5, optimizer_beta2=0.6)

    assert bowl.optimizer.param_groups[0]["betas"] == (0.5, 0.6)


def test_adam_settings_reach_adam_type_optimizers_when_given():
    group = Bowl("torch-adamw", adam_weight_decay=0.2, adam_epsilon=1e-4, adam_beta1=0.8).optimizer.param_groups[0]

    assert (group["weight_decay"], group["eps"], group["betas"]) == (0.2, 1e-4, (0.8, 0.999))


def test_adam_settings_leave_other_optimizers_alone():
    assert Bowl("torch-rmsprop", adam_epsilon=1e-4).optimizer.param_groups[0]["eps"] == 1e-8


def test_optimizer_config_wins_over_the_defaults():
    bowl = Bowl("optimi-adamw", optimizer_config="weight_decay=0.3,betas=(0.1,0.2)")

    group = settings(bowl.optimizer)
    assert (group["weight_decay"], group["betas"]) == (0.3, (0.1, 0.2))


def test_an_unknown_argument_is_refused_with_those_that_exist():
    with pytest.raises(ConfigError, match="AdamW has no argument wieght_decay") as caught:
        Bowl("torch-adamw", optimizer_config="wieght_decay=0.3")

    assert "weight_decay" in caught.value.change


def test_a_value_that_the_class_refuses_is_a_configuration_error():
    with pytest.raises(ConfigError, match="AdamW refuses it: Invalid beta"):
        Bowl("torch-adamw", optimizer_config="betas=(2.0,3.0)")


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError) as caught:
        find_optimizer("torch-adamww")

    assert "did you mean torch-adamw" in caught.value.problem
    assert "adamw_bf16" in caught.value.change


def test_every_name_that_is_offered_has_a_row():
    assert set(NAMES) <= set(OPTIMIZERS)


@pytest.mark.parametrize("name", [name for name, row in OPTIMIZERS.items() if not row.on_cpu])
def test_what_needs_a_gpu_is_refused_without_one(name):
    with pytest.raises(ConfigError, match="on the host alone"):
        validate_optimizer(options(name), CPU)
    with pytest.raises(ConfigError, match="on the host alone"):
        validate_optimizer(options(name, optimizer_cpu_offload_method="cpu"), torch.device("cuda"))

    validate_optimizer(options(name.removesuffix("-paged")), CPU)


def test_a_compiled_update_is_refused_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")

    with pytest.raises(ConfigError, match="no C\\+\\+ compiler"):
        validate_optimizer(options("ao-adamw8bit"), CPU)


def test_a_setting_that_a_class_would_swallow_is_refused():
    with pytest.raises(ConfigError, match="AdamW has no argument wieght_decay"):
        Bowl("sdnq-adamw", optimizer_config="wieght_decay=0.3")
    with pytest.raises(ConfigError, match="Muon refuses it: not every name"):
        Bowl("sdnq-muon", optimizer_config="wieght_decay=0.3")


def test_a_package_that_is_missing_is_known_before_the_start(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(MissingPackage, match=r"darkroom-trainer\[quant\]"):
        validate_optimizer(options("bnb-lion"), CPU)


def test_fused_kernels_are_asked_for_and_give_nearly_the_same():
    plain, fused = Bowl("torch-adamw"), Bowl("torch-adamw", fuse_optimizer=True)
    plain.run(20)
    fused.run(20)

    assert fused.optimizer.param_groups[0]["fused"]
    for one, two in zip(plain.parameters, fused.parameters, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def test_fused_kernels_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match="optimi-lion has no fused kernels"):
        validate_optimizer(options("optimi-lion", fuse_optimizer=True), CPU)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optimi", None)

    with pytest.raises(MissingPackage, match=r"darkroom-trainer\[optim\]"):
        Bowl("optimi-lion")


@pytest.mark.parametrize("path", ["torch.optim.NAdam", "torch.optim:NAdam"])
def test_any_import_path_is_an_optimizer(path):
    assert type(Bowl(path).optimizer) is torch.optim.NAdam


def test_an_import_path_that_leads_nowhere_is_a_configuration_error():
    with pytest.raises(ConfigError, match=r"'torch\.optim\.Nadir'"):
        Bowl("torch.optim.Nadir")


def test_adamw_bf16_refuses_float32_weights():
    with pytest.raises(UserError, match="bfloat16 weights"):
        build(options("adamw_bf16"), [nn.Parameter(torch.zeros(2))], 1e-3, seed=0)
