"""Which prompts are rendered: the empty one, a built-in library, the user's library, the user's prompt."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from darkroom.core.errors import ConfigError
from darkroom.core.files import expand_home, is_file, safe_name
from darkroom.validate.sample_prompts import is_sample_file, read_sample_prompts

if TYPE_CHECKING:
    from darkroom.options.config import Config

LIBRARY = Path(__file__).parent / "library.json"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One image to make: a short name for files, the text, the adapter's strength for it, images to start from,
    a mask of what is drawn anew in the one image, and options that are otherwise for it."""

    name: str
    text: str
    strength: float = 1.0
    images: tuple[str, ...] = ()
    mask: str = ""
    settings: tuple[tuple[str, object], ...] = ()


def read_library(path: Path, option: str) -> list[Prompt]:
    """A JSON object of short name to text, or to `{"prompt": ..., "adapter_strength": ..., "image": ...}`.

    `caption` and `tags` are other names of `prompt`; blank names are skipped; an image may be a list of them, and its
    path relative to the library. One with a `mask` beside it is drawn anew where that is white. musubi-tuner's files of
    sample prompts are read too. Raises ConfigError naming the entry.
    """
    try:
        text = expand_home(str(path)).read_text(encoding="utf-8-sig")
        entries = read_sample_prompts(path, text, option) if is_sample_file(path, text) else json.loads(text)
    except OSError as cause:
        raise ConfigError(
            option, str(path), "", f"The file cannot be read: {cause.strerror}.", "Check the path."
        ) from cause
    except UnicodeDecodeError as cause:
        raise ConfigError(option, str(path), "", "The file is not UTF-8 text.", "Save it as UTF-8.") from cause
    except (ValueError, RecursionError) as cause:
        raise ConfigError(option, str(path), "", f"This is not JSON: {cause}.", "Correct the file.") from cause
    if not isinstance(entries, dict):
        raise ConfigError(option, str(path), "", "The file must hold one object.", 'Write {"name": "a prompt", ...}.')
    return _distinct(_prompt(name, value, option, path) for name, value in entries.items() if name.strip())


def _distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The prompts with a number behind names that became equal as file names, such as two in another script."""
    by_name: dict[str, Prompt] = {}
    for prompt in prompts:
        name, number = prompt.name, 1
        while name in by_name:
            number += 1
            name = f"{prompt.name}_{number}"
        by_name[name] = dataclasses.replace(prompt, name=name)
    return list(by_name.values())


def _prompt(name: str, value: object, option: str, path: Path) -> Prompt:
    if isinstance(value, str):
        return Prompt(safe_name(name), value)
    if isinstance(value, dict):
        text = value.get("prompt") or value.get("caption") or value.get("tags")
        strength = value.get("adapter_strength", 1.0)
        image = value.get("image") or []
        images = [image] if isinstance(image, str) else image
        mask = value.get("mask") or ""
        is_list = isinstance(images, list) and all(isinstance(item, str) for item in images)
        if isinstance(text, str) and isinstance(strength, (int, float)) and isinstance(mask, str) and is_list:
            paths = tuple(_locate_image(item, name, option, path) for item in images)
            place = _locate_image(mask, name, option, path) if mask else ""
            settings = tuple((value.get("settings") or {}).items())
            return Prompt(safe_name(name), text, float(strength), paths, place, settings)
    raise ConfigError(
        option,
        str(path),
        "",
        f"The entry '{name}' is neither a text nor an object with a 'prompt'.",
        'Write "name": "a prompt" or "name": {"prompt": "...", "adapter_strength": 0.8, "image": "start.png"}.',
    )


def _locate_image(image: str, name: str, option: str, library: Path) -> str:
    """The path of an entry's image, seen from its library."""
    path = (expand_home(str(library)).parent / expand_home(image)).absolute()
    if is_file(path):
        return str(path)
    problem = f"The image of the entry '{name}' is not there: {path}."
    raise ConfigError(option, str(library), "", problem, "Correct its path; it may be relative to the library.")


def collect(options: Config) -> list[Prompt]:
    """Every prompt of a validation, in order; later ones of the same name win."""
    prompts: list[Prompt] = []
    if not options.validation_disable_unconditional:
        prompts.append(Prompt("unconditional", ""))
    if options.validation_prompt_library:
        prompts += read_library(LIBRARY, "validation_prompt_library")
    if options.user_prompt_library:
        prompts += read_library(Path(options.user_prompt_library), "user_prompt_library")
    if options.validation_prompt:
        prompts.append(Prompt("validation", options.validation_prompt))
    return list({prompt.name: prompt for prompt in prompts}.values())
