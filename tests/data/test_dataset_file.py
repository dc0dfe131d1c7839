"""The dataset file: what is filled in, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from darkroom.core.errors import ConfigError, ConfigErrors, DataError, UserError
from darkroom.options.datasets import read_datasets
from tests.rows import each_row

TEXT = {"id": "text", "dataset_type": "text_embeds", "default": True}


def complaint(shop, *entries, **options) -> str:
    """What the reader says about these entries."""
    shop.options |= options
    with pytest.raises(UserError) as caught:
        shop.read(*entries)
    return str(caught.value)


def test_a_minimal_entry_takes_over_the_global_options(shop) -> None:
    shop.options |= {"vae_batch_size": 3, "aspect_bucket_alignment": 64}
    made = shop.read({"id": "pics", "instance_data_dir": str(shop.pictures) + "/"})
    entry = made.samples[0]
    assert (entry.vae_batch_size, entry.train_batch_size, entry.resolution_type, entry.crop) == (
        3,
        2,
        "pixel_area",
        False,
    )
    assert entry.cache_dir_vae == shop.folder / "out/cache/vae/toy/pics"
    assert made.default_text.id == "text-embeds"
    assert made.default_text.cache_dir == shop.folder / "out/cache/text/toy"


def test_a_made_up_text_cache_avoids_taken_names(shop) -> None:
    assert shop.read(shop.entry(id="text-embeds")).default_text.id == "text-embeds-1"


def test_placeholders_are_filled_and_unknown_ones_left(shop) -> None:
    entry = shop.entry(cache_dir_vae="{output_dir}/{model_family}/{id}/{env:WHERE}/{env:UNSET}{other}")
    made = shop.read(entry, environ={"WHERE": "here"}).samples[0]
    assert str(made.cache_dir_vae) == f"{shop.folder}/out/toy/pics/here/{{other}}"


def test_disabled_entries_are_not_looked_at(shop) -> None:
    made = shop.read(
        shop.entry(), {"id": "pics", "disable": True, "nonsense": 1}, {"id": "x", "type": "aws", "disabled": True}
    )
    assert made.disabled == ("pics", "x")


def test_the_home_folder_is_expanded(shop, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(shop.folder))
    assert shop.read(shop.entry(instance_data_dir="~/pictures")).samples[0].location.root == shop.pictures


@each_row(
    "keys, words",
    [
        ({"resoluton": 512}, ["resoluton", "Did you mean resolution"]),
        ({"crop_style": "midle"}, ["crop_style", "random, center, centre, corner"]),
        ({"crop_aspect": "wide"}, ["crop_aspect", "square, preserve, closest, random"]),
        ({"resolution_type": "inches"}, ["resolution_type", "pixel, area, pixel_area"]),
        ({"dataset_type": "vidoe"}, ["dataset_type", "Did you mean video"]),
        ({"dataset_type": "grounding"}, ["grounding", "later release", "disabled"]),
        ({"conditioning_type": "mask"}, ["belong to those of another dataset"]),
        ({"type": "aws"}, ["needs aws_bucket_name, aws_endpoint_url, aws_access_key_id, aws_secret_access_key"]),
        ({"type": "ftp"}, ["There is no such storage"]),
        ({"type": "csv", "dataset_type": "text_embeds"}, ["cannot hold a cache"]),
        ({"caption_strategy": "huggingface"}, ["caption_strategy", "exist only in datasets of type huggingface"]),
        ({"caption_strategy": "poem"}, ["caption_strategy", "textfile, filename"]),
        ({"caption_strategy": "instanceprompt"}, ["instance prompt", "Set instance_prompt"]),
        ({"prepend_instance_prompt": True}, ["prepend_instance_prompt", "Set instance_prompt"]),
        ({"only_instance_prompt": True}, ["only_instance_prompt"]),
        ({"caption_strategy": "parquet", "parquet": {"path": "x.parquet"}}, ["metadata_backend to parquet"]),
        ({"metadata_backend": "parquet"}, ["metadata_backend", "parquet"]),
        ({"metadata_backend": "magic"}, ["metadata_backend", "discovery, parquet"]),
        ({"parquet": {"captions": 1}}, ["parquet.path", "parquet.captions"]),
        ({"caption_filter_list": ["x"]}, ["belongs to a text_embeds entry"]),
        ({"dataset_type": "video", "audio": {"audio_only": True}}, ["audio.audio_only", "Sound is taken from"]),
        ({"conditioning_data": "other"}, ["No enabled conditioning dataset is called 'other'"]),
        ({"maximum_image_size": 2048}, ["Set target_downsample_size"]),
        ({"resolution_type": "area", "resolution": 1.0, "minimum_image_size": 512}, ["megapixels"]),
        (
            {"resolution_type": "area", "resolution": 1, "maximum_image_size": 20, "target_downsample_size": 2},
            ["megapixels"],
        ),
        ({"resolution_type": "pixel", "maximum_image_size": 4, "target_downsample_size": 1024}, ["implausibly small"]),
        ({"resolution": 512.5}, ["whole pixels"]),
        ({"resolution": -1}, ["greater than 0"]),
        ({"crop": True, "crop_aspect": "closest"}, ["crop_aspect_buckets"]),
        ({"crop": True, "crop_aspect": "random", "crop_aspect_buckets": [0]}, ["above 0"]),
        ({"crop": True, "crop_aspect": "random", "crop_aspect_buckets": [{"aspect": 1, "weight": 0.5}]}, ["up to 0.5"]),
        ({"crop_aspect_buckets": [{"shape": 1}]}, ["numbers for aspect and weight"]),
        ({"repeats": -1}, ["repeats"]),
        ({"repeats": 1.5}, ["whole number"]),
        ({"train_batch_size": True}, ["whole number"]),
        ({"train_batch_size": "04"}, ["whole number"]),
        ({"probability": "often"}, ["probability"]),
        ({"probability": -0.5}, ["probability"]),
        ({"probability": 0}, ["No dataset can be drawn at the first step"]),
        ({"start_epoch": 3}, ["No dataset can be drawn at the first step"]),
        ({"start_epoch": 3, "end_epoch": 2}, ["before start_epoch"]),
        ({"start_step": 9, "end_step": 2}, ["before start_step"]),
        ({"minimum_aspect_ratio": 2, "maximum_aspect_ratio": 1}, ["below minimum_aspect_ratio"]),
        ({"text_embeds": "nowhere"}, ["No enabled entry has this id", "text-embeds"]),
        ({"image_embeds": "nowhere"}, ["No enabled entry has this id"]),
        ({"instance_data_dir": "missing-folder"}, ["missing-folder", "does not exist"]),
        ({"instance_data_dir": None}, ["needs the folder"]),
        ({"caption_shuffle": {"enable": True, "count": 0}}, ["caption_shuffle.count"]),
        ({"caption_shuffle": {"split_on": "tab"}}, ["comma, space, period"]),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_place_and_a_way_out(shop, keys, words) -> None:
    text = complaint(shop, shop.entry(**keys))
    assert "datasets.json" in text
    assert "pics" in text
    for word in words:
        assert word in text


def test_all_problems_of_all_entries_are_told_at_once(shop) -> None:
    with pytest.raises(ConfigErrors) as caught:
        shop.read(
            shop.entry(crop_styl="x", repeats=-1),
            shop.entry(id="b", resolution="big"),
            shop.entry(id="c", instance_data_dir="gone"),
        )
    assert {(e.option, "'pics'" in e.source) for e in caught.value.errors} == {
        ("crop_styl", True), ("repeats", True), ("resolution", False), ("instance_data_dir", False)}  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"id": "a"}, {"id": "a"}], "Two datasets have this id"),
        ([{"instance_data_dir": "."}], "needs an id"),
        ([TEXT], "no dataset of type image"),
        ([{"id": "a", "disabled": True}], "is disabled"),
        ([], "lists no dataset"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(shop, entries, words) -> None:
    assert words in complaint(shop, *entries)


def test_two_default_text_caches_and_shared_folders_are_refused(shop) -> None:
    assert "Two text caches are the default" in complaint(shop, shop.entry(), TEXT, {**TEXT, "id": "more"})
    shared = complaint(shop, shop.entry(cache_dir_vae="x"), shop.entry(id="b", cache_dir_vae="x"))
    assert "uses the same folder" in shared
    assert "keeps latents there" in complaint(shop, shop.entry(cache_dir_vae="x"), {**TEXT, "cache_dir": "x"})


@pytest.mark.parametrize(
    ("content", "words"), [("{}", "one object"), ("[1]", "something else"), ("[{},]", "line 1"), ("\xff", "array")]
)
def test_broken_files_are_explained(shop, content, words) -> None:
    file = shop.folder / "d.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_datasets(file, shop.config, {})
    assert words in str(caught.value) or "not valid JSON" in str(caught.value)


def test_an_absent_file_or_option_is_explained(shop) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_datasets(shop.folder / "no.json", shop.config, {})
    with pytest.raises(ConfigError, match="data_backend_config"):
        read_datasets(None, shop.config, {})


def test_what_is_not_offered_yet_becomes_a_warning_when_asked(shop) -> None:
    shop.options["ignore_unsupported"] = True
    made = shop.read(shop.entry(delete_nsfw_images=True, nonsense=1), {"id": "songs", "dataset_type": "audio"})
    assert [d.id for d in made.samples] == ["pics"]
    assert len(made.warnings) == 3


def test_other_spellings_and_forms_are_understood(shop) -> None:
    made = shop.read(
        shop.entry(
            probability="",
            repeats="2",
            crop=True,
            is_regularization_data=True,
            metadata_backend="json",
            crop_aspect="random",
            hash_filenames=True,
            crop_aspect_buckets=[{"aspect_ratio": 1.0, "weight": 0.25}, {"aspect_bucket": 2, "weight": 0.75}],
        )
    )
    entry = made.samples[0]
    assert (entry.probability, entry.repeats, entry.has_repeats, entry.is_regularisation_data) == (1.0, 2, True, True)
    assert (entry.crop_aspect_buckets, entry.crop_aspect_weights) == ((1.0, 2.0), (0.25, 0.75))
    assert any("hash_filenames" in w for w in made.warnings)


def test_filters_come_from_arrays_and_files(shop) -> None:
    file = Path(shop.folder / "f.txt")
    file.write_text("a photo of \ns/colour/color/\n")
    made = shop.read(shop.entry(), {**TEXT, "caption_filter_list": str(file)})
    assert made.default_text.caption_filter_list == ("a photo of ", "s/colour/color/")
    assert "cannot be read" in complaint(shop, shop.entry(), {**TEXT, "caption_filter_list": "gone.txt"})


def test_square_edges_and_areas_agree_on_one_unit(shop) -> None:
    entry = shop.read(shop.entry(resolution=1024)).samples[0]
    assert entry.in_unit(entry.resolution) == pytest.approx(1.048576)


LIMITS = (
    "minimum_image_size",
    "maximum_image_size",
    "target_downsample_size",
    "minimum_aspect_ratio",
    "maximum_aspect_ratio",
)


@each_row("key", LIMITS)
@each_row("nothing", [0, 0.0, "0", "", None])
def test_a_limit_of_nothing_is_no_limit(shop, key, nothing) -> None:
    entry = shop.read(shop.entry(resolution_type="pixel", **{key: nothing})).samples[0]
    assert getattr(entry, key) is None


def test_a_schedule_without_end_never_ends(shop) -> None:
    entry = shop.read(shop.entry(end_epoch=float("inf"), end_step=float("inf"))).samples[0]
    assert (entry.end_epoch, entry.end_step) == (None, None)


def test_a_key_with_an_underscore_is_a_comment_and_nothing_else(shop) -> None:
    made = shop.read(shop.entry(_note="taken in May", _made=True, _recursive=False)).samples[0]
    assert made.location.recursive
    text = complaint(shop, shop.entry(_made=True, kohya={"resolution": [64, 64]}))
    assert "kohya" in text


def written(shop, text: str, name: str = "slips.json"):
    """Read a file with this text."""
    file = shop.folder / name
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    return read_datasets(file, shop.config)


@each_row(
    "text, words",
    [
        (r'[{"id": "a", "instance_data_dir": "D:\train\new"}]', r'It holds a tab (\t).'),
        (r'[{"id": "a", "instance_data_dir": "D:\new"}]', 'write "D:\\\\train\\\\new" or "D:/train/new"'),
        (r'[{"id": "a", "instance_data_dir": "D:\data"}]', "In double quotes a backslash starts an escape"),
        (r'[{"id": "a", "instance_data_dir": "D:\users"}]', "In double quotes a backslash starts an escape"),
        (r'[{"id": "a", "parquet": {"path": "D:\table"}}]', "parquet.path = "),
        ('[{"id": "a", "instance_data_dir": "x", "instance_data_dir": "y"}]',
         "a key twice in one object: 'instance_data_dir' of dataset 'a'"),
        ('[{"id": "a", "video": {"fps": 5, "fps": 6}}]', "a key twice in one object: 'fps'"),
        ('[{"id": 5, "instance_data_dir": "."}]', "id = 5 (from"),
        ('[{"id": "a", "dataset_type": "video", "instance_data_dir": ".", "video": "49"}]', "video = '49' (from"),
        ('[{"id": "a", "dataset_type": "video", "instance_data_dir": ".", "video": [49]}]', "video = [49] (from"),
        (r'[{"id": "a\ud800", "instance_data_dir": "."}]', r"half a character (\ud800)"),
        (r'[{"id": "a", "instance_data_dir": "x\u0000y"}]', "It holds a NUL character."),
        (r'[{"id": "a", "instance_data_dir": ".", "\ud800": 1}]', r"half a character (\ud800)"),
        ("[" * 5000, "nested too deeply"),
        ('[{"id": "a", "x": ' + "[" * 5000 + "]" * 5000 + "}]", "nested too deeply"),
        ('[{"id": "a", "repeats": 1' + "0" * 5000 + "}]", "cannot be read"),
    ],
)  # fmt: skip
def test_a_slip_in_a_dataset_file_is_an_error_that_names_it(shop, text, words) -> None:
    with pytest.raises((DataError, ConfigError, ConfigErrors)) as caught:
        written(shop, text)
    assert words in str(caught.value)


def test_comments_may_stand_twice_and_prompts_may_have_lines(shop) -> None:
    text = '[{"id": "a", "_": "one", "_": "two", "instance_prompt": "a\\nb", "instance_data_dir": "PLACE"}]'
    text = text.replace("PLACE", str(shop.pictures))
    assert written(shop, text).samples[0].prompts == ("a\nb",)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (r'image_directory = "D:\train\new"', r"It holds a tab (\t)."),
        (r'image_directory = "D:\data"', "Single quotes, 'D:\\train\\new', take it as it stands."),
        ("image_directory = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("num_repeats = 1" + "0" * 5000, "cannot be read"),
    ],
)
def test_a_slip_in_a_musubi_file_is_an_error_that_names_it(shop, line, words) -> None:
    with pytest.raises((DataError, ConfigError, ConfigErrors)) as caught:
        written(shop, f"[[datasets]]\n{line}\n", "m.toml")
    assert words in str(caught.value)
