"""How much each noise level counts. Every function takes SNR (B,) and returns a factor (B,).

min-SNR-gamma 2303.09556; the soft form follows Hourglass Diffusion Transformers 2401.11605.
"""

from __future__ import annotations

import torch
from torch import Tensor

_DIVISOR = {
    "epsilon": lambda snr: snr,
    "v_prediction": lambda snr: snr + 1,
    "sample": lambda snr: torch.ones_like(snr),
}


def min_snr(snr: Tensor, gamma: float, prediction: str) -> Tensor:
    """min(SNR, gamma) over SNR (epsilon), SNR + 1 (v) or 1 (sample). At SNR 0 the epsilon weight is its limit, 1."""
    weight = torch.minimum(snr, torch.full_like(snr, gamma)) / _DIVISOR[prediction](snr)
    return torch.where(snr == 0, torch.ones_like(snr), weight) if prediction == "epsilon" else weight


def soft_min_snr(snr: Tensor, gamma: float, prediction: str) -> Tensor:
    """As `min_snr` with the corner rounded: SNR gamma / (SNR + gamma) takes the place of the minimum."""
    if prediction == "epsilon":
        return gamma / (snr + gamma)
    return snr * gamma / (snr + gamma) / _DIVISOR[prediction](snr)
