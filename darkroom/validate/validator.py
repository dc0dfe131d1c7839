"""When to render, what beside what, and where the files go.

validation_images/step_N_<name>_<index>_<WxH>.png   what people look at: (input |) base | current (| EMA), prompt below
validation_images/originals/...                     each picture alone, with its recipe inside
validation_images/previews/...                      pictures on their way, with `validation_preview`
benchmarks/base_model/...                           the base model's pictures, made once

A clip is an MP4 beside its original and beside the base model's; the pictures show its frames. Layers lie in a folder
there that is called as the original is, as layer_0.png, layer_1.png...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from darkroom.core.events import Bus, Preview, Progress, Step, Validation
from darkroom.core.files import write_atomically
from darkroom.core.log import redact
from darkroom.validate.prompts import Prompt
from darkroom.validate.recipe import Recipe
from darkroom.validate.render import Picture, Renderer
from darkroom.validate.sheet import stitch

if TYPE_CHECKING:
    from darkroom.train.step import Stepper


class Validator:
    """Renders on schedule. `base` comes before anything is attached, `watch` when training is set up."""

    def __init__(self, renderer: Renderer, prompts: list[Prompt], output: Path, bus: Bus):
        self.renderer, self.prompts, self.output, self.bus = renderer, prompts, Path(output), bus
        self.options = renderer.options
        self.last = -1
        renderer.check(prompts)
        if self.options.validation_preview:
            renderer.on_preview = self._preview
        # says whether somebody waits for the end of the run, so that images that are left are not drawn
        self.stopped: Callable[[], bool] = lambda: False

    def watch(self, model: Any, stepper: Stepper) -> None:
        """Render these weights from now on."""
        self.model, self.stepper = model, stepper

    # -- when ------------------------------------------------------------------------------------------------------

    def on_step(self, event: Step) -> None:
        """Render if the step or the epoch it ended is due."""
        o = self.options
        by_step = o.validation_step_interval and event.step % o.validation_step_interval == 0
        by_epoch = o.validation_epoch_interval and event.epoch_ended and event.epoch % o.validation_epoch_interval == 0
        if by_step or by_epoch:
            self.run(event.step)

    def final(self, step: int) -> None:
        """Render the result, unless that just happened."""
        if self.last != step:
            self.run(step)

    # -- what ------------------------------------------------------------------------------------------------------

    @property
    def base_folder(self) -> Path:
        """Where the base model's pictures are."""
        return self.output / "benchmarks" / "base_model"

    def base(self, model: Any) -> None:
        """Make the base model's pictures from untouched weights, unless they are there for these very recipes."""
        with self.renderer.components.vae_in_use():
            self.renderer.measure(model, self.prompts)
            wanted = {self._base_name(p, i, r): (p, r) for p, i, r in self.renderer.recipes(self.prompts, 0, "base")}
            stale = [name for name, (_, recipe) in wanted.items() if not self._is_current(name, recipe)]
            prompts = list(dict.fromkeys(wanted[name][0] for name in stale))
            for picture in self._pictures(model, prompts, 0, "base") if prompts else ():
                self._keep(picture, self._base_path(picture))

    def _is_current(self, name: str, recipe: Recipe) -> bool:
        try:
            return Recipe.read(self.base_folder / name) == recipe.shown
        except (OSError, ValueError, TypeError):
            return False

    def run(self, step: int) -> None:
        """Render every prompt with the present weights (and the averaged ones), save, and tell the bus."""
        mode = self.options.ema_validation if self.stepper.ema else "none"
        runs: dict[str, list[Picture]] = {}
        with self.renderer.components.vae_in_use(), self.stepper.use_inference_weights():
            self.renderer.measure(self.model, self.prompts)
            if mode != "ema_only":
                runs["checkpoint"] = list(self._pictures(self.model, self.prompts, step, "adapter"))
            if mode != "none" and self.stepper.ema:
                with self.stepper.ema.use_average():
                    runs["EMA"] = list(self._pictures(self.model, self.prompts, step, "ema"))
        complete = zip(*runs.values(), strict=not self.stopped())
        rows = [self._save(step, dict(zip(runs, pictures, strict=True))) for pictures in complete]
        self.last = self.last if self.stopped() else step
        self.bus.emit(Validation(step=step, pictures=rows))

    def rehearse(self) -> None:
        """Draw the largest picture in few steps, and keep nothing of it."""
        with self.renderer.components.vae_in_use():
            self.renderer.shortest(self.model, self.prompts)

    def _pictures(self, model: Any, prompts: list[Prompt], step: int, weights: str) -> Iterable[Picture]:
        total = sum(1 for _ in self.renderer.recipes(prompts, step, weights))
        for done, picture in enumerate(self.renderer.render(model, prompts, step, weights), 1):
            self.bus.emit(Progress(step=step, phase="validation", done=done, total=total, unit="pictures"))
            yield picture
            if self.stopped():
                return

    # -- files -----------------------------------------------------------------------------------------------------

    def _save(self, step: int, versions: dict[str, Picture]) -> dict[str, Any]:
        first = next(iter(versions.values()))
        name = f"step_{step}_{first.prompt.name}_{first.index}_{first.size}"
        folder = self.output / "validation_images"
        panels: list[tuple[str, Any]] = (
            [("base model", Image.open(path))] if (path := self._base_path(first)).exists() else []
        )
        given = [Image.open(path).convert("RGB") for path in first.recipe.pictures]
        for label, picture in versions.items():
            suffix = "" if label == "checkpoint" else f"__{label.lower()}"
            self._keep(picture, folder / "originals" / f"{name}{suffix}.png")
            panels.append((label, picture.made.image))
        inputs = [("input", picture) for picture in given]
        panels = panels + inputs if self.options.validation_stitch_input_location == "right" else inputs + panels
        with write_atomically(folder / f"{name}.png") as temporary:
            stitch(panels, redact(first.prompt.text)).save(temporary, format="PNG")
        row = {
            "name": first.prompt.name,
            "prompt": first.prompt.text,
            "resolution": first.size,
            "path": f"validation_images/{name}.png",
            "original": f"validation_images/originals/{name}.png",
        }
        return {**row, "clip": f"validation_images/originals/{name}.mp4"} if first.made.is_clip else row

    def _preview(self, prompt: Prompt, index: int, recipe: Recipe, done: int, made: Any) -> None:
        """One file for a picture on its way, over which each later look is written."""
        name = f"previews/{prompt.name}_{index}_{recipe.width}x{recipe.height}.png"
        path = self.output / "validation_images" / name
        with write_atomically(path) as temporary:
            made.image.save(temporary, format="PNG")
        self.bus.emit(
            Preview(step=recipe.step, prompt=recipe.prompt, path=f"validation_images/{name}", done=done,
                    total=recipe.steps)
        )  # fmt: skip

    @staticmethod
    def _keep(picture: Picture, path: Path) -> None:
        """The picture, or a clip and its frames, or layers, with the recipe."""
        picture.recipe.save(picture.made.image, path)
        picture.made.write_beside(path, picture.recipe.fps)

    @staticmethod
    def _base_name(prompt: Prompt, index: int, recipe: Recipe) -> str:
        return f"{prompt.name}_{index}_{recipe.width}x{recipe.height}.png"

    def _base_path(self, picture: Picture) -> Path:
        return self.base_folder / self._base_name(picture.prompt, picture.index, picture.recipe)
