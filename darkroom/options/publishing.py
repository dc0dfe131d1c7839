"""Giving the result away, and programs that run beside it."""

from __future__ import annotations

from typing import ClassVar

from darkroom.options import later
from darkroom.options.field import Section, option

_HUB = {"push_to_hub": True}


class PublishingOptions(Section):
    """Uploads, model card, metadata, and programs to run after a save or an upload."""

    page: ClassVar[str] = "publishing"
    title: ClassVar[str] = "Publishing"

    push_to_hub: bool = option(
        False, "Upload the result to the Hugging Face Hub.", resume="free", pending=later.PUBLISHING
    )
    push_checkpoints_to_hub: bool = option(
        False,
        "Upload every checkpoint to the Hub too.",
        resume="free",
        level="advanced",
        when=_HUB,
        pending=later.PUBLISHING,
    )
    push_to_hub_background: bool = option(
        False,
        "Upload to the Hub while training goes on.",
        resume="free",
        level="advanced",
        when=_HUB,
        pending=later.PUBLISHING,
    )
    hub_model_id: str | None = option(
        None,
        "Name of the repository on the Hub; left out, the tracker's project name.",
        resume="free",
        when=_HUB,
        pending=later.PUBLISHING,
    )
    publishing_config: list[dict[str, object]] | None = option(
        None,
        "Further places to upload to: S3-compatible stores, Azure Blob, Dropbox.",
        resume="free",
        json=True,
        secret=True,
        level="advanced",
        pending=later.PUBLISHING,
    )
    model_card_private: bool = option(
        True, "Make the repository on the Hub private.", resume="free", when=_HUB, pending=later.PUBLISHING
    )
    model_card_safe_for_work: bool = option(
        False,
        "Leave the warning about adult content out of the model card.",
        resume="free",
        when=_HUB,
        pending=later.PUBLISHING,
    )
    model_card_note: str | None = option(
        None, "Words at the top of the model card.", resume="free", when=_HUB, pending=later.PUBLISHING
    )
    modelspec_comment: str | list[str] | None = option(
        None,
        "Comment in the metadata of saved files: a text, or a list of lines.",
        resume="free",
        json=True,
        text=True,
        level="advanced",
    )
    post_checkpoint_script: str | None = option(
        None,
        "Program to run after each checkpoint, with placeholders such as {local_checkpoint_path}.",
        resume="free",
        level="expert",
        pending=later.PUBLISHING,
    )
    post_upload_script: str | None = option(
        None,
        "Program to run after each upload, with placeholders such as {remote_checkpoint_path}.",
        resume="free",
        level="expert",
        pending=later.PUBLISHING,
    )
