from __future__ import annotations

from collections.abc import Callable
from typing import Any

from darkroom.families.base import Family
from darkroom.families.ltxvideo2 import LTX2Audio
from tests.families.faults.kit import Fault, latents, model_inputs, text
from tests.families.faults.ltxvideo import SCALE_ONLY


def predict_streams(change: Callable[..., Any]) -> Callable[[type[Family]], dict[str, Any]]:
    """`change(plain predict, family, model, x_t, t, cond)` in place of the audio's predict."""

    class Changed(LTX2Audio):
        def predict(self, *args: Any) -> Any:
            return change(super().predict, *args)

    return lambda cls: {"audio": Changed()}


def backwards(plain: Any, *args: Any) -> Any:
    answers = plain(*args)
    return {**answers, "sound": -answers["sound"]}


def bands_first(cls: type[Family]) -> dict[str, Any]:
    class BandsFirst(LTX2Audio):
        def normalize(self, vae, latents):
            return super().normalize(vae, latents.transpose(1, 3).reshape(latents.shape))

    return {"audio": BandsFirst()}


FAULTS = [
    Fault("sign of the sound", "ltxvideo2", "oracle", predict_streams(backwards)),
    Fault("time scale", "ltxvideo2", "call parity", predict_streams(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("time direction", "ltxvideo2", "call parity", predict_streams(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("channel statistics", "ltxvideo2", "latent parity", latents(normalizer=SCALE_ONLY)),
    Fault("order of the sound's channels and bands", "ltxvideo2", "latent parity", bands_first),
    Fault("frame rate", "ltxvideo2", "call parity", model_inputs("rate", lambda rate: rate - 1)),
    Fault("whose times the streams see", "ltxvideo2", "call parity", model_inputs("own_times", lambda own: not own)),
    Fault(
        "text of the sound",
        "ltxvideo2",
        "call parity",
        text(lambda found: {**found, "sound_text": found["text"]}),
    ),
    Fault(
        "time of the given frame",
        "ltxvideo2",
        "call parity",
        model_inputs("noisy", lambda shares: shares.flip(2)),
        started=True,
    ),
]
