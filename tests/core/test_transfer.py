"""Tensors on their way between the host and a device. What a device does with them is in the tests that have one."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import Tensor, nn

from darkroom.core.device import HOST
from darkroom.core.transfer import Arrivals, HostGradients, map_tensors, to_device, when_gradient_is_complete


def test_tensors_are_found_in_whatever_holds_them_and_the_rest_stays():
    one = torch.ones(1)
    value = {"a": one, "b": (one, [one, 3]), "c": "text", "d": None}

    found = map_tensors(lambda tensor: tensor + 1, value)

    assert found["a"].item() == found["b"][0].item() == found["b"][1][0].item() == 2
    assert (found["b"][1][1], found["c"], found["d"]) == (3, "text", None)


def test_what_is_on_the_host_already_arrives_at_once():
    arrived = []

    Arrivals().send(torch.tensor([1.0]), arrived.append)

    assert [tensor.tolist() for tensor in arrived] == [[1.0]]


def test_a_tensor_goes_nowhere_if_it_is_there():
    tensor = torch.ones(2)

    assert to_device(tensor, HOST) is tensor


class Counting:
    """What counts the gradients of a weight that it holds, as optimizers hold theirs."""

    def __init__(self) -> None:
        self.weight, self.count = nn.Parameter(torch.ones(2)), 0
        when_gradient_is_complete(self.weight, self.take)

    def take(self, weight: Tensor) -> None:
        self.count += 1


def test_what_waits_for_a_gradient_is_forgotten_with_its_weight():
    counting = Counting()
    counting.weight.sum().backward()
    assert counting.count == 1
    known = weakref.ref(counting.weight)

    del counting
    gc.collect()

    assert known() is None


def test_gradients_of_several_passes_add_up_and_begin_anew_once_they_are_collected():
    weight, gradients = nn.Parameter(torch.ones(2)), HostGradients()
    zeros = torch.zeros(2)
    gradients.start_from(weight, zeros)
    for number in (1.0, 2.0):
        gradients.add(weight, torch.full((2,), number))

    assert gradients.collect()[weight] is zeros
    assert zeros.tolist() == [3, 3]
    assert gradients.collect() == {}
