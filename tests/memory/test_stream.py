"""Weights that take turns on the device give what resident ones give, and learn what those learn."""

from __future__ import annotations

import copy
import gc
import random
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from darkroom.memory.checkpointing import Checkpoints
from darkroom.memory.stream import WeightStreamer, find_leaf_layers
from tests.rows import each_row

CPU = torch.device("cpu")


class Block(nn.Module):
    """Two streams, as in double blocks, and an adapter that is trained."""

    def __init__(self, width: int):
        super().__init__()
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)
        self.register_buffer("scale", torch.rand(width))
        self.adapter = nn.Linear(width, width, bias=False)

    def forward(self, x, y):
        return torch.tanh(self.one(x) * self.scale) + self.adapter(x), torch.sin(self.two(y)) + x


class Net(nn.Module):
    def __init__(self, depth: int = 5, width: int = 8, saving: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.saving = saving
        self.requires_grad_(False)
        for block in self.blocks:
            block.adapter.requires_grad_(True)

    def forward(self, x):
        y = x
        for block in self.blocks:
            x, y = checkpoint(block, x, y, use_reentrant=False) if self.saving else block(x, y)
        return (x * y).sum()


def grads(net: Net, x) -> list:
    net.zero_grad()
    loss = net(x)
    loss.backward()
    return [loss.detach(), *(block.adapter.weight.grad.clone() for block in net.blocks)]


@each_row("saving", [False, True], ids=["plain", "checkpointed"])
@each_row("slots", [1, 2, 3])
@each_row("chosen", [(4,), (1, 3), (0, 1, 2, 3, 4)])
def test_loss_and_gradients_are_the_resident_ones(saving, slots, chosen):
    torch.manual_seed(0)
    net = Net(saving=saving)
    x = torch.randn(3, 8)
    twin = copy.deepcopy(net)
    WeightStreamer([[net.blocks[i]] for i in chosen], CPU, slots)

    for _ in range(3):
        for one, two in zip(grads(net, x), grads(twin, x), strict=True):
            assert torch.equal(one, two)
    with torch.no_grad():
        assert torch.equal(net(x), twin(x))
        assert torch.equal(net(x), twin(x))


def test_only_so_many_units_are_on_the_device():
    net = Net(depth=6)
    size = sum(p.numel() * 4 for p in net.blocks[0].parameters() if not p.requires_grad) + 8 * 4
    stream = WeightStreamer([[block] for block in net.blocks[2:]], CPU, slots=2)

    grads(net, torch.randn(3, 8))

    assert sorted(stream.holds) == [0, 1]
    assert 2 * size <= stream.bytes_on_device <= 2 * (size + 5 * 256)
    assert stream.bytes_on_host == 2 * stream.bytes_on_device
    # what is not there lies in the host's copy, which the weights share
    for unit in stream.units[2:]:
        assert unit.modules[0].one.weight.untyped_storage().data_ptr() == unit.host.untyped_storage().data_ptr()


@pytest.mark.parametrize("saving", [False, True], ids=["plain", "checkpointed"])
def test_what_follows_is_fetched_before_it_is_asked_for(saving):
    net = Net(depth=6, saving=saving)
    stream = WeightStreamer([[block] for block in net.blocks], CPU, slots=2)
    missed = []
    use = stream.use

    def watched(number, back=False):
        if stream.holds[number % 2] != number:
            missed.append(number)
        use(number, back)

    stream.use = watched
    x = torch.randn(3, 8)
    grads(net, x)
    assert missed == [0]
    grads(net, x)
    assert missed == [0]
    with torch.no_grad():
        net(x), net(x)
    assert missed == [0]


def test_the_adapter_stays_where_it_is():
    net = Net()
    before = [block.adapter.weight.data_ptr() for block in net.blocks]
    WeightStreamer([[block] for block in net.blocks], CPU)

    grads(net, torch.randn(3, 8))

    assert [block.adapter.weight.data_ptr() for block in net.blocks] == before


def test_groups_of_blocks_and_single_layers_do_the_same_from_a_file(tmp_path):
    net = Net()
    x = torch.randn(3, 8)
    expected = grads(copy.deepcopy(net), x)
    kinds = {
        "pairs": [net.blocks[:2], net.blocks[2:4], net.blocks[4:]],
        "layers": [[layer] for layer in find_leaf_layers([net], (nn.Linear,)) if not layer.weight.requires_grad],
    }
    for kind, groups in kinds.items():
        twin = copy.deepcopy((net, [list(group) for group in groups]))
        (tmp_path / kind).mkdir()
        stream = WeightStreamer(twin[1], CPU, slots=2, folder=tmp_path / kind)
        for one, two in zip(grads(twin[0], x), expected, strict=True):
            assert torch.equal(one, two)
        files = [tmp_path / kind / f"group_{i}.bin" for i in range(len(groups))]
        assert [file.stat().st_size for file in files] == [unit.size for unit in stream.units]


def test_layers_are_found_by_their_names():
    one, two = (Block(8) for _ in range(2))
    net = nn.ModuleList([one, two])

    assert find_leaf_layers([net], patterns="one, adapter") == [one.one, one.adapter, two.one, two.adapter]
    assert find_leaf_layers([net], patterns="1.t*") == [two.two]
    assert find_leaf_layers([net], patterns="0") == [one.one, one.two, one.adapter]
    assert len(find_leaf_layers([net])) == len(find_leaf_layers([net], (nn.Linear,))) == 6
    assert find_leaf_layers([net], (nn.Conv2d,)) == []


class Branches(nn.Module):
    """Layers beside and behind each other, some of them used twice, on inputs of three dimensions."""

    def __init__(self, count: int, width: int, generator: random.Random):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=generator.random() < 0.7) for _ in range(count))
        self.plan = [generator.sample(range(count), generator.randint(1, min(3, count))) for _ in range(4)]
        self.adapters = nn.ParameterList(nn.Parameter(torch.randn(width)) for _ in self.plan)
        for layer in self.layers:
            layer.requires_grad_(False)

    def forward(self, x):
        for together, adapter in zip(self.plan, self.adapters, strict=True):
            x = sum(torch.tanh(self.layers[i](x * adapter)) for i in together) + x
        return x.square().mean()


