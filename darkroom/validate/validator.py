"""When to render, what beside what, and where the files go.

validation_images/step_N_<name>_<index>_<WxH>.png   what people look at: (input |) base | current (| EMA), prompt below
validation_images/originals/...                     each image alone, with its recipe inside
validation_images/previews/...                      images on their way, with `validation_preview`
benchmarks/base_model/...                           the base model's images, made once

A clip is an MP4 beside its original and beside the base model's; the images show its frames. Layers lie in a folder
there that is called as the original is, as layer_0.png, layer_1.png...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from darkroom.core.events import Bus, Preview, Progress, Step, Validation
from darkroom.core.files import write_atomically
from darkroom.core.log import redact
from darkroom.validate.prompts import Prompt
from darkroom.validate.recipe import Recipe
from darkroom.validate.render import RenderedImage, Renderer
from darkroom.validate.sheet import stitch

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage
    from torch.nn import Module

    from darkroom.train.step import Stepper
    from darkroom.validate.clip import Rendered


class Validator:
    """Renders on schedule. `base` comes before anything is attached, `watch` when training is set up."""

    def __init__(self, renderer: Renderer, prompts: list[Prompt], output: Path, bus: Bus):
        self.renderer, self.prompts, self.output, self.bus = renderer, prompts, Path(output), bus
        self.options = renderer.options
        self.last = -1
        renderer.validate_prompts(prompts)
        if self.options.validation_preview:
            renderer.on_preview = self._preview
        # says whether somebody waits for the end of the run, so that images that are left are not drawn
        self.stopped: Callable[[], bool] = lambda: False

    def watch(self, model: Module, stepper: Stepper) -> None:
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
        """Where the base model's images are."""
        return self.output / "benchmarks" / "base_model"

    def base(self, model: Module) -> None:
        """Make the base model's images from untouched weights, unless they are there for these very recipes."""
        with self.renderer.components.vae_in_use():
            self.renderer.measure(model, self.prompts)
            recipes = {self._base_name(p, i, r): (p, r) for p, i, r in self.renderer.recipes(self.prompts, 0, "base")}
            stale = [name for name, (_, recipe) in recipes.items() if not self._is_current(name, recipe)]
            prompts = list(dict.fromkeys(recipes[name][0] for name in stale))
            for image in self._render_images(model, prompts, 0, "base") if prompts else ():
                self._keep(image, self._base_path(image))

    def _is_current(self, name: str, recipe: Recipe) -> bool:
        try:
            return Recipe.read(self.base_folder / name) == recipe.redacted
        except (OSError, ValueError, TypeError):
            return False

    def run(self, step: int) -> None:
        """Render every prompt with the present weights (and the averaged ones), save, and tell the bus."""
        mode = self.options.ema_validation if self.stepper.ema else "none"
        runs: dict[str, list[RenderedImage]] = {}
        with self.renderer.components.vae_in_use(), self.stepper.use_inference_weights():
            self.renderer.measure(self.model, self.prompts)
            if mode != "ema_only":
                runs["checkpoint"] = list(self._render_images(self.model, self.prompts, step, "adapter"))
            if mode != "none" and self.stepper.ema:
                with self.stepper.ema.use_average():
                    runs["EMA"] = list(self._render_images(self.model, self.prompts, step, "ema"))
        complete = zip(*runs.values(), strict=not self.stopped())
        rows = [self._save(step, dict(zip(runs, images, strict=True))) for images in complete]
        self.last = self.last if self.stopped() else step
        self.bus.emit(Validation(step=step, pictures=rows))

    def dry_run(self) -> None:
        """Draw the largest image in few steps, and keep nothing of it."""
        with self.renderer.components.vae_in_use():
            self.renderer.render_shortest(self.model, self.prompts)

    def _render_images(self, model: Module, prompts: list[Prompt], step: int, weights: str) -> Iterable[RenderedImage]:
        total = sum(1 for _ in self.renderer.recipes(prompts, step, weights))
        for count, image in enumerate(self.renderer.render(model, prompts, step, weights), 1):
            self.bus.emit(Progress(step=step, phase="validation", done=count, total=total, unit="pictures"))
            yield image
            if self.stopped():
                return

    # -- files -----------------------------------------------------------------------------------------------------

    def _save(self, step: int, versions: dict[str, RenderedImage]) -> dict[str, str]:
        first = next(iter(versions.values()))
        name = f"step_{step}_{first.prompt.name}_{first.index}_{first.size}"
        folder = self.output / "validation_images"
        panels: list[tuple[str, PILImage]] = (
            [("base model", Image.open(path))] if (path := self._base_path(first)).exists() else []
        )
        inputs_opened = [Image.open(path).convert("RGB") for path in first.recipe.pictures]
        for label, image in versions.items():
            suffix = "" if label == "checkpoint" else f"__{label.lower()}"
            self._keep(image, folder / "originals" / f"{name}{suffix}.png")
            panels.append((label, image.output.image))
        inputs = [("input", image) for image in inputs_opened]
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
        return {**row, "clip": f"validation_images/originals/{name}.mp4"} if first.output.is_clip else row

    def _preview(self, prompt: Prompt, index: int, recipe: Recipe, steps_taken: int, rendered: Rendered) -> None:
        """One file for an image on its way, over which each later look is written."""
        name = f"previews/{prompt.name}_{index}_{recipe.width}x{recipe.height}.png"
        path = self.output / "validation_images" / name
        with write_atomically(path) as temporary:
            rendered.image.save(temporary, format="PNG")
        self.bus.emit(
            Preview(step=recipe.step, prompt=recipe.prompt, path=f"validation_images/{name}", done=steps_taken,
                    total=recipe.steps)
        )  # fmt: skip

    @staticmethod
    def _keep(image: RenderedImage, path: Path) -> None:
        """The image, or a clip and its frames, or layers, with the recipe."""
        image.recipe.save(image.output.image, path)
        image.output.write_extra_files(path, image.recipe.fps)

    @staticmethod
    def _base_name(prompt: Prompt, index: int, recipe: Recipe) -> str:
        return f"{prompt.name}_{index}_{recipe.width}x{recipe.height}.png"

    def _base_path(self, image: RenderedImage) -> Path:
        return self.base_folder / self._base_name(image.prompt, image.index, image.recipe)
