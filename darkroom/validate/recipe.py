"""Everything needed to make an image again, stored inside the image."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from darkroom.core.files import write_atomically
from darkroom.core.log import HIDDEN, redact_values

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

KEY = "darkroom"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one image was made. `call`: diffusers' pipeline's other arguments; `scheduler`: changes to the base's.

    told      what the pipeline is told otherwise than by its call
    pictures  paths of the images that it started from; mask: of what was drawn anew in the one image
    cache     how answers of the denoiser were guessed from earlier ones
    fps       frames per second of a clip, else 0
    """

    prompt: str
    negative: str
    width: int
    height: int
    steps: int
    seed: int
    seed_device: str
    call: dict[str, object]
    scheduler: dict[str, object]
    strength: float = 1.0
    step: int = 0
    weights: str = "adapter"
    pictures: tuple[str, ...] = ()
    fps: float = 0.0
    told: dict[str, object] = dataclasses.field(default_factory=dict)
    mask: str = ""
    cache: dict[str, object] = dataclasses.field(default_factory=dict)

    def save(self, image: PILImage, path: Path) -> None:
        """Write `image` as PNG with the recipe in its header. Raises DiskFullError."""
        from PIL.PngImagePlugin import PngInfo

        header = PngInfo()
        header.add_text(KEY, json.dumps(redact_values(dataclasses.asdict(self)), sort_keys=True))
        with write_atomically(path) as temporary:
            image.save(temporary, format="PNG", pnginfo=header)

    @property
    def redacted(self) -> Recipe:
        """The recipe as it is written, without secrets."""
        values = cast("dict[str, object]", redact_values(dataclasses.asdict(self)))
        return Recipe.from_values(values | {"pictures": self.pictures})

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> Recipe:
        """A recipe of its fields. Raises TypeError for a name that is none."""
        return cls(**values)  # type: ignore[arg-type] # each as it is declared

    @property
    def is_whole(self) -> bool:
        """Can the image be drawn again, as nothing in its recipe was hidden?"""
        return HIDDEN not in json.dumps([self.prompt, self.negative, self.call, self.told])

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """The recipe inside an image. Raises ValueError if it has none."""
        from PIL import Image

        with Image.open(path) as image:
            text = image.info.get(KEY)
        if text is None:
            raise ValueError(f"{path} holds no recipe; it was not made by a validation of Darkroom")
        values = json.loads(text)
        single = values.pop("picture", "")  # as earlier versions wrote it
        return cls(**{**values, "pictures": tuple(values.get("pictures") or filter(None, [single]))})
