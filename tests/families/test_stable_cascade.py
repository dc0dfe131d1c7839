"""What only Stable Cascade does: a reader of pictures that diffusers has not, and sizes of its own."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from darkroom.core.errors import ConfigError
from darkroom.families.modules.stable_cascade import FILE, EfficientNetEncoder
from tests.families.conformance import case


def test_the_reader_has_the_names_and_sizes_of_the_published_one():
    """As torchvision's EfficientNetV2-S has them below `features`; the weights themselves were not at hand."""
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in EfficientNetEncoder().state_dict().items()}

    assert sum(torch.Size(shape).numel() for name, shape in shapes.items() if "running" not in name) > 20.1e6
    assert shapes["backbone.0.0.weight"] == (24, 3, 3, 3)
    assert shapes["backbone.1.0.block.0.0.weight"] == (24, 24, 3, 3)
    assert shapes["backbone.2.3.block.1.0.weight"] == (48, 192, 1, 1)
    assert shapes["backbone.4.0.block.2.fc1.weight"] == (16, 256, 1, 1)
    assert shapes["backbone.6.14.block.3.0.weight"] == (256, 1536, 1, 1)
    assert shapes["backbone.7.0.weight"] == (1280, 256, 1, 1)
    assert shapes["mapper.0.weight"] == (16, 1280, 1, 1)
    assert "mapper.1.running_mean" in shapes
    assert "mapper.1.weight" not in shapes


@pytest.mark.parametrize("whole", [True, False])
def test_the_reader_comes_from_the_public_file_or_its_folder(tmp_path, whole):
    torch.manual_seed(0)
    made = EfficientNetEncoder()
    save_file(made.state_dict(), tmp_path / FILE)

    read = EfficientNetEncoder.from_pretrained(tmp_path / FILE if whole else tmp_path)

    assert all(torch.equal(value, read.state_dict()[name]) for name, value in made.state_dict().items())
    assert not read.training


def test_a_size_that_the_decoder_cannot_draw_is_refused():
    whole = case("stable_cascade", "tiny")

    assert whole.family.size_kwargs(768, 768, whole.settings) == {"width": 1024, "height": 1024}
    with pytest.raises(ConfigError, match="multiples of 96"):
        whole.family.size_kwargs(160, 96, whole.settings)
