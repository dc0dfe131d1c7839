"""What a computation takes, found without taking it."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from darkroom.memory.hollow import HollowPlacement, bits_of
from darkroom.memory.ledger import SMALL, Ledger

CPU = torch.device("cpu")
MB = 2**20
SIDE = 512  # a square of float32 of this side is one MiB
SQUARE = SIDE * SIDE * 4


def squares(ledger: Ledger, count: int) -> nn.Sequential:
    """So many square layers and non-linearities, without numbers."""
    with torch.device("meta"):
        layers = [layer for _ in range(count) for layer in (nn.Linear(SIDE, SIDE, bias=False), nn.GELU())]
    return ledger.hollow(nn.Sequential(*layers), CPU)


def test_weights_gradients_and_what_is_kept_between_are_counted():
    ledger = Ledger()
    model = squares(ledger, 4)
    assert ledger.mark()["cpu"] == 4 * SQUARE
    with ledger:
        model(torch.randn(SIDE, SIDE)).sum().backward()
    # on the way forward each of four layers keeps its input and GELU's; on the way back gradients take their place
    assert 4 * SQUARE + 8 * SQUARE <= ledger.peak["cpu"] <= 4 * SQUARE + 11 * SQUARE
    model.zero_grad(set_to_none=True)
    assert ledger.mark()["cpu"] == 4 * SQUARE


def test_what_is_computed_again_is_not_kept():
    peaks = []
    for again in (False, True):
        ledger = Ledger()
        model = squares(ledger, 16).requires_grad_(False)
        ledger.mark()
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
    model = ledger.hollow(layer, CPU, torch.bfloat16)
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
    assert ledger.now["cpu"] == 3 * SQUARE
    del twice
    assert ledger.now["cpu"] == SQUARE
    with ledger:
        together = torch.cat([x, x])
        del together, x
    assert ledger.now["cpu"] == 0


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
    ledger.mark()
    assert model.to(torch.bfloat16)[0].weight.dtype == torch.bfloat16
    assert ledger.mark()["cpu"] == SQUARE // 2


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
    placement = HollowPlacement(options, torch.device("cpu"), ["blocks"], ledger)
    placement.base({"denoiser": model})
    assert ledger.mark()["cpu"] == (4 + 2) * SQUARE  # the device is the host here


def test_narrow_layers_take_their_bits():
    ledger, options = Ledger(), Options()
    options.musubi_blocks_to_swap, options.base_model_precision = 0, "int4-quanto"
    model = nn.Module()
    model.blocks = squares(ledger, 4)
    ledger.hollow(model, CPU)
    HollowPlacement(options, CPU, ["blocks"], ledger).base({"denoiser": model})
    assert ledger.mark()["cpu"] == 4 * SQUARE * bits_of("int4-quanto") / 32
    with ledger:
        x = torch.randn(SIDE, SIDE, requires_grad=True)
        model.blocks(x).sum().backward()
    assert x.grad is not None
