from __future__ import annotations

import torch

from darkroom.objectives import regularizers
from tests.families import conformance


def test_tokens_of_unlike_lengths_cost_and_of_one_length_do_not():
    case = conformance.case("sd3", "tiny")
    settings = case.settings.model_copy(update={"token_norm_lambda": 2.0})
    (penalty,) = regularizers.build(case.family, settings, [case.pipe().transformer])
    tokens = torch.ones(1, 4, 8)

    assert penalty({"tokens": [tokens]}, []) == 0
    assert penalty({"tokens": [tokens * torch.arange(1, 5).view(1, 4, 1)]}, []) > 0
    assert regularizers.find_enabled(case.settings) == []
