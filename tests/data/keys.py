"""Every key of a dataset file: on which entries it acts, what the reader answers, and the test that covers it.

`python -m tests.data.keys` writes the table to docs/dataset_keys.md. `test_keys.py` keeps it honest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darkroom.job.preflight import WITHOUT_EFFECT as OPTIONS_WITHOUT_EFFECT
from darkroom.media.controls import CONTROLS
from darkroom.options.datasets import keys as k

PAGE = Path(__file__).parents[2] / "docs/dataset_keys.md"

KINDS = {
    "I": "image",
    "V": "video",
    "C": "conditioning",
    "E": "eval",
    "T": "text_embeds",
    "M": "image_embeds",
    "N": "conditioning_image_embeds",
}
SAMPLES, EVERY = "IVCE", "IVCETMN"

FILES = {
    "cache": "data/test_cache.py",
    "captions": "data/test_captions.py",
    "clips": "data/test_clips.py",
    "companions": "data/test_companions.py",
    "controls": "media/test_controls.py",
    "effects": "data/test_key_effects.py",
    "examples": "data/test_examples.py",
    "file": "data/test_dataset_file.py",
    "images": "data/test_images.py",
    "inputs": "job/test_inputs.py",
    "keys": "data/test_keys.py",
    "kohya": "media/test_kohya.py",
    "layers": "data/test_layers.py",
    "local": "storage/test_local.py",
    "musubi": "data/test_musubi_keys.py",
    "on_demand": "data/test_on_demand.py",
    "order": "data/test_order.py",
    "places": "data/test_places.py",
    "plan": "data/test_plan.py",
    "resize": "media/test_resize.py",
    "scan": "data/test_scan.py",
}
"""Short names of test files, below tests/."""

WORKS, IDLE, REFUSED = "works", "no effect", "refused"


@dataclass(frozen=True)
class Key:
    """One key. `value` is written in an entry of each kind of `where`, with `beside`, in the setting `on`."""

    name: str
    where: str
    value: Any
    test: str  # short name of the file, ::, function
    status: str = WORKS
    says: str = ""  # what the reader says when it does not work, and what there is to know when it does
    beside: dict[str, Any] = field(default_factory=dict)
    on: str = "local"
    says_elsewhere: bool = True  # on other kinds of entry the reader says that it does nothing

    @property
    def path(self) -> list[str]:
        """The key and the blocks around it."""
        return self.name.partition(": ")[0].split(".")

    @property
    def place(self) -> str:
        """The test for people: file::function."""
        file, function = self.test.split("::")
        return f"{FILES[file]}::{function}"


def _idle(name: str, where: str, value: Any, says: str, **rest: Any) -> Key:
    return Key(name, where, value, "keys::test_a_key_without_effect_says_so", IDLE, says, **rest)


def _refused(name: str, where: str, value: Any, says: str, **rest: Any) -> Key:
    return Key(name, where, value, "keys::test_a_refused_key_gives_its_reason", REFUSED, says, **rest)


def _plain(where: str, on: str = "local", **tests: tuple[Any, str]) -> list[Key]:
    return [Key(name, where, value, test, on=on) for name, (value, test) in tests.items()]


CLOSEST = {"crop": True, "crop_aspect": "closest", "crop_aspect_buckets": [0.5, 2.0]}
CLIP = {"num_frames": 9, "max_frames": 90}
DECIDED = "effects::test_sizes_follow_the_entry"
SCHEDULE = "effects::test_the_schedule_of_an_entry_decides_what_is_drawn"
TOLD = "plan::test_slider_and_regularisation_are_told_to_the_step"
TABLE = "effects::test_columns_of_a_table_are_chosen_by_name"
ROWS = "places::test_rows_of_a_hub_dataset"
LENGTHS = "effects::test_a_table_knows_the_lengths_of_clips"
HUB_CLIPS = "places::test_clips_of_a_hub_dataset"
CUT = "clips::test_a_clip_is_cut_by_its_rules"
SOUNDS = "clips::test_the_block_audio_says_what_becomes_of_the_sound"
BUCKET = "places::test_keys_of_a_bucket_reach_the_client"
LINKS = "places::test_a_list_of_links_brings_pictures_and_captions"
PANELS = "places::test_panels_of_strips_are_cut_out"
TAGS = "effects::test_shuffled_tags_become_captions"
LATER_KINDS = "parquet.{} has no effect; only sound, boxes and lists of captions use it"

IDENTITY = [
    Key("id", EVERY, "tested", "file::test_a_file_that_cannot_be_used_says_why"),
    Key("type: local", EVERY, "local", "plan::test_batches_hold_the_latents_of_their_pictures"),
    Key("type: aws", "IVCETM", "aws", "examples::test_pictures_in_an_object_store_with_a_table", on="aws"),
    Key("type: csv", SAMPLES, "csv", LINKS, on="csv"),
    Key("type: huggingface", SAMPLES, "huggingface", "examples::test_a_slider_with_rows_of_a_hub_dataset",
        on="huggingface"),
    _refused("type: memory", EVERY, "memory", k.REFUSED_STORAGE["memory"]),
    _refused("type: webshart", SAMPLES, "webshart", k.REFUSED_STORAGE["webshart"]),
    Key("dataset_type: image", "I", "image", "plan::test_batches_hold_the_latents_of_their_pictures"),
    Key("dataset_type: video", "V", "video", "clips::test_the_first_frames_of_each_clip_make_a_batch"),
    Key("dataset_type: conditioning", "C", "conditioning",
        "companions::test_strict_references_share_the_crop_of_their_sample"),
    Key("dataset_type: eval", "E", "eval", "plan::test_held_out_samples_come_in_order_with_their_first_caption",
        says="held out and encoded; the loss on it is not measured yet"),
    Key("dataset_type: text_embeds", "T", "text_embeds",
        "captions::test_the_filter_of_the_text_cache_reaches_the_captions"),
    Key("dataset_type: image_embeds", "M", "image_embeds",
        "places::test_caches_in_a_bucket_are_found_by_another_machine"),
    _idle("dataset_type: conditioning_image_embeds", "N", "conditioning_image_embeds",
          f"the entry has no effect; {k.CACHED_WITH_LATENTS}"),
    *(_refused(f"dataset_type: {name}", "I", name, reason) for name, reason in k.REFUSED_TYPES.items()
      if name not in k.IDLE_TYPES),
    *(_idle(f"dataset_type: {name}", "I", name, reason) for name, reason in k.IDLE_TYPES.items()),
    Key("disabled", EVERY, False, "file::test_disabled_entries_are_not_looked_at", says_elsewhere=False),
    Key("disable", EVERY, False, "effects::test_other_names_of_keys_mean_the_same", says_elsewhere=False),
    Key("default", "T", True,
        "effects::test_a_dataset_chooses_its_text_cache_and_the_default_one_holds_the_empty_caption"),
    Key("text_embeds", "IVE", "words",
        "effects::test_a_dataset_chooses_its_text_cache_and_the_default_one_holds_the_empty_caption",
        says="captions of a companion go where those of its source go"),
    Key("text_embed_cache", "IVE", "words", "effects::test_other_names_of_keys_mean_the_same"),
    Key("image_embeds", SAMPLES, "latents", "places::test_caches_in_a_bucket_are_found_by_another_machine"),
    _idle("conditioning_image_embeds", SAMPLES, "features", k.CACHED_WITH_LATENTS),
    Key("source_dataset_id", "C", "pics", "effects::test_a_companion_may_name_its_source_instead"),
    Key("conditioning_data", "IVE", ["beside"], "companions::test_masks_weigh_the_loss_at_the_size_of_the_latents"),
    *(
        Key(f"conditioning_type: {name}", "C", name, f"companions::{test}")
        for name, test in {
            "controlnet": "test_control_pictures_come_as_pixels_where_the_model_sees_pixels",
            "mask": "test_masks_weigh_the_loss_at_the_size_of_the_latents",
            "segmentation": "test_a_segmentation_masks_a_share_of_the_batches",
            "reference_strict": "test_strict_references_share_the_crop_of_their_sample",
            "reference_loose": "test_loose_references_keep_their_own_shape",
        }.items()
    ),
    _refused("s2v_datasets", "V", ["x"], k.SOUND),
    _refused("grounding", "IV", {"enabled": True}, k.REFUSED_KEYS["grounding"]),
    _idle("distillation_type", "I", "x", k.WITHOUT_EFFECT["distillation_type"]),
]  # fmt: skip

LOCATION = [
    Key("instance_data_dir", SAMPLES, ".", "file::test_a_minimal_entry_takes_over_the_global_options",
        says="a folder, or any URL that fsspec knows"),
    Key("instance_data_root", SAMPLES, ".", "effects::test_other_names_of_keys_mean_the_same"),
    Key("cache_file_suffix", SAMPLES, "x", "effects::test_a_suffix_gives_a_folder_a_second_index"),
]  # fmt: skip

SIZES = [
    *_plain("IVE", resolution=(96, DECIDED), resolution_type=("pixel", DECIDED),
            minimum_image_size=(32, "scan::test_limits_leave_pictures_out_with_their_reason")),
    Key("maximum_image_size", "IVE", 900, DECIDED, beside={"crop": True, "target_downsample_size": 800}),
    Key("target_downsample_size", "IVE", 800, DECIDED, beside={"crop": True, "maximum_image_size": 900}),
    *_plain(SAMPLES, minimum_aspect_ratio=(0.5, "scan::test_limits_leave_pictures_out_with_their_reason"),
            maximum_aspect_ratio=(2.0, "scan::test_limits_leave_pictures_out_with_their_reason")),
    Key("max_upscale_threshold", SAMPLES, 0.2, "effects::test_aspects_that_would_enlarge_too_much_are_not_chosen",
        beside=CLOSEST),
    Key("max_num_samples", SAMPLES, 5, "scan::test_a_limited_number_of_samples_is_always_the_same"),
    Key("delete_unwanted_images", "IVE", True,
        "scan::test_unwanted_and_problematic_pictures_are_deleted_only_on_request"),
    Key("delete_problematic_images", SAMPLES, True,
        "scan::test_unwanted_and_problematic_pictures_are_deleted_only_on_request"),
    Key("layers", "IE", True,
        "layers::test_a_sample_is_a_picture_and_its_layers_in_the_order_of_their_numbers"),
    _refused("delete_nsfw_images", SAMPLES, True, k.REFUSED_KEYS["delete_nsfw_images"]),
    Key("scan_for_errors", SAMPLES, True,
        "effects::test_a_scan_for_errors_reads_caches_that_are_too_large_for_the_usual_check"),
    Key("color_profiles", SAMPLES, "ignore", "images::test_color_profiles_are_converted_unless_the_entry_ignores_them",
        says="masks are never converted"),
    _idle("vae_cache_scan_behaviour", SAMPLES, "sync", k.WITHOUT_EFFECT["vae_cache_scan_behaviour"]),
    Key("crop", SAMPLES, True, DECIDED),
    Key("crop_style", SAMPLES, "center", "scan::test_crops_of_an_index_equal_the_single_rule", beside={"crop": True}),
    Key("crop_style: face", SAMPLES, "face", "effects::test_a_face_is_put_into_the_middle_of_the_crop",
        beside={"crop": True}),
    Key("crop_aspect", SAMPLES, "closest", DECIDED, beside={"crop": True, "crop_aspect_buckets": [0.5]}),
    Key("crop_aspect: random", SAMPLES, "random",
        "on_demand::test_random_aspects_are_drawn_anew_in_every_epoch", beside=CLOSEST),
    Key("crop_aspect_buckets", SAMPLES, [{"aspect": 1.0, "weight": 1.0}], DECIDED,
        beside={"crop": True, "crop_aspect": "closest"}),
]  # fmt: skip

PROMPTS = "captions::test_instance_prompts_replace_or_precede"
CAPTIONS = [
    *(
        Key(f"caption_strategy: {name}", where, None if name == "null" else name, test, on=on, beside=beside)
        for name, where, on, beside, test in (
            ("textfile", SAMPLES, "local", {}, "captions::test_a_line_is_a_variant_unless_lines_are_kept"),
            ("filename", SAMPLES, "local", {}, "captions::test_a_file_name_is_a_caption"),
            ("instanceprompt", SAMPLES, "local", {"instance_prompt": "x"}, PROMPTS),
            ("parquet", SAMPLES, "table", {},
             "captions::test_a_table_gives_captions_and_sizes_without_opening_a_picture"),
            ("csv", SAMPLES, "csv", {}, LINKS),
            ("huggingface", SAMPLES, "huggingface", {}, ROWS),
            ("null", "C", "local", {}, "companions::test_strict_references_share_the_crop_of_their_sample"),
        )
    ),
    _refused("caption_strategy: webshart", "I", "webshart", k.REFUSED_STORAGE["webshart"]),
    Key("instance_prompt", SAMPLES, ["x", "y"], PROMPTS),
    *(Key(name, SAMPLES, True, PROMPTS, beside={"instance_prompt": "x"})
      for name in ("prepend_instance_prompt", "only_instance_prompt")),
    Key("disable_multiline_split", SAMPLES, True, "captions::test_a_line_is_a_variant_unless_lines_are_kept"),
    Key("caption_extension", SAMPLES, ".caption", "effects::test_captions_may_have_another_ending"),
    *(Key(f"caption_shuffle.{name}", SAMPLES, value, TAGS)
      for name, value in (("enable", True), ("count", 2), ("seed", 1), ("split_on", "space"), ("position_start", 1),
                          ("include_original", False))),
    Key("caption_filter_list", "T", ["a photo of "], "captions::test_a_filter_entry_changes_a_caption",
        says="an array, a .json file with one, or a .txt file with one entry per line"),
    _idle("caption_file_extensions", "I", [".txt"], k.WITHOUT_EFFECT["caption_file_extensions"]),
    _idle("shuffle", "I", True, k.WITHOUT_EFFECT["shuffle"]),
]  # fmt: skip

OFTEN = [
    *_plain("IV", probability=(0.5, SCHEDULE), repeats=(2, SCHEDULE), train_batch_size=(2, SCHEDULE),
            start_epoch=(1, SCHEDULE), end_epoch=(3, SCHEDULE), start_step=(1, SCHEDULE), end_step=(5, SCHEDULE),
            disable_after_epoch_step=(5, SCHEDULE), is_regularisation_data=(True, TOLD), slider_strength=(0.5, TOLD),
            timestep_sampling_offset=(0.25, TOLD),
            is_regularization_data=(True, "file::test_other_spellings_and_forms_are_understood")),
    _idle("ignore_epochs", SAMPLES, True, k.WITHOUT_EFFECT["ignore_epochs"]),
    Key("disable_validation", "IVE", True,
        "inputs::test_a_controlnet_is_validated_with_control_pictures_of_its_dataset"),
]  # fmt: skip

CACHES = [
    Key("cache_dir_vae", SAMPLES, "latents-of", "effects::test_caches_lie_where_the_entries_say"),
    Key("cache_dir", "T", "texts-of", "effects::test_caches_lie_where_the_entries_say"),
    Key("cache_dir", "TM", "texts", "places::test_caches_in_a_bucket_are_found_by_another_machine",
        says="behind aws_data_prefix", on="aws", says_elsewhere=False),
    _idle("cache_dir", "M", "x", "cache_dir has no effect here; each dataset names its own cache_dir_vae"),
    _idle("cache_dir_conditioning_image_embeds", SAMPLES, "x", k.CACHED_WITH_LATENTS),
    Key("vae_cache_clear_each_epoch", "IV", True, "on_demand::test_latents_of_an_epoch_before_are_removed"),
    Key("vae_cache_ondemand", SAMPLES, True,
        "on_demand::test_on_demand_gives_the_batches_of_a_filled_cache_and_keeps_them"),
    Key("vae_cache_disable", SAMPLES, True, "on_demand::test_a_disabled_cache_writes_nothing"),
    Key("disable_vae_cache", SAMPLES, True, "effects::test_other_names_of_keys_mean_the_same"),
    *_plain("T", text_cache_ondemand=(True, "on_demand::test_texts_are_encoded_when_they_are_needed"),
            text_cache_disable=(True, "on_demand::test_texts_are_encoded_when_they_are_needed"),
            text_encoder_batch_size=(2, "effects::test_captions_are_encoded_several_at_a_time")),
    _idle("hash_filenames", SAMPLES, True, k.WITHOUT_EFFECT["hash_filenames"]),
    _idle("shorten_filenames", SAMPLES, True, k.WITHOUT_EFFECT["shorten_filenames"]),
    *_plain(f"{SAMPLES}T", compress_cache=(True, "effects::test_a_compressed_cache_is_smaller"),
            write_batch_size=(2, "effects::test_entries_are_written_together")),
    Key("preserve_data_backend_cache", SAMPLES, "image", "effects::test_a_kept_listing_may_name_its_kinds",
        says="true, or a text that names the kind image"),
    Key("skip_file_discovery: vae", SAMPLES, "vae", "effects::test_latents_of_a_skipped_stage_are_not_made"),
    Key("skip_file_discovery: aspect", SAMPLES, "aspect", "scan::test_listing_can_be_skipped"),
    Key("skip_file_discovery: metadata", SAMPLES, "metadata", "scan::test_listing_can_be_skipped"),
    Key("skip_file_discovery: text", f"{SAMPLES}T", "text",
        "effects::test_texts_of_a_dataset_that_skips_them_are_not_made"),
    _idle("read_batch_size", SAMPLES, 5, k.WITHOUT_EFFECT["read_batch_size"]),
    *_plain(SAMPLES, vae_batch_size=(2, "plan::test_vae_batches_are_bounded_and_of_one_size"),
            image_processing_batch_size=(4, "effects::test_only_so_many_pictures_are_prepared_ahead"),
            max_workers=(2, "effects::test_threads_are_as_many_as_asked_for"),
            aspect_bucket_worker_count=(3, "effects::test_sizes_are_read_by_as_many_threads_as_asked_for")),
    _idle("conditioning_image_embed_batch_size", SAMPLES, 2, k.WITHOUT_EFFECT["conditioning_image_embed_batch_size"]),
    _idle("metadata_update_interval", SAMPLES, 60, k.WITHOUT_EFFECT["metadata_update_interval"]),
    _idle("config_version", SAMPLES, 2, k.WITHOUT_EFFECT["config_version"]),
]  # fmt: skip

STORES = [
    *(Key(f"aws_{name}", "IVCETM", value, BUCKET, on="aws", says_elsewhere=False)
      for name, value in (("bucket_name", "b"), ("endpoint_url", "https://x"), ("region_name", "eu-west-2"),
                          ("access_key_id", "a"), ("secret_access_key", "b"), ("session_token", "c"),
                          ("max_pool_connections", 5))),
    Key("aws_data_prefix", "IVCETM", "p", "places::test_a_bucket_may_be_named_in_several_ways", on="aws",
        says_elsewhere=False),
    Key("aws", "IVCETM", {"region_name": "x"}, "places::test_a_bucket_may_be_named_in_several_ways", on="aws",
        says="the same keys, with or without aws_ before them", says_elsewhere=False),
    *(Key(name, SAMPLES, value, LINKS, on="csv", says_elsewhere=False)
      for name, value in (("csv_file", "list.csv"), ("csv_cache_dir", "kept"), ("csv_caption_column", "words"),
                          ("csv_url_column", "link"))),
    *(Key(name, SAMPLES, value, test, on="huggingface", says_elsewhere=False)
      for name, value, test in (
          ("dataset_name", "x/y", ROWS),
          ("split", "test", "places::test_another_split_and_revision_are_asked_for"),
          ("revision", "v2", "places::test_another_split_and_revision_are_asked_for"),
          ("image_column", "photo", ROWS), ("video_column", "film", HUB_CLIPS), ("cache_dir", "library", ROWS),
          ("streaming", True, ROWS), ("huggingface", {"streaming": True}, ROWS),
          ("composite_image_config", {"enabled": True, "image_count": 2, "select_index": 1}, PANELS),
          ("split_composite_images", True, PANELS), ("composite_image_column", "image", PANELS),
          ("caption_column", ["a", "b"], ROWS), ("fallback_caption_column", "c", ROWS),
          ("width_column", "w", "places::test_sizes_of_a_hub_dataset_may_stand_in_columns"),
          ("height_column", "h", "places::test_sizes_of_a_hub_dataset_may_stand_in_columns"),
          ("num_frames_column", "n", HUB_CLIPS), ("fps_column", "r", HUB_CLIPS), ("quality_column", "q", ROWS),
          ("file_extension", "png", ROWS), ("filter_func.collection", ["a"], ROWS),
          ("filter_func.quality_thresholds", {"sharp": 0.5}, ROWS), ("filter_func.quality_column", "q", ROWS),
          ("filter_func.min_width", 5, ROWS), ("filter_func.min_height", 5, ROWS))),
    *(_idle(name, SAMPLES, value, k.WITHOUT_EFFECT[name], on="huggingface")
      for name, value in (("num_proc", 4), ("auto_load", True), ("description_column", "d"))),
    *(_idle(f"huggingface.{name}", SAMPLES, value, k.WITHOUT_EFFECT[name], on="huggingface")
      for name, value in (("num_proc", 4), ("auto_load", True), ("description_column", "d"))),
    *(_refused(name, SAMPLES, ["x"], reason, on="huggingface")
      for name, reason in (("huggingface.config", k.SOUND), ("bbox_column", k.REFUSED_KEYS["bbox_column"]),
                           ("huggingface.bbox_column", k.REFUSED_KEYS["bbox_column"]))),
    *(_idle(f"{block}{name}", SAMPLES, ["x"], k.WITHOUT_EFFECT[name], on="huggingface")
      for block in ("", "huggingface.") for name in ("audio_column", "lyrics_column", "audio_caption_fields")),
    *(_idle(name, "IT", "x", f"{name} has no effect on an entry of type local")
      for name, storage in k.WITHOUT_EFFECT_UNLESS.items() if storage == "memory"),
    *(_idle(name, "I", "x", f"{name} has no effect on an entry of type local")
      for name, storage in k.WITHOUT_EFFECT_UNLESS.items() if storage == "webshart"),
]  # fmt: skip

TABLES = [
    *(Key(f"metadata_backend: {name}", SAMPLES, name, test, on={"parquet": "table"}.get(name, name))
      for name, test in (("discovery", "scan::test_a_second_start_opens_no_picture_and_one_edit_opens_one"),
                         ("json", "file::test_other_spellings_and_forms_are_understood"),
                         ("filesystem", "keys::test_an_old_name_of_a_metadata_backend_is_understood"),
                         ("parquet", TABLE), ("huggingface", ROWS))),
    _refused("metadata_backend: webshart", "I", "webshart", k.REFUSED_STORAGE["webshart"]),
    *(Key(f"parquet.{name}", SAMPLES, value, test, on="table", says_elsewhere=False)
      for name, value, test in (
          ("path", "t.parquet", TABLE), ("filename_column", "f", TABLE), ("caption_column", "c", TABLE),
          ("fallback_caption_column", "d", TABLE), ("width_column", "w", TABLE), ("height_column", "h", TABLE),
          ("identifier_includes_extension", True, "captions::test_a_fallback_column_stands_in_for_empty_captions"),
          ("num_frames_column", "n", LENGTHS), ("fps_column", "r", LENGTHS))),
    Key("parquet.aspect_ratio_column", SAMPLES, "a", TABLE, on="table", says_elsewhere=False,
        says="names the bucket; what shares a batch is still decided by size"),
    *(_idle(f"parquet.{name}", "I", "x", LATER_KINDS.format(name), on="table") for name in k.TABLE_COLUMNS_OF_OTHERS),
]  # fmt: skip

GENERATORS = {
    "depth": "test_depth_is_grey_and_as_large_as_the_picture",
    "segmentation": "test_segmentation_gives_the_levels_of_its_classes",
    "optical_flow": "test_the_flow_of_a_moving_picture_has_one_hue_and_rest_is_white",
    "i2v_first_frame": "test_the_first_frame_is_the_first_frame",
}
GENERATED = [
    *(Key(f"conditioning.{name}", "IVE", value, test, beside={"conditioning": {"type": "canny"}}, says_elsewhere=False)
      for name, value, test in (
          ("type", "canny", "companions::test_control_pictures_are_made_from_the_samples_once"),
          ("conditioning_type", "mask", "effects::test_generated_pictures_are_references_unless_said_otherwise"),
          ("captions", "x", "effects::test_generated_pictures_may_have_captions_of_their_own"),
          ("caption_strategy", "filename", "effects::test_generated_pictures_may_have_captions_of_their_own"),
          ("instance_data_dir", "x",
           "effects::test_generated_pictures_lie_where_the_block_says_and_are_named_by_it"),
          ("params", {"low_threshold": 5},
           "effects::test_generated_pictures_lie_where_the_block_says_and_are_named_by_it"))),
    *(Key(f"conditioning.type: {name}", "V" if control.needs_clip else "IVE", name,
          f"controls::{GENERATORS.get(name, 'test_every_parameter_has_an_effect')}",
          says="; ".join(filter(None, (
              f"also {', '.join(control.aliases)}" if control.aliases else "",
              f"takes {', '.join(control.params)}" if control.params else "",
              "raft is refused, dis is used" if name == "optical_flow" else ""))))
      for name, control in CONTROLS.items()),
]  # fmt: skip

VIDEO = [
    *(Key(f"video.{name}", "VCE", value, test, beside=beside, says_elsewhere=False)
      for name, value, test, beside in (
          ("num_frames", 9, CUT, {}), ("min_frames", 9, CUT, {"video": {"num_frames": 9}}), ("max_frames", 90, CUT, {}),
          ("bucket_strategy", "resolution_frames", "clips::test_lengths_make_buckets_of_their_own",
           {"video": {"frame_interval": 4, "max_frames": 90}}),
          ("frame_interval", 4, CUT, {"video": {"bucket_strategy": "resolution_frames", "max_frames": 90}}),
          ("frame_extraction", "chunk", CUT, {"video": {"target_frames": [9]}}),
          ("target_frames", [9], CUT, {"video": {"frame_extraction": "chunk"}}),
          ("frame_stride", 2, CUT, {"video": {"target_frames": [9], "frame_extraction": "slide"}}),
          ("frame_sample", 2, CUT, {"video": {"target_frames": [9], "frame_extraction": "uniform"}}),
          ("fps", 12.0, "clips::test_frames_are_taken_at_a_rate_by_their_time", {}),
          ("source_fps", 24.0, CUT, {}),
          ("is_i2v", True, "clips::test_whether_clips_start_from_their_first_frame_is_told_to_the_step",
           {"video": CLIP}))),
]  # fmt: skip

AUDIO = [
    *(
        Key(f"{audio}{name}", "VE", value, SOUNDS, says_elsewhere=audio == "audio.")
        for audio in ("audio.", "audio_")
        for name, value in (("auto_split", False), ("allow_zero_audio", True))
    ),
    *(_refused(f"{audio}{name}", "V", "x", k.SOUND) for audio in ("audio.", "audio_") for name in k.SOUND_REFUSED),
    *(_idle(f"{audio}{name}", "V", "x", k.SOUND) for audio in ("audio.", "audio_") for name in k.SOUND_WITHOUT_EFFECT),
]

SECTIONS = {
    "Identity and role": IDENTITY,
    "Where samples are": LOCATION,
    "Sizes, limits and crops": SIZES,
    "Captions": CAPTIONS,
    "How often": OFTEN,
    "Caches and work": CACHES,
    "Object stores, lists of links, hub datasets": STORES,
    "Tables": TABLES,
    "Generated companions": GENERATED,
    "Clips": VIDEO,
    "Sound": AUDIO,
}

OPTIONS = {
    "aspect_bucket_alignment": "effects::test_global_options_shape_buckets",
    "aspect_bucket_rounding": "effects::test_global_options_shape_buckets",
    "aspect_bucket_worker_count": "effects::test_sizes_are_read_by_as_many_threads_as_asked_for",
    "enable_multiprocessing": "keys::test_an_option_answers_as_the_table_says",
    "aspect_bucket_disable_rebuild": "on_demand::test_the_rebuild_can_be_switched_off",
    "disable_bucket_pruning": "scan::test_small_buckets_are_pruned_unless_told_otherwise",
    "allow_dataset_oversubscription": "plan::test_buckets_that_cannot_fill_a_batch_are_all_named",
    "override_dataset_config": "keys::test_an_option_answers_as_the_table_says",
    "data_backend_sampling": "effects::test_the_share_of_a_dataset_follows_its_probability_and_the_way_of_sampling",
    "dataloader_prefetch": "plan::test_prefetching_gives_the_same_as_not_and_stops_cleanly",
    "dataloader_prefetch_qlen": "plan::test_resuming_at_any_position_gives_the_same_batches",
    "ignore_missing_files": "on_demand::test_files_that_disappeared_are_trained_on_from_the_cache_when_asked",
    "caption_dropout_probability": "companions::test_dropped_captions_leave_what_is_beside_the_samples",
    "conditioning_dropout_probability": (
        "companions::test_what_is_beside_samples_is_left_out_by_an_option_of_its_own_and_by_its_own_chance"
    ),
    "conditioning_multidataset_sampling": (
        "companions::test_combined_attaches_all_and_random_one_of_them_stable_within_an_epoch"
    ),
    "eval_dataset_id": "keys::test_an_option_answers_as_the_table_says",
    "masked_loss_probability": "companions::test_a_segmentation_masks_a_share_of_the_batches",
    "framerate": "effects::test_clips_last_five_seconds_at_the_frame_rate_when_nothing_is_said",
    "print_sampler_statistics": "effects::test_what_is_asked_for_is_told_in_the_log",
    "debug_aspect_buckets": "effects::test_what_is_asked_for_is_told_in_the_log",
    "compress_disk_cache": "effects::test_a_compressed_cache_is_smaller",
    "max_upscale_threshold": "effects::test_aspects_that_would_enlarge_too_much_are_not_chosen",
    "metadata_update_interval": "effects::test_a_long_scan_is_saved_at_the_interval",
    "vae_cache_scan_behaviour": "keys::test_an_option_answers_as_the_table_says",
    "read_batch_size": "keys::test_an_option_answers_as_the_table_says",
    "parquet_filename_column": "effects::test_global_options_name_captions_and_columns",
    "parquet_caption_column": "effects::test_global_options_name_captions_and_columns",
    "aws_max_pool_connections": "places::test_keys_of_a_bucket_reach_the_client",
}
"""Options that shape datasets and have no key of their own, or another meaning than the key, and their tests."""


@dataclass(frozen=True)
class MusubiKey:
    """A key of a musubi-tuner file, `where` among general, image, video."""

    name: str
    where: str
    value: Any
    test: str
    status: str = WORKS
    says: str = ""
    beside: dict[str, Any] = field(default_factory=dict)

    place = Key.place


_FILMS = "musubi::test_films_are_cut_as_musubi_tuner_cuts_them"
_FOLDER = "musubi::test_captions_batches_and_repeats_of_a_folder"
_BUCKETS = "musubi::test_pictures_get_the_buckets_of_musubi_tuner"
_CONTROLS = "examples::test_musubi_controls_by_name_and_number"
_FRAMEPACK = "musubi::test_keys_of_framepack_agree_with_the_options"
_AGREES = "with FramePack: what the option says, which it has to agree with; under other families no effect"

MUSUBI = [
    MusubiKey("resolution", "general image video", [96, 64], _BUCKETS),
    MusubiKey("caption_extension", "general image video", ".txt", _FOLDER),
    MusubiKey("batch_size", "general image video", 2, _FOLDER),
    MusubiKey("num_repeats", "general image video", 2, _FOLDER),
    MusubiKey("enable_bucket", "general image", True, _BUCKETS),
    MusubiKey("bucket_no_upscale", "image", True, _BUCKETS, beside={"enable_bucket": True}),
    MusubiKey("image_directory", "image", "pictures", _BUCKETS),
    MusubiKey("image_jsonl_file", "image", "list.jsonl", "examples::test_musubi_lists_of_lines",
              says="lines with image_path, caption, control_path or numbered paths"),
    MusubiKey("cache_directory", "image video", "kept", _FOLDER, says="our caches, in a folder of their own in it"),
    MusubiKey("control_directory", "image", "controls", _CONTROLS),
    MusubiKey("control_directory", "video", "controls", "musubi::test_controls_of_films_lie_in_a_folder"),
    MusubiKey("no_resize_control", "image", True, _CONTROLS),
    MusubiKey("control_resolution", "image", [64, 64], _CONTROLS),
    MusubiKey("multiple_target", "image", True, "layers::test_multiple_targets_of_a_folder_are_layers",
              says="with the layered flavour; others train on the first picture"),
    *(MusubiKey(name, where, value, _FRAMEPACK, says=_AGREES)
      for name, where, value in (("fp_latent_window_size", "image video", 9), ("fp_1f_clean_indices", "image", [0]),
                                 ("fp_1f_target_index", "image", 1), ("fp_1f_no_post", "image", True))),
    MusubiKey("video_directory", "video", "films", _FILMS),
    MusubiKey("video_jsonl_file", "video", "films.jsonl",
              "musubi::test_films_and_their_controls_may_stand_in_a_list"),
    MusubiKey("target_frames", "video", [1, 9], _FILMS),
    MusubiKey("frame_extraction", "video", "chunk", _FILMS),
    MusubiKey("frame_stride", "video", 7, _FILMS, beside={"frame_extraction": "slide"}),
    MusubiKey("frame_sample", "video", 2, _FILMS, beside={"frame_extraction": "uniform"}),
    MusubiKey("max_frames", "video", 13, _FILMS, beside={"frame_extraction": "full"}),
    MusubiKey("source_fps", "video", 32.0, _FILMS),
    *(MusubiKey(name, "image", value, "musubi::test_old_names_are_understood_with_a_warning", says=f"old name of {new}")
      for name, value, new in (("flux_kontext_no_resize_control", True, "no_resize_control"),
                               ("qwen_image_edit_no_resize_control", True, "no_resize_control"),
                               ("qwen_image_edit_control_resolution", [64, 64], "control_resolution"))),
]  # fmt: skip


# ---------------------------------------------------------------------- the page

HEAD = """# Every key of a dataset file

