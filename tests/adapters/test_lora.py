"""Low-rank adapters on tiny models: how they start, what trains, and what their files are worth elsewhere."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from darkroom.adapters.lora import relative_to_start
from darkroom.adapters.stock import WEIGHTS
from darkroom.core.errors import ConfigError

NAMES = ["flux", "sdxl"]
# how an adapter may start, and whether that leaves the model's answer exactly alone
STARTS = {
    "default": {},
    "gaussian": {"lora_init_type": "gaussian"},
    "dora": {"use_dora": True},
    "pissa": {"lora_init_type": "pissa"},
    "olora": {"lora_init_type": "olora"},
}


def settings(folder) -> dict:
    with safe_open(folder / WEIGHTS, "pt") as file:
        return json.loads(file.metadata()["lora_adapter_metadata"])


# -- start ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())
def test_a_new_adapter_leaves_the_answer_alone(attach, base_answer, name, start):
    bench = attach(name, **start)

    torch.testing.assert_close(bench.answer(), base_answer(name), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("start", [{}, {"lora_init_type": "gaussian"}])
def test_b_starts_at_zero(attach, start):
    tensors = attach(**start).adapter.layers()

    assert all(t.count_nonzero() == 0 for name, t in tensors.items() if ".lora_B." in name)
    assert all(t.count_nonzero() > 0 for name, t in tensors.items() if ".lora_A." in name)


def test_default_and_gaussian_draw_a_as_published(attach):
    name = "single_transformer_blocks.0.attn.to_q.lora_A.weight"

    kaiming = attach(lora_rank=32).adapter.layers()[name]
    gaussian = attach(lora_rank=32, lora_init_type="gaussian").adapter.layers()[name]

    # U(-b, b) with b = 1/sqrt(32) has deviation b/sqrt(3); the normal has 1/rank
    assert kaiming.abs().max() <= 32**-0.5
    assert kaiming.std().item() == pytest.approx(32**-0.5 / 3**0.5, rel=0.05)
    assert gaussian.std().item() == pytest.approx(1 / 32, rel=0.08)


def test_a_doras_magnitudes_are_the_norms_of_the_base_rows(attach):
    bench = attach(use_dora=True)
    layer = bench.model.single_transformer_blocks[0].attn.to_q

    torch.testing.assert_close(
        layer.lora_magnitude_vector["default"].weight.detach(), layer.base_layer.weight.norm(dim=1)
    )


def test_pissa_of_full_rank_takes_the_whole_weight(attach):
    layer = attach(lora_init_type="pissa", lora_rank=32).model.single_transformer_blocks[0].attn.to_q

    assert layer.base_layer.weight.abs().max() < 1e-5


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())
def test_the_seed_decides_the_start_to_the_byte(attach, start):
    def files(seed: int) -> list[bytes]:
        return [t.numpy().tobytes() for t in attach(seed=seed, **start).adapter.state().values()]

    torch.manual_seed(11)
    first = files(3)
    torch.manual_seed(12)

    assert first == files(3)
    if start.get("lora_init_type") not in ("pissa", "olora"):  # those are drawn from the weights alone
        assert first != files(4)


def test_attaching_leaves_the_global_generator_alone(attach):
    torch.manual_seed(9)
    expected = torch.randn(4)
    torch.manual_seed(9)

    attach()

    assert torch.equal(torch.randn(4), expected)


# -- what trains ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_only_adapter_parameters_train(attach, name):
    bench = attach(name)
    frozen = {n: p.detach().clone() for n, p in bench.model.named_parameters() if not p.requires_grad}

    bench.train()

    assert all(".lora_" in n for n in bench.adapter.trainable_parameters)
    assert all(torch.equal(p, frozen[n]) for n, p in bench.model.named_parameters() if n in frozen)
    assert all(p.grad is None for p in bench.model.parameters() if not p.requires_grad)


def test_training_changes_the_answer(attach, base_answer):
    bench = attach()

    bench.train()

    assert (bench.answer() - base_answer()).abs().max() > 0.01


def test_parameters_are_rank_times_both_widths(attach):
    bench = attach(peft_lora_target_modules=["single_transformer_blocks.0.attn.to_q"])

    assert bench.adapter.describe() == {"kind": "lora", "parameters": 4 * (32 + 32), "rank": 4, "alpha": 4, "layers": 1}


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (8.0, 2.0), (1.0, 0.25)])
def test_the_adapter_counts_alpha_over_rank(attach, alpha, scale):
    layer = attach(lora_alpha=alpha).model.single_transformer_blocks[0].attn.to_q

    assert layer.scaling["default"] == scale


def test_dropout_acts_in_training_alone(attach):
    bench = attach(lora_dropout=0.5)
    bench.train()

    bench.model.train()
    first, second = bench.answer(), bench.answer()
    bench.model.eval()

    assert not torch.equal(first, second)
    assert torch.equal(bench.answer(), bench.answer())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapter_weights_have_the_asked_precision(attach, dtype):
    assert {p.dtype for p in attach(dtype=dtype).adapter.trainable_parameters.values()} == {dtype}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())
def test_a_disabled_adapter_leaves_the_untouched_model(attach, base_answer, start):
    bench = attach(**start)
    bench.train()
    trained = bench.answer()

    with bench.adapter.disable():
        torch.testing.assert_close(bench.answer(), base_answer(), atol=1e-5, rtol=1e-4)

    assert torch.equal(bench.answer(), trained)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())
def test_the_stock_pipeline_answers_as_the_trained_model_does(attach, base_answer, tmp_path, name, start):
    bench = attach(name, lora_alpha=6.0, **start)
    bench.train()

    bench.adapter.export(tmp_path, {})
    theirs = bench.answer(bench.loaded(tmp_path))

    torch.testing.assert_close(theirs, bench.answer(), atol=2e-5, rtol=1e-3)
    assert (theirs - base_answer(name)).abs().max() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_the_stock_pipeline_holds_the_very_tensors_of_the_file(attach, tmp_path, name):
    from peft.utils import get_peft_model_state_dict

    bench = attach(name)
    bench.train()
    bench.adapter.export(tmp_path, {})

    loaded = get_peft_model_state_dict(bench.loaded(tmp_path), adapter_name="default_0")

    mine = bench.adapter.layers()
    assert loaded.keys() == mine.keys()
    assert all(torch.equal(loaded[key], mine[key]) for key in mine)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_untrained_adapter_that_changed_the_base_exports_no_change(attach, init):
    tensors = attach(lora_init_type=init).adapter.layers()

    for name in (n for n in tensors if ".lora_A." in n):
        delta = tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
        assert delta.abs().max() < 1e-5


def test_an_adapter_that_changed_the_base_is_exported_at_twice_the_rank(attach, tmp_path):
    bench = attach(lora_init_type="pissa")

    bench.adapter.export(tmp_path, {})

    assert bench.adapter.export_is_lossy
    assert settings(tmp_path)["transformer.r"] == 8
    assert settings(tmp_path)["transformer.lora_alpha"] == 8


def test_relative_to_start_is_the_difference_of_the_products():
    shapes = {"x.lora_A.weight": (2, 5), "x.lora_B.weight": (3, 2)}
    now, start = ({k: torch.randn(s) for k, s in shapes.items()} for _ in range(2))

    joined = relative_to_start(now, start)

    def product(tensors):
        return tensors["x.lora_B.weight"] @ tensors["x.lora_A.weight"]

    torch.testing.assert_close(product(joined), product(now) - product(start))


def test_bfloat16_adapters_keep_the_difference_to_their_exact_start(attach, tmp_path):
    bench = attach(lora_init_type="pissa", dtype=torch.bfloat16)
    for parameter in bench.adapter.trainable_parameters.values():
        parameter.data = parameter.data.float()  # compute in float32 with weights that were rounded

    bench.adapter.export(tmp_path, {})

    torch.testing.assert_close(bench.answer(bench.loaded(tmp_path)), bench.answer(), atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS.keys())
def test_equal_adapters_give_equal_bytes(attach, tmp_path, start):
    for folder in ("a", "b"):
        attach(**start).adapter.export(tmp_path / folder, {"zebra": "1", "apple": "2", "modelspec.title": "t"})

    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


def test_the_header_carries_metadata_and_peft_settings(attach, tmp_path):
    attach().adapter.export(tmp_path, {"modelspec.title": "grumbo"})

    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.title"] == "grumbo"
    assert metadata["format"] == "pt"
    assert settings(tmp_path)["transformer.target_modules"] == sorted(settings(tmp_path)["transformer.target_modules"])


@pytest.mark.parametrize("start", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_exported_files_restore_the_adapter_to_the_byte(attach, tmp_path, start):
    bench, other = attach(**start), attach(seed=8, **start)
    bench.train()
    bench.adapter.export(tmp_path, {})

    other.adapter.restore(tmp_path)

    mine, theirs = bench.adapter.state(), other.adapter.state()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_saving_asks_for_no_frozen_weight(attach, tmp_path, monkeypatch):
    """Some quantized weights cannot answer for their state while they are offloaded."""
    bench = attach()
    layers = [m.get_base_layer() for m in bench.model.modules() if hasattr(m, "get_base_layer")]
    for layer in layers:
        monkeypatch.setattr(layer, "_save_to_state_dict", lambda *_: pytest.fail("a frozen weight was asked for"))
    bench.adapter.export(tmp_path, {})

    assert layers
    assert len(load_file(tmp_path / WEIGHTS)) == len(bench.adapter.trainable_parameters)


def test_state_and_load_go_round(attach):
    bench, other = attach(lora_init_type="pissa"), attach(lora_init_type="pissa")
    bench.train()

    other.adapter.load(bench.adapter.state())

    assert torch.equal(bench.answer(), other.answer())


def test_a_state_of_other_targets_is_refused(attach):
    with pytest.raises(ValueError, match="tensors differ"):
        attach().adapter.load(attach(peft_lora_target_modules=["to_q"]).adapter.state())


# -- init_lora --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_starts_from_what_the_stock_pipeline_reads(attach, tmp_path, name):
    bench, other = attach(name), attach(name, seed=8)
    bench.train()
    bench.adapter.export(tmp_path, {})
    read = type(bench.stock()).lora_state_dict(str(tmp_path))

    count = other.adapter.start_from({other.family.denoiser_component: read[0] if isinstance(read, tuple) else read})

    assert count == len(other.adapter.trainable_parameters)
    assert torch.equal(bench.answer(), other.answer())


@pytest.mark.parametrize(
    ("change", "said"), [({"lora_rank": 8}, "lora_rank is 8"), ({"use_dora": True}, "tensors differ")]
)
def test_a_start_that_does_not_fit_is_refused(attach, tmp_path, change, said):
    attach().adapter.export(tmp_path, {})

    with pytest.raises(ValueError, match=said):
        attach(**change).adapter.start_from({"transformer": load_file(tmp_path / WEIGHTS)})


def test_tensors_of_other_components_are_passed_over(attach, tmp_path):
    attach(seed=3).adapter.export(tmp_path, {})
    tensors = load_file(tmp_path / WEIGHTS) | {"text_encoder.x.lora_A.weight": torch.zeros(1)}
    save_file(tensors, tmp_path / WEIGHTS)

    bench = attach()

    assert bench.adapter.start_from({"transformer": load_file(tmp_path / WEIGHTS)}) == len(
        bench.adapter.trainable_parameters
    )


# -- targets ----------------------------------------------------------------------------------------------------------


def adapted(bench) -> set[str]:
    return {name.rsplit(".lora_", 1)[0] for name in bench.adapter.trainable_parameters}


@pytest.mark.parametrize(
    "preset", ["all", "mmdit", "context", "context+ffs", "all+ffs", "all+ffs+embedder", "ai-toolkit"]
)
def test_a_preset_adapts_each_of_its_targets(attach, preset):
    bench = attach(flux_lora_target=preset)

    for target in bench.family.targets[preset]:
        assert any(name == target or name.endswith(f".{target}") for name in adapted(bench)), target


def test_families_without_presets_use_their_default(attach):
    assert {name.split(".attn")[1].split(".", 1)[1] for name in adapted(attach("sdxl"))} == {
        "to_q", "to_k", "to_v", "to_out.0",
    }  # fmt: skip


def test_named_modules_win_over_the_preset(attach):
    bench = attach(peft_lora_target_modules=["to_q", "add_q_proj"], flux_lora_target="ai-toolkit")

    assert {name.rsplit(".", 1)[1] for name in adapted(bench)} == {"to_q", "add_q_proj"}


def test_one_entry_may_be_a_preset(attach):
    assert adapted(attach(peft_lora_target_modules=["context"])) == adapted(attach(flux_lora_target="context"))


def test_one_entry_may_be_a_regular_expression(attach):
    bench = attach(peft_lora_target_modules=[r"transformer_blocks\.\d+\.attn\.(to_q|to_k)"])

    assert adapted(bench) == {"transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k"}


def test_all_linear_adapts_every_linear_layer(attach):
    bench = attach(peft_lora_target_modules=["all-linear"])

    linear = {name.removesuffix(".base_layer") for name, m in bench.model.named_modules() if type(m) is nn.Linear}
    assert adapted(bench) == {name for name in linear if ".lora_" not in name}


@pytest.mark.parametrize("targets", [["nothing_here"], [r"blocks\.\d+\.nothing"], ["no", "such"]])
def test_targets_that_match_nothing_are_refused(attach, targets):
    with pytest.raises(ConfigError, match="match no layer"):
        attach(peft_lora_target_modules=targets)


def test_a_preset_for_deeper_models_is_refused_on_a_shallow_one(attach):
    with pytest.raises(ConfigError, match="match no layer"):
        attach(flux_lora_target="nano")


def test_a_preset_that_the_family_lacks_is_refused(attach):
    with pytest.raises(ConfigError, match="no such list") as caught:
        attach("flux2", flux_lora_target="context+ffs")

    assert "context" in caught.value.change


def test_the_preset_of_flux_says_nothing_to_other_families(attach):
    bench = attach("sd3", flux_lora_target="all")

    assert {name.partition(".attn")[2].lstrip("2.") for name in adapted(bench)} == {"to_q", "to_k", "to_v", "to_out.0"}


# -- strength ---------------------------------------------------------------------------------------------------------


def test_a_strength_scales_what_the_adapter_adds_and_is_put_back(attach, base_answer):
    bench = attach()
    bench.train()
    usual = bench.answer()
    with bench.adapter.rescale(-0.5):
        half_back = bench.answer()
    with bench.adapter.rescale(0.0):
        nothing = bench.answer()

    torch.testing.assert_close(nothing, base_answer("flux"), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(half_back, usual, atol=1e-3)
    assert torch.equal(bench.answer(), usual)


def test_a_negative_strength_turns_the_gradient_round(attach):
    bench = attach()
    with torch.no_grad():  # B is zero, so only B has a gradient, and it is linear in the strength
        for name, parameter in bench.adapter.trainable_parameters.items():
            if "lora_B" in name:
                parameter.zero_()
    from tests.adapters.conftest import answer

    def gradient(strength):
        for parameter in bench.adapter.trainable_parameters.values():
            parameter.grad = None
        with bench.adapter.rescale(strength):
            answer(bench.family, bench.model, grad=True).sum().backward()
        return {n: p.grad.clone() for n, p in bench.adapter.trainable_parameters.items() if "lora_B" in n}

    forwards, backwards = gradient(0.6), gradient(-0.6)
    assert any(g.abs().max() > 0 for g in forwards.values())
    for name, one in forwards.items():
        torch.testing.assert_close(one, -backwards[name], atol=1e-6, rtol=1e-4)
