"""LayerSync: its term by hand, whom it teaches, and what it refuses before anything is encoded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from darkroom import families
from darkroom.core.errors import ConfigError
from darkroom.memory.compiling import compile_blocks
from darkroom.objectives import regularizers
from darkroom.objectives.regularizers.layersync import LayerSync
from darkroom.objectives.taps import Recorded, list_image_blocks, record
from tests.families import conformance
from tests.objectives.test_taps import predict, woken_case
from tests.rows import each_row

ON = {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 2}


def layersync(name: str, model: nn.Module, **options: Any) -> LayerSync:
    settings = conformance.options(name, "tiny").model_copy(update={**ON, **options})
    (regularizer,) = regularizers.build(families.get(name), settings, [model])
    assert isinstance(regularizer, LayerSync)
    return regularizer


def term_and_gradients(prepare=lambda model: None) -> tuple[Tensor, Recorded, nn.Module, dict[str, Tensor]]:
    """The term of a prediction of PixArt's two blocks, and the gradients that it alone makes."""
    case, model, x_t, cond = woken_case("pixart_sigma")
    prepare(model.train())
    regularizer = layersync("pixart_sigma", model)
    with record(regularizer.taps) as recorded:
        predict(case, model, x_t, cond)
    term = regularizer(recorded, [])
    term.backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return term, recorded, model, found


def test_the_term_is_the_negative_mean_cosine_of_tokens_worked_by_hand():
    model = woken_case("pixart_sigma")[1]
    regularizer = layersync("pixart_sigma", model, layersync_lambda=0.5)
    student = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[0.0, 2.0], [1.0, 1.0]]])
    teacher = torch.tensor([[[4.0, 3.0], [0.0, 5.0]], [[0.0, 7.0], [-2.0, -2.0]]])

    # cosines 24 / 25, 0, 1, -1
    assert regularizer({"student": [student], "teacher": [teacher]}, []).item() == pytest.approx(-0.5 * 0.96 / 4)
    # a network that is called for one sample after the other says the same
    halves: Recorded = {"student": [*student.split(1)], "teacher": [*teacher.split(1)]}
    assert regularizer(halves, []).item() == pytest.approx(-0.5 * 0.96 / 4)
    # a block that is its own teacher
    assert regularizer({"student": [student], "teacher": [student]}, []).item() == pytest.approx(-0.5)


@each_row("name, image", [("flux2", slice(-1, None)), ("hidream", slice(0, 1))])
def test_beside_text_in_one_sequence_the_image_alone_counts(name, image):
    regularizer = layersync(name, conformance.case(name, "tiny").pipe().transformer)
    teacher = torch.randn(1, 3, 4)

    assert regularizer({"student": [teacher[:, image]], "teacher": [teacher]}, []).item() == pytest.approx(-0.2)


def test_the_term_of_a_network_is_that_of_its_blocks_and_teaches_the_student_alone():
    term, recorded, _, gradients = term_and_gradients()

    (student,), (teacher,) = recorded["student"], recorded["teacher"]
    cosine = (student * teacher).sum(-1) / (student.norm(dim=-1) * teacher.norm(dim=-1))
    assert term.item() == pytest.approx(-0.2 * cosine.mean().item(), rel=1e-5)
    assert any(name.startswith("transformer_blocks.0.") for name in gradients)
    assert not any(name.startswith("transformer_blocks.1.") for name in gradients)


# torch's compiler looks at it of every tensor that it is given
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@each_row(
    "prepare",
    [
        lambda model: model.enable_gradient_checkpointing(),
        lambda model: compile_blocks(
            model,
            list_image_blocks(families.get("pixart_sigma"), model),
            conformance.options("pixart_sigma", "tiny").model_copy(update={"dynamo_backend": "eager"}),
        ),
    ],
    ids=["gradient checkpointing", "compiled blocks"],
)
def test_the_term_and_its_gradients_are_the_same_with(prepare):
    plain, _, _, gradients = term_and_gradients()
    term, _, _, found = term_and_gradients(prepare)

    assert term.item() == plain.item()
    torch.testing.assert_close(found, gradients, rtol=0, atol=0)


@each_row(
    "name, options, said",
    [
        ("flux", {"layersync_student_block": None}, "layersync_student_block = None"),
        ("flux", {"layersync_student_block": 3}, "layersync_student_block = 3"),
        ("flux", {"layersync_teacher_block": 30}, "layersync_teacher_block = 30"),
        ("sdxl", {}, "layersync_enabled = True"),
        ("flux", {"controlnet": True}, "layersync_enabled = True"),
        ("flux", {"dynamo_backend": "eager", "dynamo_use_regional_compilation": False}, "dynamo_use_regional"),
    ],
)
def test_what_it_cannot_follow_is_refused_with_option_value_and_remedy(name, options, said):
    family = families.get(name)
    model = getattr(conformance.case(name, "tiny").pipe(), family.denoiser_component)
    with pytest.raises(ConfigError) as refused:
        layersync(name, model, **options)

    assert said in str(refused.value)
    assert any(word in str(refused.value) for word in ("number from 1 to 2", "Take", "Set dynamo"))


def test_blocks_count_from_one_and_the_first_is_also_zero():
    model = conformance.case("flux", "tiny").pipe().transformer
    for number in (0, 1):
        tapped = layersync("flux", model, layersync_student_block=number).taps["student"].modules
        assert tapped == [model.transformer_blocks[0]]
    assert layersync("flux", model).taps["teacher"].modules == [model.single_transformer_blocks[0]]


def test_experts_have_a_student_and_a_teacher_each_for_the_samples_that_are_theirs():
    case = conformance.case("wan", "tiny-pair")
    model = case.model(case.pipe())
    members = [*model.members.values()]
    settings = case.settings.model_copy(update=ON)
    (regularizer,) = regularizers.build(case.family, settings, members)
    x_t, text = torch.randn(2, *case.shape), torch.randn(2, 32, 32)
    with record(regularizer.taps) as recorded:
        case.family.predict(model, x_t, torch.tensor([0.95, 0.05]), {"text": text})
    regularizer(recorded, []).backward()

    assert [len(hidden) for hidden in recorded["student"]] == [1, 1]
    assert all(any(weight.grad is not None for weight in member.blocks[0].parameters()) for member in members)
    assert not any(weight.grad is not None for member in members for weight in member.blocks[1].parameters())
