"""Tensors on their way between the host and a device. What a device does with them is in the tests that have one."""

from __future__ import annotations

import torch

from darkroom.core.transfer import HOST, Arrivals, map_tensors, to_device


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
