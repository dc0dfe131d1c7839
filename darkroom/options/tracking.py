"""Where figures and images of a run are shown, and who is told."""

from __future__ import annotations

from typing import ClassVar, Literal

from darkroom.options import later
from darkroom.options.field import IMPORT_PATH, SET, Section, option


class TrackingOptions(Section):
    """Trackers and webhooks. The event log and report.html in output_dir are always written."""

    page: ClassVar[str] = "tracking"
    title: ClassVar[str] = "Tracking"

    report_to: str = option(
        "none",
        "Trackers that receive figures and images; all means every one that is installed.",
        resume="free",
        choices=("tensorboard", "wandb", "comet_ml", "all", "none"),
        also=IMPORT_PATH,
        also_words="package.module.Class of a tracker of your own",
        many=True,
    )
    logging_dir: str = option(
        "logs", "Folder for TensorBoard, inside output_dir unless it is an absolute path.", resume="free"
    )
    tracker_project_name: str = option("darkroom", "Name of the project in the trackers.", resume="free")
    tracker_run_name: str = option("darkroom-run", "Name of this run in the trackers.", resume="free")
    tracker_image_layout: Literal["gallery", "table"] = option(
        "gallery",
        "Show validation images as a gallery, or as a table of prompts and sizes.",
        resume="free",
        level="advanced",
        when={"report_to": SET},
        pending=later.VALIDATION,
    )
    webhook_config: list[dict[str, object]] | None = option(
        None,
        "Webhook addresses that are told what happens in the run.",
        resume="free",
        json=True,
        secret=True,
        level="advanced",
        pending=later.PUBLISHING,
    )
    webhook_reporting_interval: int | None = option(
        None,
        "Updates between two reports to a webhook.",
        off=True,
        resume="free",
        ge=1,
        level="expert",
        when={"webhook_config": SET},
        pending=later.PUBLISHING,
    )
