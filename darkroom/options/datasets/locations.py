"""Where the samples of a dataset live: one model per kind of storage, the keys as SimpleTuner names them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

Value = TypeVar("Value")


def lower(value: Value) -> Value:
    """A text in lower case; anything else as it is."""
    return cast(Value, value.strip().lower()) if isinstance(value, str) else value


def as_tuple(value: object) -> object:
    """One text as a tuple of one."""
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
Count = Annotated[int, Field(ge=1)]


class EntryModel(BaseModel):
    """A frozen block that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LocalFiles(EntryModel):
    """A folder of this machine, searched with everything below it, or only itself."""

    type: Literal["local"] = "local"
    root: Path
    recursive: bool = True


class UrlFiles(EntryModel):
    """A folder behind any URL that fsspec knows, such as `memory://`, `hf://` or `gs://`."""

    type: Literal["url"] = "url"
    url: str
    options: dict[str, object] = {}


class S3Files(EntryModel):
    """A prefix of a bucket in S3 or a store that speaks its protocol."""

    type: Literal["aws"] = "aws"
    aws_bucket_name: Annotated[str, Field(min_length=1)]
    aws_endpoint_url: Annotated[str, Field(min_length=1)]
    aws_access_key_id: SecretStr
    aws_secret_access_key: SecretStr
    aws_session_token: SecretStr | None = None
    aws_region_name: str | None = None
    aws_data_prefix: str = ""
    aws_max_pool_connections: Count = 128


class LinkList(EntryModel):
    """A CSV table of URLs or local paths; what is downloaded stays in `csv_cache_dir`."""

    type: Literal["csv"] = "csv"
    csv_file: Path
    csv_cache_dir: Path
    csv_caption_column: str
    csv_url_column: str = "url"
    connections: Count = 32


class JsonLines(EntryModel):
    """A JSON-lines file of musubi-tuner: a path and a caption per line; `key` names the path that is read here.

    Samples are known by the path under `name_key`, so that controls carry the names of what they belong to. Paths under
    `layer_keys` are the layers of a sample, and named after it.
    """

    type: Literal["jsonl"] = "jsonl"
    file: Path
    key: str = "image_path"
    name_key: str = "image_path"
    caption_key: str = "caption"
    layer_keys: tuple[str, ...] = ()


class Panels(EntryModel):
    """Images that are horizontal strips of equal panels, of which one is cut out."""

    enabled: bool = True
    image_count: Count = 1
    select_index: Annotated[int, Field(ge=0)] = 0


class RowFilter(EntryModel):
    """Conditions that a row must all meet."""

    collection: Names = ()
    quality_thresholds: dict[str, float] = {}
    quality_column: str = "quality_assessment"
    min_width: int | None = None
    min_height: int | None = None


class HubRows(EntryModel):
    """A dataset of the Hugging Face hub, or a local folder laid out like one; samples are its rows."""

    type: Literal["huggingface"] = "huggingface"
    dataset_name: Annotated[str, Field(min_length=1)]
    split: str = "train"
    revision: str | None = None
    media_column: str = "image"
    file_extension: str = "jpg"
    cache_dir: Path | None = None
    streaming: bool = False
    caption_column: Names = ("caption",)
    fallback_caption_column: str | None = None
    description_column: str | None = None
    width_column: str | None = None
    height_column: str | None = None
    num_frames_column: str | None = None
    fps_column: str | None = None
    lyrics_column: str | None = None
    audio_caption_fields: Names = ()
    panels: Panels | None = None
    filter_func: RowFilter | None = None


Location = Annotated[LocalFiles | UrlFiles | S3Files | LinkList | HubRows | JsonLines, Field(discriminator="type")]
