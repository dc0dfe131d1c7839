"""Datasets, sizes and buckets, caches, and how batches are read."""

from __future__ import annotations

from typing import ClassVar, Literal

from darkroom.options.field import SET, Section, option


class DataOptions(Section):
    """What is read, in which sizes, and where prepared data is kept. A dataset's own setting wins over these."""

    page: ClassVar[str] = "data"
    title: ClassVar[str] = "Data"

    data_backend_config: str | None = option(
        None, "File that lists the datasets of the run.", resume="free", required=True, aliases=("dataset_config",)
    )
    data_backend_sampling: Literal["uniform", "auto-weighting"] = option(
        "auto-weighting",
        "Draw from datasets by their stated probability alone, or also in proportion to their size.",
        resume="refuse",
        level="advanced",
    )
    resolution: float = option(
        1024, "Target size of training images, in the unit that resolution_type names.", resume="warn", gt=0
    )
    resolution_type: Literal["pixel", "area", "pixel_area"] = option(
        "pixel_area",
        "pixel_area: edge of a square of equal area; pixel: length of the shorter edge; area: megapixels.",
        resume="warn",
    )
    color_profiles: Literal["convert", "ignore"] = option(
        "convert",
        "convert brings images to sRGB by their ICC profile; ignore takes the stored values, as SimpleTuner and "
        "musubi-tuner do.",
        level="advanced",
        resume="warn",
    )
    minimum_image_size: float | None = option(
        None, "Leave out images smaller than this, in the unit of resolution_type.", off=True, resume="warn", gt=0
    )
    maximum_image_size: float | None = option(
        None,
        "Shrink images larger than this to target_downsample_size before cropping.",
        off=True,
        resume="warn",
        gt=0,
        level="advanced",
    )
    target_downsample_size: float | None = option(
        None,
        "Size to which images above maximum_image_size are shrunk.",
        off=True,
        resume="warn",
        gt=0,
        level="advanced",
        when={"maximum_image_size": SET},
    )
    max_upscale_threshold: float | None = option(
        None,
        "Leave out buckets for which an image would have to grow by more than this share; 0.2 allows a fifth.",
        resume="warn",
        ge=0,
        le=1,
        level="advanced",
    )
    aspect_bucket_rounding: Literal[1, 2, 3, 4, 5, 6, 7, 8, 9] = option(
        2, "Decimal places to which aspect ratios are rounded when buckets are made.", resume="warn", level="advanced"
    )
    aspect_bucket_alignment: Literal[8, 16, 24, 32, 64, 128] = option(
        64, "Edges of buckets are multiples of this many pixels.", resume="warn", level="advanced"
    )
    aspect_bucket_worker_count: int = option(
        12, "Threads that read image sizes while buckets are made.", resume="free", ge=1, level="expert"
    )
    aspect_bucket_disable_rebuild: bool = option(
        False,
        "With random aspects, keep the buckets of the first epoch instead of drawing new ones.",
        resume="free",
        level="expert",
    )
    disable_bucket_pruning: bool = option(
        False, "Keep buckets that hold fewer images than one batch.", resume="warn", level="advanced"
    )
    allow_dataset_oversubscription: bool = option(
        False, "Repeat a dataset that is too small for one batch, unless it says its own repeats.", resume="warn"
    )
    ignore_missing_files: bool = option(
        False, "Go on when files that were there have disappeared.", resume="free", level="advanced"
    )
    delete_unwanted_images: bool = option(
        False,
        "Delete images that are too small from the dataset itself; there is no way back.",
        resume="free",
        level="expert",
    )
    delete_problematic_images: bool = option(
        False,
        "Delete images that cannot be read from the dataset itself; there is no way back.",
        resume="free",
        level="expert",
    )
    override_dataset_config: bool = option(
        False,
        "Go on although a dataset's settings differ from those it was prepared with.",
        resume="free",
        level="advanced",
    )
    preserve_data_backend_cache: bool = option(
        False,
        "Keep the list of files between runs instead of listing a large bucket again.",
        resume="free",
        level="advanced",
    )
    skip_file_discovery: str | None = option(
        None,
        "Comma-separated stages whose search for files is left out: vae, aspect, metadata, text.",
        resume="free",
        level="expert",
    )
    cache_dir_text: str | None = option(
        None,
        "Folder for prepared caption embeddings; left out, cache/text inside output_dir.",
        resume="free",
        level="advanced",
    )
    cache_dir_vae: str | None = option(
        None, "Folder for prepared latents; left out, cache/vae inside output_dir.", resume="free", level="advanced"
    )
    compress_disk_cache: bool = option(
        False, "Compress prepared data: less disk, somewhat slower reading.", resume="free", level="advanced"
    )
    vae_batch_size: int = option(
        4, "Images that the VAE encodes at once while the cache is filled.", resume="free", ge=1
    )
    vae_cache_ondemand: bool = option(
        False,
        "Encode images when they are first needed, not before training.",
        resume="free",
        level="advanced",
    )
    vae_cache_disable: bool = option(
        False,
        "Encode images whenever they are needed and write nothing.",
        resume="free",
        level="advanced",
    )
    vae_cache_scan_behaviour: Literal["recreate", "sync"] = option(
        "recreate",
        "When a scan finds a prepared latent of another size: make it anew, or move the image to its bucket.",
        resume="free",
        level="expert",
    )
    image_processing_batch_size: int = option(
        32,
        "Images that are decoded and cropped together while caches are filled.",
        resume="free",
        ge=1,
        level="expert",
    )
    read_batch_size: int = option(
        25, "Files read together while caches are filled.", resume="free", ge=1, level="expert"
    )
    write_batch_size: int = option(64, "Prepared entries written together.", resume="free", ge=1, level="expert")
    max_workers: int = option(32, "Threads that read and prepare files.", resume="free", ge=1, level="expert")
    enable_multiprocessing: bool = option(
        False,
        "Prepare files in several processes instead of threads.",
        resume="free",
        level="expert",
    )
    aws_max_pool_connections: int = option(
        128, "Connections kept open to an object store.", resume="free", ge=1, level="expert"
    )
    metadata_update_interval: int = option(
        3600,
        "Seconds between two saves of what a long scan has found.",
        resume="free",
        ge=1,
        level="expert",
    )
    dataloader_prefetch: bool | None = option(
        None,
        "Prepare the next batches while the present one trains; left out, unless encoders are needed for that.",
        resume="free",
        level="advanced",
    )
    dataloader_prefetch_qlen: int = option(
        10,
        "Batches that dataloader_prefetch holds ready per process.",
        resume="free",
        ge=1,
        level="advanced",
        when={"dataloader_prefetch": (None, True)},
    )
    conditioning_multidataset_sampling: Literal["combined", "random"] = option(
        "random",
        "With several conditioning datasets, give each sample one at random or all of them.",
        resume="warn",
        level="advanced",
    )
    framerate: float | None = option(
        None, "Frames per second of video training data.", off=True, resume="warn", gt=0, level="advanced"
    )
    print_filenames: bool = option(
        False,
        "Name each file as it is read, to find one that stops the run.",
        resume="free",
        level="expert",
    )
    print_sampler_statistics: bool = option(
        False, "Print what the sampler has drawn so far.", resume="free", level="expert"
    )
    debug_aspect_buckets: bool = option(False, "Print how each image finds its bucket.", resume="free", level="expert")
    debug_dataset_loader: bool = option(False, "Print what the data loader does.", resume="free", level="expert")
