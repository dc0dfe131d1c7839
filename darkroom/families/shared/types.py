"""The types that families speak of: settings, arguments and conditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Settings = Mapping[str, Any]
"""A component's settings, as its `config.json` has them."""

Kwargs = dict[str, Any]
"""Arguments of a stock pipeline's call."""

Cond = dict[str, Any]
"""What a denoiser is given beside latents and time: batched tensors (B, ...) by name, or tuples of them."""
