"""Delete a base model's downloaded weights once they are in memory. The user's own folders and files are left alone."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from darkroom.pretrained.repository import Repository

WEIGHTS = (".safetensors", ".bin", ".gguf", ".pth", ".ckpt")


def find_denoiser_sources(base: Repository) -> list[tuple[str, str]]:
    """Sources of a run's denoisers: repository and subfolder of each."""
    return [base.denoiser_source(component) for component in base.trainable_components]


def find_encoder_sources(base: Repository) -> list[tuple[str, str]]:
    """Sources of the text encoders and VAE, which are needed only until captions and images are cached.

    Empty for a full run: its result is a whole pipeline. The VAE is kept if validation decodes with it.
    """
    o = base.options
    if o.model_type == "full" and not o.controlnet:
        return []
    options = {component: getattr(o, option) for option, component in base.family.text_components.items()}
    encoders = [
        (options.get(component) or base.config_source(component), component) for component in base.specs.encoders
    ]
    if o.validation_disable and base.specs.vae:
        encoders.append((o.pretrained_vae_model_name_or_path or base.base, "vae"))
    return encoders


def delete_weights(sources: Iterable[tuple[str, str]], revision: str | None) -> int:
    """Delete the weights of these subfolders of hub repositories from the hub's cache. Returns the bytes freed.

    Files that cannot be deleted are skipped: another process may have deleted them already.
    """
    return sum(_delete(path) for source, component in sources for path in _find_downloads(source, component, revision))


def _find_downloads(source: str, component: str, revision: str | None) -> list[Path]:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(source).exists():
        return []
    with suppress(HFValidationError):
        config = try_to_load_from_cache(source, f"{component}/config.json", revision=revision)
        if isinstance(config, str):
            return [path for path in Path(config).parent.iterdir() if path.suffix in WEIGHTS]
    return []


def _delete(path: Path) -> int:
    """Delete a file of a snapshot and the blob that it links to. Returns the bytes freed."""
    with suppress(OSError):
        blob = path.resolve()
        size = blob.stat().st_size
        path.unlink()
        if blob != path:
            blob.unlink(missing_ok=True)
        return size
    return 0
