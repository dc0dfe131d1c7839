"""Where captions come from and what they become."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from darkroom.core.errors import DataError
from darkroom.data.index.captions import compile_filters, shuffle_caption
from darkroom.options.datasets import CaptionShuffle


def captions(shop, **keys) -> list[str]:
    return shop.plan(shop.entry(train_batch_size=1, **keys)).captions()


def test_a_line_is_a_variant_unless_lines_are_kept(shop) -> None:
    shop.picture(shop.pictures / "a.png", caption="\ufeffone \n\n two\none")
    assert captions(shop) == ["one", "two"]
    assert captions(shop, disable_multiline_split=True) == ["one \n\n two\none"]


def test_only_line_breaks_part_captions(shop) -> None:
    inside = "one\u2028still one\x0cand\x0bon\x85on\u2029on\x1con"
    shop.picture(shop.pictures / "a.png", caption=f"{inside}\r\ntwo\rthree\nfour")
    assert sorted(captions(shop)) == sorted([inside, "two", "three", "four"])


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be", "utf-16", "utf-32"])
@pytest.mark.parametrize("keys", [{}, {"disable_multiline_split": True}])
def test_a_caption_in_another_encoding_is_left_out_with_or_without_a_mark(shop, encoding, keys) -> None:
    shop.add(2)
    (shop.pictures / "p000.txt").write_bytes("a red cat\nand a dog".encode(encoding))
    plan = shop.plan(shop.entry(train_batch_size=1, **keys))
    assert plan.datasets[0].drop_counts == {"caption is not UTF-8": 1}
    assert plan.captions() == ["caption p 1"]


@pytest.mark.parametrize("given", [".txt", "txt", ".TXT"])
@pytest.mark.parametrize("name", ["IMG.TXT", "IMG.Txt", "IMG.txt"])
def test_capitals_in_a_text_files_ending_mean_nothing_and_the_dot_may_be_left_out(shop, given, name) -> None:
    shop.picture(shop.pictures / "IMG.JPG", caption=None)
    (shop.pictures / name).write_text("found", encoding="utf-8")
    plan = shop.plan(shop.entry(train_batch_size=1, caption_extension=given))
    assert plan.captions() == ["found"]
    (shop.pictures / name).write_text("edited since", encoding="utf-8")
    assert shop.plan(shop.entry(train_batch_size=1, caption_extension=given)).captions() == ["edited since"]


def test_the_ending_as_it_was_asked_for_counts_before_others(shop) -> None:
    shop.picture(shop.pictures / "a.png", caption="lower")
    (shop.pictures / "a.TXT").write_text("upper", encoding="utf-8")
    assert captions(shop) == ["lower"]
    assert captions(shop, caption_extension=".TXT") == ["upper"]


def test_what_stands_behind_a_samples_name_may_be_more_than_an_ending(shop) -> None:
    shop.picture(shop.pictures / "a.png", caption="plain")
    for name, text in (("a_tags.TXT", "tags"), ("a.tags.txt", "dotted")):
        (shop.pictures / name).write_text(text, encoding="utf-8")
    assert captions(shop, caption_extension="_tags.txt") == ["tags"]
    assert captions(shop, caption_extension=".tags.txt") == ["dotted"]


def test_a_file_name_is_a_caption(shop) -> None:
    shop.picture(shop.pictures / "sub.dir" / "my_red.cat.png", caption=None)
    assert captions(shop, caption_strategy="filename") == ["my red.cat"]


def test_instance_prompts_replace_or_precede(shop) -> None:
    shop.add(2)
    assert captions(shop, caption_strategy="instanceprompt", instance_prompt=["x", "y"]) == ["x", "y"]
    assert captions(shop, only_instance_prompt=True, instance_prompt="x") == ["x"]
    made = captions(shop, prepend_instance_prompt=True, instance_prompt=["x", "y"])
    assert made == ["x caption p 0", "x caption p 1", "y caption p 0", "y caption p 1"]


def test_tags_shuffle_reproducibly_behind_the_fixed_ones() -> None:
    options = CaptionShuffle(enable=True, count=4, position_start=1)
    made = shuffle_caption("a, b, c, d", options, 5)
    assert made == shuffle_caption("a, b, c, d", options, 5)
    assert made[0] == "a, b, c, d"
    assert len(set(made)) == len(made) > 1
    assert all(text.startswith("a, ") and sorted(text.split(", ")) == ["a", "b", "c", "d"] for text in made)
    assert shuffle_caption("only", options, 5) == ("only",)
    assert shuffle_caption("b. a", CaptionShuffle(split_on="period", include_original=False), 1)[0] in ("b. a", "a. b")


@pytest.mark.parametrize(
    ("entry", "before", "after"),
    [
        ("a photo of ", "a photo of a cat", "a cat"),
        ("s/colour/color/", "colour, colour", "color, color"),
        ("s/colour/color", "colour", "color"),
        (r"\d+", "cat 42", "cat "),
        ("(", "a (cat", "a cat"),
    ],
)
def test_a_filter_entry_changes_a_caption(entry: str, before: str, after: str) -> None:
    rules, skipped = compile_filters([entry])
    assert rules[0](before) == after
    assert bool(skipped) == (entry == "(")


def test_the_filter_of_the_text_cache_reaches_the_captions(shop) -> None:
    shop.add(1)
    text = {"id": "t", "dataset_type": "text_embeds", "caption_filter_list": ["caption "]}
    assert shop.plan(shop.entry(train_batch_size=1), text).captions() == ["p 0"]


def table(shop, rows: dict, name: str = "t.parquet") -> dict:
    path = shop.folder / name
    if name.endswith("jsonl"):
        lines = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        path.write_text("\n".join(map(json.dumps, lines)))
    else:
        pq.write_table(pa.table(rows), path)
    return {"metadata_backend": "parquet", "caption_strategy": "parquet", "parquet": {"path": str(path)}}


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl"])
def test_a_table_gives_captions_and_sizes_without_opening_a_picture(shop, name: str, monkeypatch) -> None:
    for i in range(3):
        shop.picture(shop.pictures / "sub" / f"p{i}.png", (96, 64), caption=None)
    rows = {"id": ["sub/p0", "sub/p1"], "description": [["a", "b"], ["c"]], "width": [96, 96], "height": ["64", "64"]}
    if name == "t.parquet":
        rows["height"] = [64, 64]
    monkeypatch.setattr("darkroom.data.index.probe.read_header", lambda path: pytest.fail(f"{path} was opened"))
    plan = shop.plan(shop.entry(**table(shop, rows, name)))
    assert plan.captions() == ["a", "b", "c"]
    assert plan.datasets[0].drop_counts == {"not in the table": 1}
    assert plan.datasets[0].index.sizes(0).original == (96, 64)


def test_a_fallback_column_stands_in_for_empty_captions(shop) -> None:
    shop.add(2)
    keys = table(
        shop,
        {
            "id": ["p000.png", "p001.png"],
            "description": ["", "long"],
            "tags": ["short", "x"],
            "width": [64] * 2,
            "height": [64] * 2,
        },
    )
    keys["parquet"] |= {"fallback_caption_column": "tags", "identifier_includes_extension": True}
    assert captions(shop, **keys) == ["long", "short"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"name": ["a"], "description": ["x"]}, "no column 'id'"),
        ({"id": ["p000"], "text": ["x"], "width": [1], "height": [1]}, "no column 'description'"),
        ({"id": [None], "description": ["x"]}, "without a name"),
        ({"id": ["p000"], "description": [""]}, "have no caption"),
        ({"id": ["p000"], "description": [["x", None]]}, "missing captions"),
        ({"id": ["p000"], "description": [5]}, "int64 values"),
        ({"id": ["p000"], "description": ["x"]}, "no column 'width'"),
        ({"id": [["p000"]], "description": ["x"], "width": [1], "height": [1]}, "column 'id' of .* holds list<"),
        ({"id": [{"a": 1}], "description": ["x"], "width": [1], "height": [1]}, "column 'id' of .* holds struct<"),
        ({"id": [1.5], "description": ["x"], "width": [1], "height": [1]}, "column 'id' of .* holds double"),
        ({"id": ["p000"], "description": [{"a": 1}], "width": [1], "height": [1]}, "holds struct<"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(shop, rows, words) -> None:
    shop.add(1)
    with pytest.raises(DataError, match=words):
        captions(shop, **table(shop, rows))


def test_an_absent_or_broken_table_is_explained(shop) -> None:
    shop.add(1)
    keys = table(shop, {"id": ["p000"], "description": ["x"], "width": [1], "height": [1]})
    (shop.folder / "t.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        captions(shop, **keys)
    (shop.folder / "t.parquet").unlink()
    with pytest.raises(DataError, match="does not exist"):
        captions(shop, **keys)


def test_a_changed_table_is_read_again(shop) -> None:
    shop.add(1)
    rows = {"id": ["p000"], "description": ["before"], "width": [64], "height": [64]}
    assert captions(shop, **table(shop, rows)) == ["before"]
    assert captions(shop, **table(shop, {**rows, "description": ["afterwards"]})) == ["afterwards"]


@pytest.mark.parametrize("size", [[64], [], [[64]], ["x"], [10**18], [-5], [None]])
def test_a_size_in_a_column_of_any_kind_is_one_or_none(shop, size) -> None:
    shop.add(2)
    rows = {"id": ["p000", "p001"], "description": ["a", "b"], "width": [64, 64], "height": [64, 64]}
    rows["width"] = [size, [64]] if isinstance(size, list) and (not size or size == [64]) else [*size[:1], size[0]]
    plan = shop.plan(shop.entry(train_batch_size=1, **table(shop, rows)), lenient=True)
    assert plan.datasets[0].buckets.count + plan.datasets[0].drop_counts.get("not in the table", 0) == 2


@pytest.mark.parametrize(
    "text", ['"[" * 5', "[" * 5000, '{"id": "a", "description": "\\ud800"}', '{"id": 1' + "0" * 5000 + "}", "5"]
)
def test_lines_that_are_no_objects_of_plain_texts_are_an_error_of_the_table(shop, text) -> None:
    shop.add(1)
    keys = table(shop, {"id": ["p000"], "description": ["x"], "width": [1], "height": [1]}, "t.jsonl")
    (shop.folder / "t.jsonl").write_text(text + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read"):
        captions(shop, **keys)


def test_lines_of_a_table_end_at_line_breaks_alone(shop) -> None:
    shop.add(1)
    keys = table(shop, {"id": ["p000"], "description": ["a\u2028b"], "width": [64], "height": [64]}, "t.jsonl")
    line = '{"id": "p000", "description": "a\u2028b", "width": 64, "height": 64}'
    (shop.folder / "t.jsonl").write_text(line, encoding="utf-8")
    assert captions(shop, **keys) == ["a\u2028b"]
