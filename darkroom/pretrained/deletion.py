"""Delete a base model's downloaded weights once they are in memory. The user's own folders and files are left alone."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from darkroom.pretrained.repository import Repository

WEIGHTS = (".safetensors", ".bin", ".gguf", ".pth", ".ckpt")


def denoisers(base: Repository) -> list[tuple[str, str]]:
    """Where a run's denoisers come from: repository and folder of each."""
    return [base.denoiser_source(part) for part in base.trained]


def readers(base: Repository) -> list[tuple[str, str]]:
    """The same of what is needed until captions and pictures are cached.

    A full run hands over a pipeline, so it keeps them; validation decodes with the VAE.
    """
    o = base.options
    if o.model_type == "full" and not o.controlnet:
        return []
    sources = {part: getattr(o, option) for option, part in base.family.text_parts.items()}
    found = [(sources.get(part) or base.home(part), part) for part in base.kinds.encoders]
    if o.validation_disable and base.kinds.vae:
        found.append((o.pretrained_vae_model_name_or_path or base.base, "vae"))
    return found


def forget(places: Iterable[tuple[str, str]], revision: str | None) -> int:
    """Delete the weights in these folders of hub repositories from the hub's cache. Returns the bytes that were freed.

    What cannot be deleted stays: another process may have been quicker.
    """
    return sum(_deleted(path) for source, part in places for path in _downloaded(source, part, revision))


def _downloaded(source: str, part: str, revision: str | None) -> list[Path]:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(source).exists():
        return []
    with suppress(HFValidationError):
        config = try_to_load_from_cache(source, f"{part}/config.json", revision=revision)
        if isinstance(config, str):
            return [path for path in Path(config).parent.iterdir() if path.suffix in WEIGHTS]
    return []


def _deleted(path: Path) -> int:
    """A snapshot's file is a link to the blob that holds the bytes."""
    with suppress(OSError):
        blob = path.resolve()
        size = blob.stat().st_size
        path.unlink()
        if blob != path:
            blob.unlink(missing_ok=True)
        return size
    return 0