What [datasets](datasets.md) explains, as a list for looking up: each key, the entries on which it acts, what Darkroom
does with it, and the test that would fail if it did not. `python -m tests.data.keys` writes this page, and a test
compares it with what the reader answers.

Entries: I image, V video, C conditioning, E eval, T text_embeds, M image_embeds, N conditioning_image_embeds. Where a
key has no effect, the reader says so; where it is refused, the message holds the reason given here. Tests are below
`tests/`.

"""


def option_status(name: str) -> tuple[str, str]:
    """Status of an option, and why."""
    from darkroom.options.config import option_info

    if option_info(name).pending:
        return REFUSED, str(option_info(name).pending)
    return (IDLE, OPTIONS_WITHOUT_EFFECT[name]) if name in OPTIONS_WITHOUT_EFFECT else (WORKS, "")


def every_row() -> list[tuple[str, list[tuple[str, str, str, str]]]]:
    """Section title to rows of (key, where, answer, test)."""
    made = [
        (title, [(key.name, " ".join(key.where), _answer(key.status, key.says), key.place) for key in rows])
        for title, rows in SECTIONS.items()
    ]
    options = [
        (name, "options", _answer(*option_status(name)), Key("", "", 0, test).place) for name, test in OPTIONS.items()
    ]
    musubi = [(key.name, key.where, _answer(key.status, key.says), key.place) for key in MUSUBI]
    return [*made, ("Options that shape datasets", options), ("musubi-tuner's dataset file", musubi)]


def _answer(status: str, says: str) -> str:
    return status + (f": {says}" if says else "")


def counts() -> dict[str, int]:
    """How many keys have which status."""
    answers = [row[2].partition(":")[0] for _, rows in every_row() for row in rows]
    return {status: answers.count(status) for status in (WORKS, IDLE, REFUSED)}


def page() -> str:
    """docs/dataset_keys.md."""
    numbers = counts()
    lines = [f"{numbers[WORKS]} work, {numbers[IDLE]} have no effect, {numbers[REFUSED]} are refused.", ""]
    for title, rows in every_row():
        lines += [f"## {title}", "", "| Key | On | Answer | Test |", "| --- | --- | --- | --- |"]
        lines += [f"| `{name}` | {where} | {answer} | `{test}` |" for name, where, answer, test in rows]
        lines.append("")
    return HEAD + "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
