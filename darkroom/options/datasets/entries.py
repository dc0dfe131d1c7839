"""What the entries of a dataset file hold once they are checked: one model for samples, three for caches."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from darkroom.options.datasets.locations import Count as AtLeastOne
from darkroom.options.datasets.locations import EntryModel, LocalFiles, Location, S3Files, UrlFiles, lower


def _to_integer(value: object) -> object:
    """Accept 5, 5.0 and "5" as 5, and nothing looser: no booleans, no fractions, no "05"."""
    if isinstance(value, bool) or (isinstance(value, str) and not re.fullmatch(r"-?(0|[1-9]\d*)", value)):
        raise ValueError("a whole number is needed")
    if isinstance(value, float) and not value.is_integer():
        raise ValueError("a whole number is needed")
    return int(value) if isinstance(value, (int, float, str)) else value


def _start(minimum: int) -> Callable[[object], int]:
    """Starts that are missing, invalid or too early mean from the beginning."""

    def clean(value: object) -> int:
        try:
            return max(minimum, int(cast(str, value)))
        except (TypeError, ValueError, OverflowError):
            return minimum

    return clean


def _end(value: object) -> int | None:
    """Ends that are missing, invalid or not positive mean never."""
    try:
        end = int(cast(str, value))
        return end if end >= 1 else None
    except (TypeError, ValueError, OverflowError):
        return None


def _off(value: object) -> object:
    """Zero and empty mean no limit."""
    return None if value in (0, -1, "0", "-1", "", None, False) else value


def _ending(value: object) -> object:
    """An ending as people write it: `txt` means `.txt`; what has a dot somewhere, as `_tags.txt`, is as it is."""
    return f".{value}" if isinstance(value, str) and value and "." not in value else value


def _truth(value: object) -> object:
    """The words true and false as what they mean; other texts as they are."""
    words = {"true": True, "false": False, "": False}
    return words.get(value.strip().lower(), value) if isinstance(value, str) else value


WholeNumber = Annotated[int, BeforeValidator(_to_integer)]
Count = Annotated[int, BeforeValidator(_to_integer), Field(ge=1)]
# the bound stands inside: outside, pydantic would compare it with the None that `_off` answers
Limit = Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_off)]
Name = Annotated[str, Field(min_length=1)]
CacheLocation = Annotated[LocalFiles | UrlFiles | S3Files, Field(discriminator="type")]

PIXEL_ALIGNED = ("mask", "reference_strict", "controlnet")
"""Conditioning types whose images are sized and cropped exactly like the sample they belong to."""

LOSS_MASKS = ("mask", "segmentation")
"""Conditioning types that say where the loss counts; all others are images for the model."""


class MetadataTable(EntryModel):
    """A Parquet or JSON-lines table with captions and, with `metadata_backend: parquet`, sizes."""

    path: str
    filename_column: str = "id"
    caption_column: str | tuple[str, ...] = "description"
    fallback_caption_column: str | None = None
    width_column: str = "width"
    height_column: str = "height"
    identifier_includes_extension: bool = False
    aspect_ratio_column: str | None = None
    num_frames_column: str | None = None
    fps_column: str | None = None

    @property
    def caption_columns(self) -> tuple[str, ...]:
        """The caption columns, one or several."""
        return (self.caption_column,) if isinstance(self.caption_column, str) else self.caption_column


class CaptionShuffle(EntryModel):
    """Variants of a caption with its tags in another order."""

    enable: bool = False
    count: Count = 1
    seed: WholeNumber | None = None
    split_on: Literal["comma", "space", "period"] = "comma"
    position_start: Annotated[int, BeforeValidator(_to_integer), Field(ge=0)] = 0
    include_original: bool = True


class VideoBlock(EntryModel):
    """Which frames of a clip are trained on. The extraction modes are those of musubi-tuner.

    `fps` thins or repeats frames by their time stamps; `source_fps` with a family's own rate thins by counting, as
    musubi-tuner does; with neither, frames are taken as they come.
    """

    num_frames: Count | None = None
    min_frames: Count | None = None
    max_frames: Count | None = None
    is_i2v: bool | None = None
    bucket_strategy: Annotated[Literal["aspect_ratio", "resolution_frames"], BeforeValidator(lower)] = "aspect_ratio"
    frame_interval: Count | None = None
    frame_extraction: Annotated[Literal["head", "chunk", "slide", "uniform", "full"], BeforeValidator(lower)] = "head"
    target_frames: tuple[Count, ...] = ()
    frame_stride: Count = 1
    frame_sample: Count = 1
    fps: Annotated[float | None, Field(gt=0)] = None
    source_fps: Annotated[float | None, Field(gt=0)] = None


class AudioBlock(EntryModel):
    """What becomes of the sound of clips, where the family trains on it.

    auto_split        it is read from the clips
    allow_zero_audio  clips without sound are trained on as silent clips; else they are left out
    """

    auto_split: bool = True
    allow_zero_audio: bool = False


class KohyaBuckets(EntryModel):
    """musubi-tuner's own sizes, in place of the arithmetic of `resolution_type`.

    bucket  the nearest of a list of buckets, or only `resolution`
    fit     near the image's own aspect, of the area of `resolution`
    own     the image's own size, cut to whole steps; as `fit` when it is larger than `resolution` and `capped`
    """

    mode: Literal["bucket", "fit", "own"] = "bucket"
    capped: bool = False
    resolution: tuple[AtLeastOne, AtLeastOne] = (960, 544)
    enable_bucket: bool = False
    bucket_no_upscale: bool = False
    step: AtLeastOne = 16


class Generator(EntryModel):
    """How the images of a conditioning dataset are made from its source."""

    type: Name
    params: dict[str, object] = {}


class Entry(EntryModel):
    """What every entry has."""

    id: Name
    compress_cache: bool = True
    preserve_data_backend_cache: Annotated[bool | str, BeforeValidator(_truth)] = False
    skip_file_discovery: str = ""
    write_batch_size: Count = 128

    def skips(self, *stages: str) -> bool:
        """Whether `skip_file_discovery` names one of these stages."""
        return any(stage in self.skip_file_discovery for stage in stages)


class SampleDataset(Entry):
    """Images or clips: to train on, held out (`eval`), or beside other samples (`conditioning`)."""

    dataset_type: Annotated[Literal["image", "video", "conditioning", "eval"], BeforeValidator(lower)] = "image"
    location: Location
    cache_file_suffix: str | None = None
    text_embeds: str | None = None
    image_embeds: str | None = None
    conditioning_image_embeds: str | None = None
    metadata_backend: Literal["discovery", "parquet", "huggingface"] = "discovery"

    conditioning_data: tuple[Name, ...] = ()
    conditioning_type: Annotated[
        Literal["controlnet", "mask", "segmentation", "reference_strict", "reference_loose"] | None,
        BeforeValidator(lower),
    ] = None
    source_dataset_id: str | None = None
    generator: Generator | None = None
    pairing: Literal["path", "prefix"] = "path"
    number: Annotated[int, Field(ge=0)] = 0
    optional: bool = False
    layers: bool = False
    video: VideoBlock | None = None
    audio: AudioBlock | None = None
    kohya: KohyaBuckets | None = None
    follows_model: bool = False
    short_batches: bool = False
    empty_captions: bool = False

    resolution: Annotated[float, Field(gt=0)] = 1024
    resolution_type: Annotated[Literal["pixel", "area", "pixel_area"], BeforeValidator(lower)] = "pixel_area"
    minimum_image_size: Limit = None
    maximum_image_size: Limit = None
    target_downsample_size: Limit = None
    minimum_aspect_ratio: Limit = None
    maximum_aspect_ratio: Limit = None
    max_upscale_threshold: Annotated[float | None, Field(ge=0, le=1)] = None
    max_num_samples: Count | None = None
    delete_unwanted_images: bool = False
    delete_problematic_images: bool = False
    scan_for_errors: bool = False
    color_profiles: Annotated[Literal["convert", "ignore"], BeforeValidator(lower)] = "convert"

    crop: bool = False
    crop_style: Annotated[Literal["random", "center", "centre", "corner", "face"], BeforeValidator(lower)] = "random"
    crop_aspect: Annotated[Literal["square", "preserve", "closest", "random"], BeforeValidator(lower)] = "square"
    crop_aspect_buckets: tuple[float, ...] = ()
    crop_aspect_weights: tuple[float, ...] = ()

    caption_strategy: (
        Annotated[
            Literal["textfile", "filename", "instanceprompt", "parquet", "csv", "huggingface", "jsonl"],
            BeforeValidator(lower),
        ]
        | None
    ) = "filename"
    caption_extension: Annotated[str, BeforeValidator(_ending), Field(min_length=1)] = ".txt"
    instance_prompt: str | tuple[str, ...] | None = None
    prepend_instance_prompt: bool = False
    only_instance_prompt: bool = False
    disable_multiline_split: bool = False
    caption_shuffle: CaptionShuffle = CaptionShuffle()
    parquet: MetadataTable | None = None

    probability: Annotated[
        float, BeforeValidator(lambda v: 1.0 if v in (None, "") else v), Field(ge=0, allow_inf_nan=False)
    ] = 1.0
    repeats: Annotated[int, BeforeValidator(_to_integer), Field(ge=0)] = 0
    has_repeats: bool = False
    train_batch_size: Count = 4
    start_epoch: Annotated[int, BeforeValidator(_start(1))] = 1
    start_step: Annotated[int, BeforeValidator(_start(0))] = 0
    end_epoch: Annotated[int | None, BeforeValidator(_end)] = None
    end_step: Annotated[int | None, BeforeValidator(_end)] = None
    disable_after_epoch_step: Count | None = None
    is_regularisation_data: bool = False
    slider_strength: Annotated[float | None, Field(allow_inf_nan=False)] = None
    timestep_sampling_offset: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    disable_validation: bool = False

    cache_dir_vae: Path
    vae_cache_ondemand: bool = False
    vae_cache_disable: bool = False
    vae_cache_clear_each_epoch: bool = False
    vae_batch_size: Count = 4
    image_processing_batch_size: Count = 32
    max_workers: Count = 32
    aspect_bucket_worker_count: Count = 12

    @property
    def prompts(self) -> tuple[str, ...]:
        """The instance prompts: none, one or several."""
        prompt = self.instance_prompt
        return () if not prompt else (prompt,) if isinstance(prompt, str) else prompt

    @property
    def is_training(self) -> bool:
        """Whether batches are drawn from it; the others are held out or go with other samples."""
        return self.dataset_type in ("image", "video")

    @property
    def is_aligned(self) -> bool:
        """Whether its images take size and crop from the sample they belong to."""
        return self.conditioning_type in PIXEL_ALIGNED

    @property
    def converts_colors(self) -> bool:
        """Whether its images are brought to sRGB. The values of masks are numbers, not colors."""
        return self.color_profiles == "convert" and self.conditioning_type not in LOSS_MASKS

    @property
    def on_demand(self) -> bool:
        """Whether its latents are made when a batch needs them."""
        return self.vae_cache_ondemand or self.vae_cache_disable

    def in_unit(self, value: float | None) -> float | None:
        """A size of this entry as megapixels (`area` and `pixel_area`) or as the shorter edge in pixels (`pixel`)."""
        return value * value / 1e6 if value is not None and self.resolution_type == "pixel_area" else value

    @property
    def size_kind(self) -> str:
        """`pixel` or `area`: the unit that `in_unit` gives."""
        return "pixel" if self.resolution_type == "pixel" else "area"


class TextEmbeds(Entry):
    """Where the outputs of the text encoders are cached."""

    dataset_type: Annotated[Literal["text_embeds"], BeforeValidator(lower)] = "text_embeds"
    location: CacheLocation
    default: bool = False
    cache_dir: Path
    caption_filter_list: tuple[str, ...] = ()
    text_encoder_batch_size: Count = 1
    text_cache_ondemand: bool = False
    text_cache_disable: bool = False

    @property
    def on_demand(self) -> bool:
        """Whether texts are encoded when a batch needs them."""
        return self.text_cache_ondemand or self.text_cache_disable


class ImageEmbeds(Entry):
    """A name under which datasets ask for their latents to be kept, and where that is."""

    dataset_type: Annotated[Literal["image_embeds", "conditioning_image_embeds"], BeforeValidator(lower)] = (
        "image_embeds"
    )
    location: CacheLocation
    cache_dir: Path | None = None


class WrittenEntry(NamedTuple):
    """A checked entry with the keys that were written for it."""

    entry: Entry
    written: frozenset[str]


class DatasetFile(BaseModel):
    """Everything that the dataset file says, checked and complete; a source stands before what depends on it."""

    model_config = ConfigDict(frozen=True)

    path: Path
    samples: tuple[SampleDataset, ...]
    text_embeds: tuple[TextEmbeds, ...]
    image_embeds: tuple[ImageEmbeds, ...] = ()
    disabled: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def training(self) -> tuple[SampleDataset, ...]:
        """The datasets that are trained on."""
        return tuple(d for d in self.samples if d.is_training)

    @property
    def default_text(self) -> TextEmbeds:
        """The text cache that holds the empty caption."""
        return next(t for t in self.text_embeds if t.default)

    def text_of(self, dataset: SampleDataset) -> TextEmbeds:
        """The text cache of a dataset."""
        return next((t for t in self.text_embeds if t.id == dataset.text_embeds), self.default_text)

    def conditioning_of(self, dataset: SampleDataset) -> tuple[SampleDataset, ...]:
        """The conditioning datasets that go with a dataset, in the order in which it names them."""
        by_id = {d.id: d for d in self.samples}
        return tuple(by_id[name] for name in dataset.conditioning_data)

    def store_of(self, dataset: SampleDataset) -> ImageEmbeds | None:
        """The entry under which a dataset's latents are kept, if it names one."""
        return next((e for e in self.image_embeds if e.id == dataset.image_embeds), None)
