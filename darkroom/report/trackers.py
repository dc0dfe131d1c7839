"""Experiment trackers through accelerate: tensorboard, wandb, comet_ml, or a tracker class of the user's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, cast

from darkroom.core.errors import ConfigError, MissingPackage
from darkroom.core.events import Step, Validation
from darkroom.core.registry import import_path

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

    from darkroom.options.config import Config

TRACKERS_BY_NAME = ("tensorboard", "wandb", "comet_ml")


def names(report_to: str | None) -> list[str]:
    """`"tensorboard,wandb"`, `"all"` (those that are installed) or `"none"` as a list."""
    if not report_to or report_to == "none":
        return []
    if report_to == "all":
        return [name for name in TRACKERS_BY_NAME if importlib.util.find_spec(name)]
    return [name.strip() for name in report_to.split(",") if name.strip()]


def validate_trackers(report_to: str | None) -> None:
    """Raise MissingPackage for a tracker that is not installed, ConfigError for a class that cannot be imported."""
    for name in names(report_to):
        if name in TRACKERS_BY_NAME and importlib.util.find_spec(name) is None:
            raise MissingPackage(name, "trackers", f"report_to = {name}")
        if name not in TRACKERS_BY_NAME:
            _import_class(name)


def _import_class(path: str) -> type[GeneralTracker]:
    try:
        return cast("type[GeneralTracker]", import_path(path))
    except ImportError as cause:
        raise ConfigError(
            "report_to",
            path,
            "",
            str(cause),
            f"Choose one of {', '.join(TRACKERS_BY_NAME)}, or give the path of a tracker class.",
        ) from cause


class Trackers:
    """Sends step metrics and validation images to every tracker in `report_to`."""

    def __init__(self, options: Config, output: Path, settings: dict[str, object]):
        validate_trackers(options.report_to)
        self.output = output
        self.trackers = [self._open(name, options, settings) for name in names(options.report_to)]

    def _open(self, name: str, options: Config, settings: dict[str, object]) -> GeneralTracker:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        project, run = options.tracker_project_name, options.tracker_run_name
        logs = Path(options.logging_dir)
        folder = logs if logs.is_absolute() else self.output / logs
        extras: dict[str, dict[str, object]] = {"tensorboard": {"logging_dir": folder}, "wandb": {"name": run}}
        cls: type[GeneralTracker] = LOGGER_TYPE_TO_CLASS[name] if name in TRACKERS_BY_NAME else _import_class(name)
        tracker = cls(run if name == "tensorboard" else project, **extras.get(name, {}))
        if hasattr(tracker, "start"):
            tracker.start()
        plain = (bool, int, float, str)
        tracker.store_init_configuration({k: v if isinstance(v, plain) else str(v) for k, v in settings.items()})
        return tracker

    def on_step(self, event: Step) -> None:
        """Loss terms and metrics of one step."""
        if not self.trackers:
            return
        values = {"train_loss": sum(event.terms.values()), "epoch": event.epoch}
        values |= {f"loss/{name}": value for name, value in event.terms.items()} | event.metrics
        for tracker in self.trackers:
            tracker.log(values, step=event.step)

    def on_validation(self, event: Validation) -> None:
        """Images, under `name - WxH`."""
        if not self.trackers:
            return
        import numpy as np
        from PIL import Image

        for row in event.pictures:
            image = np.asarray(Image.open(self.output / row["original"]))[None]
            for tracker in self.trackers:
                if hasattr(tracker, "log_images"):
                    tracker.log_images({f"{row['name']} - {row['resolution']}": image}, step=event.step)

    def close(self) -> None:
        """Flush and end every tracker."""
        for tracker in self.trackers:
            tracker.finish()
