"""One update: accumulation, clipping, precision, and what is said when the loss is not a number."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch

from darkroom.core.errors import UserError

from .conftest import Rows, rows

pytestmark = pytest.mark.smoke


def joined(a: Rows, b: Rows) -> Rows:
    return Rows(torch.cat([a.x, b.x]), torch.cat([a.y, b.y]))


def test_two_accumulated_batches_equal_one_of_double_size(tiny_run):
    halves, whole = tiny_run(max_grad_norm=0.0), tiny_run(max_grad_norm=0.0)

    for seed in (1, 3, 5):
        halves.step(rows(seed), rows(seed + 1))
        whole.step(joined(rows(seed), rows(seed + 1)))

    torch.testing.assert_close(halves.weight, whole.weight)


def test_accumulated_loss_is_the_mean_of_the_batches(tiny_run):
    a, b = rows(1), rows(2)
    alone = [tiny_run().step(batch).losses["denoise"] for batch in (a, b)]

    result = tiny_run().step(a, b)

    assert result.losses["denoise"] == pytest.approx(sum(alone) / 2)
    assert result.samples == 8


def test_a_report_pairs_each_noise_level_with_its_error(tiny_run):
    run, batch = tiny_run(), rows(1)
    errors = ((run.stepper.model(batch.x) - batch.y) ** 2).mean(1).tolist()

    result = run.step(batch)

    assert [level for level, _ in result.losses_by_level] == pytest.approx([0.0, 0.3, 0.6, 0.9])
    assert [error for _, error in result.losses_by_level] == pytest.approx(errors)


def test_value_clipping_bounds_each_entry_of_the_update(tiny_run):
    run = tiny_run(optimizer="torch-sgd", learning_rate=1.0, grad_clip_method="value", max_grad_norm=0.01)
    before = run.weight

    result = run.step(rows(1))

    assert (run.weight - before).abs().max().item() == pytest.approx(0.01, rel=1e-4)
    assert result.metrics["grad_absmax"] > 0.01


def test_norm_clipping_bounds_the_length_of_the_update(tiny_run):
    run = tiny_run(optimizer="torch-sgd", learning_rate=1.0, grad_clip_method="norm", max_grad_norm=0.01)
    before = torch.cat([p.detach().flatten().clone() for p in run.stepper.parameters])

    result = run.step(rows(1))

    after = torch.cat([p.detach().flatten() for p in run.stepper.parameters])
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-3)
    assert result.metrics["grad_norm"] > 0.01


def test_an_optimizer_that_limits_itself_is_not_clipped_before(tiny_run):
    pytest.importorskip("optimi")
    clipped = tiny_run(optimizer="optimi-stableadamw", max_grad_norm=1e-6)
    free = tiny_run(optimizer="optimi-stableadamw", max_grad_norm=0.0)

    clipped.step(rows(1))
    free.step(rows(1))

    assert torch.equal(clipped.weight, free.weight)


def test_gradients_are_gone_after_a_step(tiny_run):
    run = tiny_run()

    run.step(rows(1))

    assert all(p.grad is None for p in run.stepper.parameters)


def test_bfloat16_autocast_computes_in_bfloat16_and_keeps_float32_weights(tiny_run):
    run = tiny_run(precision="bf16")
    seen = []
    run.stepper.model.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))

    result = run.step(rows(1))

    assert seen == [torch.bfloat16]
    assert run.weight.dtype == torch.float32
    assert result.losses["denoise"] == pytest.approx(tiny_run().step(rows(1)).losses["denoise"], rel=0.02)


def test_a_loss_that_is_not_a_number_names_the_pictures(tiny_run):
    run = tiny_run()
    bad = dataclasses.replace(rows(1), y=torch.full((4, 2), float("nan")), paths=("cats/torn.png",))

    with pytest.raises(UserError, match="not a number") as caught:
        run.step(rows(2), bad)

    assert "cats/torn.png" in str(caught.value)
    assert "learning_rate" in str(caught.value)


def test_the_average_is_updated_with_the_number_of_finished_steps(tiny_run):
    run = tiny_run(use_ema=True)

    reports = [run.step(rows(seed)) for seed in range(3)]

    assert [r.metrics["ema_decay"] for r in reports] == pytest.approx([0.0, 2 / 11, 0.25])


def test_the_schedule_sees_the_number_of_finished_steps(tiny_run):
    run = tiny_run()
    run.stepper.scheduler.name, run.stepper.scheduler.shape = (
        "linear",
        dataclasses.replace(run.stepper.scheduler.shape, total=4),
    )

    rates = [run.step(rows(seed)).metrics["learning_rate"] for seed in range(4)]

    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])


@pytest.mark.parametrize("name", ["adamw_schedulefree", "torch-adamw"])
def test_inference_weights_give_the_trained_bytes_back(tiny_run, name):
    pytest.importorskip("schedulefree")
    run = tiny_run(optimizer=name)
    for seed in range(5):
        run.step(rows(seed))
    trained = run.weight

    with run.stepper.use_inference_weights():
        used = run.weight

    assert torch.equal(run.weight, trained)
    assert torch.equal(used, trained) == (name == "torch-adamw")


def test_the_strength_of_a_slider_holds_forwards_and_backwards(tiny_run):
    run = tiny_run()
    seen: list[float | None] = []

    @contextlib.contextmanager
    def scaled(factor):
        seen.append(factor)
        yield
        seen.append("left")

    run.stepper.scale_adapter = scaled
    run.stepper([dataclasses.replace(rows(0), slider_strength=-0.6), rows(1)], 0)
    assert seen == [-0.6, "left", None, "left"]
