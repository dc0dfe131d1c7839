"""The dataset file and what its entries hold."""

from darkroom.options.datasets.entries import (
    CaptionShuffle,
    DatasetFile,
    Entry,
    ImageEmbeds,
    KohyaBuckets,
    MetadataTable,
    SampleDataset,
    TextEmbeds,
    VideoBlock,
)
from darkroom.options.datasets.reader import read_datasets

__all__ = [
    "CaptionShuffle",
    "DatasetFile",
    "Entry",
    "ImageEmbeds",
    "KohyaBuckets",
    "MetadataTable",
    "SampleDataset",
    "TextEmbeds",
    "VideoBlock",
    "read_datasets",
]
