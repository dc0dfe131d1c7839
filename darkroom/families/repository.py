"""Where a base model's files are and what they are, without loading any of them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from darkroom.core.errors import ModelError, missing_option
from darkroom.core.files import digest
from darkroom.families import tiny
from darkroom.families.base import EMBEDDED, TINY, Family
from darkroom.families.facts import Latents

ASSETS = Path(__file__).parent.parent / "assets"
WHOLE_FILE = 64 * 2**20
SINGLE_FILE = (".safetensors", ".gguf")
VAE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def cache_home() -> Path:
    """Where Darkroom keeps what it can make again: `$DARKROOM_HOME`, else the user's cache folder."""
    if home := os.environ.get("DARKROOM_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "darkroom"


def locate(repository: str, family: Family) -> str:
    """A repository as diffusers takes it: tiny and embedded models become local folders, the rest stays."""
    if repository.startswith(TINY):
        return str(tiny.folder(family, cache_home() / "tiny"))
    if repository.startswith(EMBEDDED):
        return str(ASSETS / repository.removeprefix(EMBEDDED))
    return str(Path(repository).expanduser()) if repository.startswith("~") else repository


class Repository:
    """A base model as files: a hub id, a diffusers folder or a single file, with separate parts where options say so.

    base          where the model is; default_base: where its flavour is published, for settings a single file lacks
    """

    def __init__(self, family: Family, options: Any, device: torch.device, dtype: torch.dtype):
        self.family, self.options, self.device, self.dtype = family, options, device, dtype
        try:
            self.flavour = family.flavour(options.model_flavour)
        except KeyError:
            names = ", ".join(family.flavour_names())
            raise missing_option(
                "model_flavour", f"{family.title} has no flavour '{options.model_flavour}'.", f"Choose one of: {names}."
            ) from None
        self.base = locate(options.pretrained_model_name_or_path or self.flavour.repository, family)
        self.default_base = locate(self.flavour.repository, family)

    @property
    def is_single_file(self) -> bool:
        """Is the base one checkpoint file rather than a folder or a hub id?"""
        return Path(self.base).suffix in SINGLE_FILE

    @property
    def latents(self) -> Latents:
        """The latent space of this flavour."""
        return self.flavour.latents or self.family.latents

    @property
    def hub(self) -> dict[str, Any]:
        """`revision`, if the base is on a hub and one is asked for."""
        wanted = self.options.revision
        return {"revision": wanted} if wanted and not Path(self.base).exists() else {}

    @property
    def denoiser_source(self) -> tuple[str, str]:
        """Where the denoiser is: a repository, folder or file, and the folder inside it."""
        o, part = self.options, self.family.denoiser_part
        separate, subfolder = {
            "transformer": (o.pretrained_transformer_model_name_or_path, o.pretrained_transformer_subfolder),
            "unet": (o.pretrained_unet_model_name_or_path, o.pretrained_unet_subfolder),
        }[part]
        return (str(Path(separate).expanduser()) if separate else self.base), subfolder or part

    @property
    def vae_dtype(self) -> torch.dtype:
        """float32 on a CPU, else bfloat16, unless `vae_dtype` says otherwise."""
        usual = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        return VAE_DTYPES.get(self.options.vae_dtype, usual)

    @property
    def text_dtype(self) -> torch.dtype:
        """float32 on a CPU, else the base's."""
        return torch.float32 if self.device.type == "cpu" else self.dtype

    # -- settings --------------------------------------------------------------------------------------------------

    @functools.cached_property
    def text_configs(self) -> Mapping[str, Mapping[str, Any]]:
        """The text encoders' config.json by component. Raises ModelError when they cannot be read."""
        return {name: self.config(name) for name in self.family.tiny.encoders}

    def config(self, part: str) -> dict[str, Any]:
        """One component's config.json, from a folder or the hub. Raises ModelError."""
        base = self.default_base if self.is_single_file else self.base
        path = Path(base) / part / "config.json"
        try:
            if not Path(base).exists():
                from huggingface_hub import hf_hub_download

                path = Path(hf_hub_download(base, f"{part}/config.json", **self.hub))
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as cause:
            raise ModelError(
                f"The settings of '{part}' could not be read from '{base}'.\n  {str(cause).splitlines()[0]}\n"
                "  Check pretrained_model_name_or_path, and for a hub id the network and HF_TOKEN."
            ) from cause

    def weight_bytes(self, part: str) -> int | None:
        """Bytes of a component's weight files on disk; None where they are not local."""
        folder = Path(self.base) / part
        if not folder.is_dir():
            return None
        return sum(path.stat().st_size for path in folder.glob("*.safetensors"))

    # -- identity --------------------------------------------------------------------------------------------------

    def text_identity(self) -> str:
        """What made a text embedding: weights, precision and the options that change it."""
        names = [*self.family.tiny.encoders, *self.family.tiny.tokenizers]
        weights = [self._identity(name, self.base) for name in names]
        if self.options.pretrained_t5_model_name_or_path:
            weights.append(self._identity("", self.options.pretrained_t5_model_name_or_path))
        return digest([self.family.name, weights, str(self.text_dtype), self.family.text_identity(self.options)])

    def vae_identity(self) -> str:
        """What made a latent: weights, precision, normalisation, tiling."""
        source = self.options.pretrained_vae_model_name_or_path
        weights = self._identity("" if source else "vae", source or self.base)
        return digest([weights, self.latents.normaliser, str(self.vae_dtype), self.options.vae_enable_tiling])

    def base_identity(self) -> dict[str, str]:
        """What the lock file says of the base weights."""
        source, subfolder = self.denoiser_source
        return {"source": source, "denoiser": self._identity(subfolder, source)}

    def _identity(self, subfolder: str, source: str) -> str:
        path = Path(source)
        if path.is_file():
            return fingerprint(path)
        if path.is_dir():
            folder = path / subfolder if (path / subfolder).is_dir() else path
            files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
            return digest([[p.name, fingerprint(p)] for p in files])
        return f"{source}@{self.options.revision or 'main'}/{subfolder}"


def fingerprint(path: Path) -> str:
    """A hash of a weights file: all of it up to 64 MiB, else its size and 64 samples of 64 KiB spread over it.

    Sampling keeps start-up quick on files of many GB; two different trainings differ in every sample.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= WHOLE_FILE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        parts = hashlib.sha256(str(size).encode())
        for i in range(64):
            file.seek(i * (size - 65536) // 63)
            parts.update(file.read(65536))
        return parts.hexdigest()
