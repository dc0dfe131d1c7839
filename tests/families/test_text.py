"""Text conditions of unequal length, and what each family makes of a caption."""

from __future__ import annotations

import pytest
import torch

from darkroom import families
from darkroom.families import tiny
from darkroom.families.shared.text import find_truncated, split_entries, stack_padded
from darkroom.families.shared.text_encoding import encode_captions
from darkroom.options.config import construct, every_option
from darkroom.options.field import OptionInfo
from darkroom.pretrained.repository import find_text_image_encoders
from tests.families import conformance
from tests.rows import each_row


def rows(count: int) -> dict[str, torch.Tensor]:
    return {"text": torch.arange(1.0, count + 1)[:, None].expand(-1, 2)}


def test_shorter_texts_get_zeros_behind_their_end_and_a_mask_of_what_is_real():
    batch = stack_padded([rows(3), rows(1)])

    assert batch["text"][:, :, 0].tolist() == [[1, 2, 3], [1, 0, 0]]
    assert batch["mask"].tolist() == [[True, True, True], [True, False, False]]


def test_texts_of_one_length_need_no_mask():
    assert stack_padded([rows(2), rows(2)]).keys() == {"text"}


def test_texts_of_own_length_are_split_as_they_are():
    assert [len(entry["text"]) for entry in split_entries({"text": [torch.zeros(3, 2), torch.zeros(1, 2)]})] == [3, 1]


@each_row("name, flavour", conformance.cases())
def test_a_captions_entry_holds_no_more_numbers_than_the_plan_counts(name, flavour):
    family, options = families.get(name, flavour), conformance.options(name, flavour)
    pipe = tiny.build(family, flavour=flavour)
    kinds = family.spec.components
    found = {part: getattr(pipe, part).config for part in (*kinds.encoders, *find_text_image_encoders(family.spec))}
    configs = {part: dict(c) if isinstance(c, dict) else c.to_dict() for part, c in found.items()}

    entry = conformance.case(name, flavour).read(pipe, "a cat on a mat")

    held, counted = sum(tensor.numel() for tensor in entry.values()), family.count_text_values(configs, options)
    is_short = len(entry["text"]) < options.tokenizer_max_length or family.spec.flavour.text_images
    assert held == counted or (held < counted and is_short)


@each_row("name", [name for name in families.names() if not families.get(name, "tiny").spec.flavour.text_images])
def test_captions_that_are_encoded_together_are_what_each_is_alone(name):
    family, options = families.get(name, "tiny"), conformance.options(name, "tiny")
    pipe, captions = tiny.build(family), ["a cat on a mat", ""]

    together = encode_captions(family, pipe, captions, options)

    for caption, entry in zip(captions, together, strict=True):
        (alone,) = encode_captions(family, pipe, [caption], options)
        torch.testing.assert_close(entry, alone, rtol=1e-4, atol=1e-5)


def test_captions_given_are_left_as_they_are():
    family, captions = families.get("z_image", "tiny"), ["a cat"]

    family.encode_text(tiny.build(family), captions, conformance.options("z_image", "tiny"))

    assert captions == ["a cat"]


def test_a_processor_of_text_and_pictures_is_asked_for_its_tokenizer():
    tokenizer = tiny.TOKENIZERS["chat"]()
    processor = type("Processor", (), {"tokenizer": tokenizer})()
    pipe = type("Pipe", (), {"components": {"tokenizer": processor}})()

    assert find_truncated(pipe, ["short", "x" * 40], 20) == ["x" * 40]


def test_flux2_reads_the_layers_that_are_asked_for():
    family, options = families.get("flux2", "tiny"), conformance.options("flux2", "tiny")
    chosen = type("Settings", (), {**vars(options), "custom_text_encoder_intermediary_layers": [1, 2, 3]})

    assert family.text_layers(options) == (9, 18, 27)
    assert family.text_layers(chosen) == family.pipeline_kwargs(chosen)["text_encoder_out_layers"] == (1, 2, 3)
    assert family.text_identity(chosen) != family.text_identity(options)


@pytest.mark.parametrize("own", ["", "Enhance: "])
def test_sana_reads_the_instruction_that_is_asked_for(own):
    family, options = families.get("sana", "tiny"), conformance.options("sana", "tiny")
    chosen = type("Settings", (), {**vars(options), "sana_complex_human_instruction": own})
    pipe = tiny.build(family)

    (published,), (found,) = (encode_captions(family, pipe, ["a cat"], o) for o in (options, chosen))
    unconditional = encode_captions(family, pipe, [""], chosen)[0]

    assert not torch.equal(published["text"], found["text"])
    assert found["text"].shape == published["text"].shape == unconditional["text"].shape
    assert family.text_identity(chosen) != family.text_identity(options)


def test_omnigen_without_torchvision_reads_prompts_as_the_stock_pipeline_does():
    from darkroom.families.omnigen import Instructions

    tokenizer = tiny.TOKENIZERS["gemma"]()
    stock = conformance.pipeline_omnigen.OmniGenMultiModalProcessor(tokenizer)

    call = {"height": 64, "width": 96, "use_img_cfg": False}
    mine, theirs = (read(["a cat"], [None], **call) for read in (Instructions(tokenizer), stock))

    assert mine.keys() == theirs.keys()
    for name in ("input_ids", "attention_mask", "position_ids"):
        torch.testing.assert_close(mine[name], theirs[name])


def test_flux_hides_padding_and_answers_as_for_text_without_it():
    family = families.get("flux", "tiny")
    options = conformance.options("flux", "tiny").model_copy(update={"flux_attention_masked_training": True})
    pipe = tiny.build(family)
    entries = encode_captions(family, pipe, ["a cat", "two old houses beside a road"], options)
    x_t = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    t, guidance = torch.tensor([0.3, 0.7]), torch.ones(2)

    def answer(rows: slice) -> torch.Tensor:
        cond = {**family.stack_text(entries[rows]), "guidance": guidance[rows]}
        with torch.no_grad():
            return family.predict(pipe.transformer, x_t[rows], t[rows], cond)

    apart = torch.cat([answer(slice(0, 1)), answer(slice(1, 2))])
    assert len(entries[0]["text"]) < len(entries[1]["text"]) < options.tokenizer_max_length
    assert torch.allclose(answer(slice(0, 2)), apart, atol=1e-5)


def change(info: OptionInfo) -> object:
    """Another value of an option than its default."""
    if info.kind == "bool":
        return not info.default
    return next((choice for choice in info.choices if choice != info.default), 7 if info.kind == "integer" else "other")


@each_row("info", [info for info in every_option() if info.cached == "text"], ids=lambda info: info.name)
def test_an_option_that_is_declared_to_enter_cached_text_changes_its_key_in_its_families_alone(info):
    for name in families.names():
        family = families.get(name, "tiny")
        plain, changed = (construct({"model_family": name, **own}) for own in ({}, {info.name: change(info)}))
        differs = family.text_identity(plain) != family.text_identity(changed)
        assert differs == (name in (info.families or families.names())), name
