"""Experiment trackers through accelerate: tensorboard, wandb, comet_ml, or a tracker class of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from darkroom.core.errors import MissingPackage
from darkroom.core.events import Step, Validation

KNOWN = ("tensorboard", "wandb", "comet_ml")
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet_ml": "comet_ml"}


def names(report_to: str | None) -> list[str]:
    """`"tensorboard,wandb"`, `"all"` or `"none"` as a list."""
    if not report_to or report_to == "none":
        return []
    return list(KNOWN) if report_to == "all" else [name.strip() for name in report_to.split(",") if name.strip()]


class Trackers:
    """Sends step metrics and validation pictures to every tracker in `report_to`."""

    def __init__(self, options: Any, output: Path, settings: dict[str, Any]):
        import importlib.util

        self.output = output
        self.trackers = []
        for name in names(options.report_to):
            if importlib.util.find_spec(PACKAGES.get(name, name)) is None:
                raise MissingPackage(PACKAGES.get(name, name), "trackers", f"report_to = {name}")
            self.trackers.append(self._open(name, options, settings))

    def _open(self, name: str, options: Any, settings: dict[str, Any]) -> Any:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        project, run = options.tracker_project_name, options.tracker_run_name
        logs = Path(options.logging_dir)
        folder = logs if logs.is_absolute() else self.output / logs
        extra = {"tensorboard": {"logging_dir": folder}, "wandb": {"name": run}, "comet_ml": {}}.get(name, {})
        tracker = LOGGER_TYPE_TO_CLASS[name](run if name == "tensorboard" else project, **extra)
        if hasattr(tracker, "start"):
            tracker.start()
        plain = (bool, int, float, str)
        tracker.store_init_configuration({k: v if isinstance(v, plain) else str(v) for k, v in settings.items()})
        return tracker

    def on_step(self, event: Step) -> None:
        """Loss terms and metrics of one step."""
        values = {"train_loss": sum(event.terms.values()), "epoch": event.epoch}
        values |= {f"loss/{name}": value for name, value in event.terms.items()} | event.metrics
        for tracker in self.trackers:
            tracker.log(values, step=event.step)

    def on_validation(self, event: Validation) -> None:
        """Pictures, under `name - WxH`."""
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
