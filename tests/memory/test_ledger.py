"""What a computation takes, found without taking it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensor
from torch.utils.checkpoint import checkpoint

from darkroom.core.device import ASSUMED
from darkroom.memory.autocast import use_gpu_autocast_rules
from darkroom.memory.fake import FakeMemoryPolicy, bits_of
from darkroom.memory.ledger import ON_DEVICE, ON_HOST, SMALL, Ledger

CPU = torch.device("cpu")
MB = 2**20
SIDE = 512  # a square of float32 of this side is one MiB
SQUARE = SIDE * SIDE * 4


def squares(ledger: Ledger, count: int) -> nn.Sequential:
    """So many square layers and non-linearities, without numbers."""
    with torch.device("meta"):
        layers = [layer for _ in range(count) for layer in (nn.Linear(SIDE, SIDE, bias=False), nn.GELU())]
    return ledger.make_fake(nn.Sequential(*layers), CPU)


def test_weights_gradients_and_what_is_kept_between_are_counted():
    ledger = Ledger()
    model = squares(ledger, 4)
    assert ledger.reset_peaks()["cpu"] == 4 * SQUARE
    with ledger:
        model(torch.randn(SIDE, SIDE)).sum().backward()
    # on the way forward each of four layers keeps its input and GELU's; on the way back gradients take their place
    assert 4 * SQUARE + 8 * SQUARE <= ledger.peak["cpu"] <= 4 * SQUARE + 11 * SQUARE
    model.zero_grad(set_to_none=True)
    assert ledger.reset_peaks()["cpu"] == 4 * SQUARE


def test_what_is_computed_again_is_not_kept():
    peaks = []
    for again in (False, True):
        ledger = Ledger()
        model = squares(ledger, 16).requires_grad_(False)
        ledger.reset_peaks()
        with ledger:
            x = torch.randn(SIDE, SIDE, requires_grad=True)
            for block in (model[i : i + 8] for i in range(0, 32, 8)):
                x = checkpoint(block, x, use_reentrant=False) if again else block(x)
            x.sum().backward()
        peaks.append((ledger.peak["cpu"] - 16 * SQUARE) // SQUARE)
    # sixteen inputs of GELU, or four of blocks and those of one block
    assert 16 <= peaks[0] <= 20
    assert 8 <= peaks[1] <= 12


def test_a_model_that_no_machine_has_room_for_takes_none():
    ledger = Ledger()
    with torch.device("meta"):
        layer = nn.Linear(10**6, 10**6, bias=False)
    model = ledger.make_fake(layer, CPU, torch.bfloat16)
    with ledger, torch.no_grad():
        assert model(torch.empty(1, 10**6, dtype=torch.bfloat16)).shape == (1, 10**6)
    assert ledger.peak["cpu"] >= 2 * 10**12


def test_small_tensors_have_their_numbers():
    with Ledger():
        mask = torch.arange(8) < 5
        assert int(mask.sum()) == 5
        assert not hasattr(mask, "fake_mode")
        assert hasattr(torch.empty(SMALL + 1), "fake_mode")


def test_a_mask_that_no_machine_has_room_for_takes_none():
    ledger = Ledger()
    with ledger:
        row = torch.arange(SMALL) < 5
        assert not hasattr(row, "fake_mode")
        wide = row.expand(SMALL * 8, SMALL)
        mask = wide & wide
        assert hasattr(mask, "fake_mode")
    assert ledger.peak["cpu"] == SMALL * SMALL * 8


def test_what_is_written_over_takes_nothing_and_what_is_looked_at_is_the_same():
    ledger = Ledger()
    with ledger:
        x = torch.zeros(SIDE, SIDE)
        assert x.add_(1) is x
        assert x.view(-1).untyped_storage()._cdata == x.t().untyped_storage()._cdata == x.untyped_storage()._cdata
        twice = [x * 2, x * 2]
    assert ledger.current["cpu"] == 3 * SQUARE
    del twice
    assert ledger.current["cpu"] == SQUARE
    with ledger:
        together = torch.cat([x, x])
        del together, x
    assert ledger.current["cpu"] == 0


def test_masks_index_and_questions_that_need_numbers_are_denied():
    ledger = Ledger()
    with ledger:
        tokens, mask = torch.randn(64, SMALL), torch.arange(64) < 40
        assert tokens[mask].shape == (40, SMALL)
        tokens[~mask] = 0
        assert not bool(torch.all(tokens == 0))


def test_chance_is_not_used_up_by_what_has_no_numbers():
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    with Ledger():
        assert torch.randn(SMALL + 1, generator=generator).shape == (SMALL + 1,)
    assert torch.equal(before, generator.get_state())


def test_a_model_is_converted_as_others_are():
    ledger = Ledger()
    model = squares(ledger, 1)
    assert model.to(CPU)[0].weight.dtype == torch.float32
    ledger.reset_peaks()
    assert model.to(torch.bfloat16)[0].weight.dtype == torch.bfloat16
    assert ledger.reset_peaks()["cpu"] == SQUARE // 2


class Options:
    """Those that a placement reads."""

    enable_group_offload = ramtorch = group_offload_use_stream = fuse_qkv_projections = controlnet = False
    group_offload_to_disk_path = None
    musubi_blocks_to_swap, block_swap_ring_size = 3, 2
    base_model_precision, mixed_precision, quantize_via = "no_change", "no", "cpu"


def test_blocks_that_wait_leave_room_for_two_of_them():
    ledger, options = Ledger(), Options()
    model = nn.Module()
    model.blocks = nn.ModuleList(squares(ledger, 1) for _ in range(4))
    memory_policy = FakeMemoryPolicy(options, torch.device("cpu"), ["blocks"], ledger)
    memory_policy.prepare_denoisers({"denoiser": model})
    assert ledger.reset_peaks()["cpu"] == (4 + 2) * SQUARE  # the device is the host here


def test_narrow_layers_take_their_bits():
    ledger, options = Ledger(), Options()
    options.musubi_blocks_to_swap, options.base_model_precision = 0, "int4-quanto"
    model = nn.Module()
    model.blocks = squares(ledger, 4)
    ledger.make_fake(model, CPU)
    FakeMemoryPolicy(options, CPU, ["blocks"], ledger).prepare_denoisers({"denoiser": model})
    assert ledger.reset_peaks()["cpu"] == 4 * SQUARE * bits_of("int4-quanto") / 32
    with ledger:
        x = torch.randn(SIDE, SIDE, requires_grad=True)
        model.blocks(x).sum().backward()
    assert x.grad is not None


# -- a device that is not here -----------------------------------------------------------------------------------------


def test_what_is_moved_to_a_device_is_counted_there_and_leaves_the_host():
    ledger = Ledger()
    model = squares(ledger, 4).requires_grad_(False)
    assert ledger.current == {ON_HOST: 4 * SQUARE}
    ledger.reset_peaks()
    model.to(ASSUMED)
    with ledger:
        answer = model(torch.empty(SIDE, SIDE, device=ASSUMED))
        back = answer.cpu()

    assert ledger.current == {ON_HOST: SQUARE, ON_DEVICE: 5 * SQUARE}
    # each weight leaves the host as soon as it has arrived
    assert ledger.peak[ON_HOST] <= 5 * SQUARE
    assert (answer.device, back.device) == (ASSUMED, CPU)


def test_gradients_come_back_over_the_way_between_the_devices():
    ledger = Ledger()
    model = squares(ledger, 1).to(ASSUMED)
    with ledger:
        model(torch.empty(SIDE, SIDE, device=ASSUMED)).cpu().sum().backward()

    assert model[0].weight.grad.device == ASSUMED


def test_small_tensors_with_numbers_are_where_what_they_meet_is():
    ledger = Ledger()
    model = squares(ledger, 1).to(ASSUMED)
    with ledger:
        scale = torch.arange(SIDE, dtype=torch.float32)
        assert (model(torch.empty(SIDE, SIDE, device=ASSUMED)) * scale).device == ASSUMED
        assert scale.sum().item() == SIDE * (SIDE - 1) / 2


def test_narrow_weights_stay_narrow_where_they_are_sent():
    ledger, options = Ledger(), Options()
    options.musubi_blocks_to_swap, options.base_model_precision = 0, "int4-quanto"
    model = nn.Module()
    model.blocks = squares(ledger, 4)
    ledger.make_fake(model, CPU)
    FakeMemoryPolicy(options, ASSUMED, ["blocks"], ledger).prepare_denoisers({"denoiser": model})

    # the wide ones were never on the device
    assert ledger.current[ON_DEVICE] == ledger.peak[ON_DEVICE] == 4 * SQUARE * bits_of("int4-quanto") / 32
    assert ledger.current[ON_HOST] == 0


def test_blocks_that_wait_were_never_on_the_device_all_at_once():
    ledger, options = Ledger(), Options()
    model = nn.Module()
    model.blocks = nn.ModuleList(squares(ledger, 1) for _ in range(4))
    memory_policy = FakeMemoryPolicy(options, ASSUMED, ["blocks"], ledger)
    memory_policy.prepare_denoisers({"denoiser": model})

    waiting = options.musubi_blocks_to_swap
    assert ledger.current == {ON_HOST: waiting * SQUARE, ON_DEVICE: (4 - waiting + 2) * SQUARE}
    assert ledger.peak[ON_DEVICE] == ledger.current[ON_DEVICE]


def test_a_weight_of_two_names_is_counted_once():
    ledger = Ledger()
    with torch.device("meta"):
        model = nn.ModuleDict({"table": nn.Embedding(SIDE, SIDE), "head": nn.Linear(SIDE, SIDE, bias=False)})
    model["head"].weight = model["table"].weight
    ledger.make_fake(model, CPU)
    assert ledger.current[ON_HOST] == SQUARE
    model.to(ASSUMED)

    assert ledger.current[ON_DEVICE] == SQUARE
    assert model["head"].weight is model["table"].weight


def test_autocast_widens_what_it_widens_on_a_gpu_and_only_inside():
    x = torch.randn(4, 8).bfloat16()
    found = []
    for rules in (use_gpu_autocast_rules(), torch.no_grad()):
        with rules, torch.autocast("cpu", torch.bfloat16):
            found.append((nn.functional.layer_norm(x, (8,)).dtype, x.softmax(-1).dtype, x.sum().dtype, x.pow(2).dtype))

    assert found == [(torch.float32,) * 4, (torch.bfloat16,) * 4]


def test_optimizers_that_work_on_lists_take_what_they_make():
    ledger = Ledger()
    model = squares(ledger, 4)
    with ledger:
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
        ledger.reset_peaks()
        optimizer.step()

    # two averages, and the roots of one of them for all weights at once
    assert ledger.current[ON_HOST] == 16 * SQUARE
    assert 18 * SQUARE <= ledger.peak[ON_HOST] <= 21 * SQUARE


def test_numbers_put_into_places_of_a_mask_cost_no_operators(monkeypatch):
    with Ledger() as ledger:
        mask = torch.full((300, 300), float("-inf"))
        before = ledger.current.copy()
        monkeypatch.setattr(Ledger, "__torch_dispatch__", lambda *given: pytest.fail("an operator"))
        for row in range(300):
            mask[row, : row + 1] = 0
        monkeypatch.undo()

    assert ledger.current == before


def test_a_mask_of_all_tokens_by_all_is_counted_and_not_computed():
    tokens = 1 << 14
    with Ledger() as ledger:
        row = torch.ones(1, 1, 1, 8, dtype=torch.bool).repeat(1, 1, 1, tokens // 8)
        square = row.repeat(1, 1, tokens, 1)

    assert not isinstance(row, FakeTensor)
    assert isinstance(square, FakeTensor)
    assert ledger.current[ON_HOST] >= tokens**2