@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_layers_in_any_order_give_the_resident_gradients(seed, count, slots):
    torch.manual_seed(seed)
    net = Branches(count, 8, random.Random(seed))
    twin = copy.deepcopy(net)
    WeightStreamer([[layer] for layer in net.layers], CPU, slots)
    x = torch.randn(2, 3, 8)

    for _ in range(2):
        twin.zero_grad()
        twin(x).backward()
        net.zero_grad()
        net(x).backward()
        for one, two in zip(net.adapters, twin.adapters, strict=True):
            assert torch.equal(one.grad, two.grad)


class Mixed(nn.Module):
    """A block of layers that keep their weight itself for the way back, as convolutions and norms do."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.conv = nn.GroupNorm(2, width), nn.Conv1d(width, width, 3, padding=1)
        self.out = nn.Linear(6, 6)
        self.adapter = nn.Conv1d(width, width, 1, bias=False)

    def forward(self, x):
        x = x + self.conv(torch.tanh(self.norm(x))) + self.adapter(x)
        return torch.tanh(self.out(x)) * x


@given(st.integers(0, 10_000), st.integers(1, 4), st.booleans())
@settings(max_examples=20, deadline=None)
def test_layers_that_move_alone_in_blocks_that_are_computed_again_give_the_resident_gradients(seed, slots, trained):
    torch.manual_seed(seed)
    net = nn.Sequential(*(Mixed(4) for _ in range(3))).requires_grad_(trained)
    for block in net:
        block.adapter.requires_grad_(True)
    twin = copy.deepcopy(net)
    frozen_or_all = [layer for layer in find_leaf_layers([net]) if trained or not layer.weight.requires_grad]
    stream = WeightStreamer([[layer] for layer in frozen_or_all], CPU, slots, trained=trained)
    stream.hook_gradients()
    again = Checkpoints(streams_single_layers=True)

    for x in torch.randn(2, 2, 4, 6):
        y = x
        for block in net:
            y = again(block, y)
        y.square().mean().backward()
        stream.collect_offloaded_grads()
        twin(x).square().mean().backward()
        assert alike(*([p.grad for p in each.parameters() if p.grad is not None] for each in (net, twin)))


def test_weights_that_left_before_their_gradient_was_computed_are_an_error():
    layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3)).requires_grad_(False)
    stream = WeightStreamer([[layer] for layer in layers], CPU, slots=1)
    x = torch.randn(2, 8, requires_grad=True)
    loss = layers[0](x).sum()
    stream.use = lambda number, back=False: None  # nobody fetches it again
    stream._fetch(1)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# -- weights that are trained ------------------------------------------------------------------------------------------


def test_a_model_whose_trained_weights_were_offloaded_is_forgotten_when_nobody_uses_it():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    stream = WeightStreamer([[net[0]], [net[1]]], CPU, trained=True)
    stream.hook_gradients()
    net(torch.ones(1, 2)).sum().backward()
    stream.collect_offloaded_grads()
    known = weakref.ref(net[0].weight)

    del net, stream
    gc.collect()

    assert known() is None


class Learning:
    """A net that learns, whole but for what is frozen; its chosen parts wait if there is a place for them."""

    def __init__(self, net: nn.Module, groups=None, slots: int = 2, folder=None, **optimizer):
        self.net = net
        self.stream = WeightStreamer(groups, CPU, slots, folder=folder, trained=True) if groups else None
        if self.stream:
            self.stream.hook_gradients()
        self.optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.05)

    def passes(self, *given) -> list:
        losses = []
        for x in given:
            losses.append(self.net(x))
            losses[-1].backward()
        if self.stream:
            self.stream.collect_offloaded_grads()
        return losses

    def step(self, *given, zeros: bool = False) -> list:
        losses = self.passes(*given)
        found = [p.grad.clone() for p in self.net.parameters() if p.grad is not None]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not zeros)
        return [*(loss.detach() for loss in losses), *found]


def alike(one: list, two: list) -> bool:
    return len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def weights_of(each: Learning) -> list:
    return [p.detach().clone() for p in each.net.parameters()]


@each_row("saving", [False, True], ids=["plain", "checkpointed"])
@each_row("slots", [1, 2, 3])
@each_row("chosen", [(4,), (1, 3), (0, 1, 2, 3, 4)])
@each_row("zeros", [False, True], ids=["freed", "zeroed"])
def test_trained_weights_learn_the_resident_bytes(saving, slots, chosen, zeros):
    torch.manual_seed(0)
    net = Net(saving=saving).requires_grad_(True)
    net.blocks[1].one.requires_grad_(False)  # some of a part may be frozen
    twin = Learning(copy.deepcopy(net))
    waiting = Learning(net, [[net.blocks[i]] for i in chosen], slots)
    x = torch.randn(6, 3, 8)

    for number in range(3):
        batches = x[2 * number : 2 * number + 2]  # two whose gradients add up
        assert alike(waiting.step(*batches, zeros=zeros), twin.step(*batches, zeros=zeros))
        assert alike(weights_of(waiting), weights_of(twin))
        with torch.no_grad():
            assert torch.equal(waiting.net(x[0]), twin.net(x[0]))


@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(1, 4), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_trained_layers_in_any_order_learn_the_resident_bytes(seed, count, slots, writes):
    torch.manual_seed(seed)
    net = Branches(count, 8, random.Random(seed)).requires_grad_(True)
    twin = Learning(copy.deepcopy(net))
    waiting = Learning(net, [[layer] for layer in net.layers], slots)
    x = torch.randn(2, 3, 8)

    for _ in range(3):
        assert alike(waiting.step(x, x + 1), twin.step(x, x + 1))
        for _ in range(writes):  # wherever the weights are after a picture, as an average of them does
            for each in (waiting, twin):
                with torch.no_grad():
                    each.net(x)
                    for p in each.net.parameters():
                        p.mul_(0.9)
        assert alike(weights_of(waiting), weights_of(twin))


def test_gradients_of_waiting_weights_leave_the_device_one_by_one():
    net = Net().requires_grad_(True)
    waiting = Learning(net, [[block] for block in net.blocks])
    held = []
    for p in net.parameters():
        p.register_hook(lambda _: held.append(sum(q.grad is not None for q in net.parameters())))

    net(torch.randn(3, 8)).backward()

    assert set(held) == {0}
    assert all(p.grad is None for p in net.parameters())
    waiting.stream.collect_offloaded_grads()
    assert all(p.grad is not None for p in net.parameters())


def test_all_weights_are_at_home_between_steps():
    net = Net().requires_grad_(True)
    waiting = Learning(net, [[block] for block in net.blocks])
    slots = {slot.untyped_storage().data_ptr() for slot in waiting.stream.slots}

    waiting.step(torch.randn(3, 8))

    assert waiting.stream.holds == [-1, -1]
    assert not any(p.untyped_storage().data_ptr() in slots for p in net.parameters())


def test_nothing_is_on_its_way_after_a_picture():
    net = Net().requires_grad_(True)
    waiting = Learning(net, [[block] for block in net.blocks])

    with torch.no_grad():
        net(torch.randn(3, 8))

    assert sorted(waiting.stream.holds) == [3, 4]  # both have computed


def test_what_is_written_to_a_weight_on_the_device_goes_home_with_it():
    net = Net().requires_grad_(True)
    waiting = Learning(net, [[block] for block in net.blocks])
    with torch.no_grad():
        net(torch.randn(3, 8))
        for p in net.parameters():
            p.fill_(0.25)  # the last two blocks are on the device now

    waiting.stream.collect_offloaded_grads()

    assert all(torch.equal(p, torch.full_like(p, 0.25)) for p in net.parameters())


def test_trained_weights_on_disk_learn_the_same(tmp_path):
    net = Net().requires_grad_(True)
    twin = Learning(copy.deepcopy(net))
    waiting = Learning(net, [[block] for block in net.blocks], folder=tmp_path)
    x = torch.randn(3, 8)

    for _ in range(3):
        assert alike(waiting.step(x), twin.step(x))


@pytest.mark.parametrize("way", ["update", "write"])
def test_a_gradient_from_weights_that_were_changed_since_is_an_error(way):
    layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
    stream = WeightStreamer([[layer] for layer in layers], CPU, slots=1, trained=True)
    stream.hook_gradients()
    loss = layers[1](torch.tanh(layers[0](torch.randn(2, 8)))).sum()
    if way == "update":
        stream.collect_offloaded_grads()
    with torch.no_grad():
        layers[1].weight.mul_(0.5)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_blocks_that_are_compiled_learn_nearly_the_same():
    torch.manual_seed(0)
    net = Net().requires_grad_(True)
    twin = Learning(copy.deepcopy(net))
    waiting = Learning(net, [[block] for block in net.blocks])
    for block in net.blocks:
        block.forward = torch.compile(block.forward, backend="aot_eager")
    x = torch.randn(3, 8)

    for _ in range(3):
        for one, two in zip(waiting.step(x), twin.step(x), strict=True):
            torch.testing.assert_close(one, two)
