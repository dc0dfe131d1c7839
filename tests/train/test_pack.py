"""Optimizer states as JSON and tensors."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load, save

from darkroom.train.pack import flatten, restore

STATE = {
    "state": {
        0: {"step": torch.tensor(3.0), "m": torch.randn(2, 3)},
        10: {"step": 4, "half": torch.ones(2).bfloat16()},
    },
    "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0, 1], "amsgrad": False, "eps": None, "name": "a"}],
    "infinite": float("inf"),
    "nested": ((1, (2, 3)), [torch.arange(3)]),
    "empty": {},
}


def test_a_state_comes_back_from_a_file_as_it_was():
    plain, tensors = flatten(STATE)

    back = restore(json.loads(json.dumps(plain, sort_keys=True)), load(save(tensors)))

    assert set(back["state"]) == {0, 10}
    assert back["state"][10]["step"] == 4
    assert torch.equal(back["state"][0]["m"], STATE["state"][0]["m"])
    assert back["state"][10]["half"].dtype == torch.bfloat16
    assert back["param_groups"] == STATE["param_groups"]
    assert back["infinite"] == float("inf")
    assert back["nested"][0] == (1, (2, 3))
    assert back["nested"][1][0].tolist() == [0, 1, 2]
    assert back["empty"] == {}


def test_the_plain_part_is_json_without_tensors():
    plain, tensors = flatten({"a": torch.ones(2)})

    assert plain == {"a": {"$tensor": "/a"}}
    assert list(tensors) == ["/a"]


def test_flattened_tensors_are_copies():
    live = torch.zeros(2)
    _, tensors = flatten({"m": live})

    live.fill_(1.0)

    assert tensors["/m"].tolist() == [0.0, 0.0]


def test_what_cannot_be_saved_is_named_by_its_path():
    with pytest.raises(TypeError, match=r"/state/0/hook holds a object"):
        flatten({"state": {0: {"hook": object()}}})


def test_a_quantised_tensor_is_saved_as_its_parts_and_its_description():
    kinds = pytest.importorskip("torchao.optim.subclass_4bit")
    state = kinds.OptimState4bit.zeros((4, 64), signed=False, block_size=128, dtype=torch.float32)
    state.copy_(torch.rand(4, 64))

    plain, tensors = flatten({"v": state, "kind": torch.bfloat16})
    back = restore(json.loads(json.dumps(plain)), load(save(tensors)))

    assert sorted(tensors) == ["/v/parts/codes", "/v/parts/qmap", "/v/parts/scale"]
    assert type(back["v"]) is kinds.OptimState4bit
    assert torch.equal(back["v"].dequantize(), state.dequantize())
    assert back["kind"] is torch.bfloat16


def test_kinds_of_tensors_that_are_not_in_the_table_are_neither_written_nor_read():
    class Odd(torch.Tensor):
        pass

    with pytest.raises(TypeError, match="/v holds a Odd"):
        flatten({"v": torch.ones(2).as_subclass(Odd)})
    with pytest.raises(KeyError, match="Odd"):
        restore({"$kind": "Odd", "parts": {}, "described": None}, {})
