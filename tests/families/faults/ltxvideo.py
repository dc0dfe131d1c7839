from darkroom.families.shared.latents import NORMALIZERS
from tests.families.faults.kit import Fault, latents, mask_of_ones, model_inputs, predict, softened_attention, text

SCALE_ONLY = "scale only"
NORMALIZERS[SCALE_ONLY] = NORMALIZERS["scale"]

FAULTS = [
    Fault("sign of the answer", "ltxvideo", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time scale", "ltxvideo", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("time direction", "ltxvideo", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("channel statistics", "ltxvideo", "latent parity", latents(normalizer=SCALE_ONLY)),
    Fault("frame rate", "ltxvideo", "call parity", model_inputs("rate", lambda rate: rate - 1)),
    Fault("mask of the padding", "ltxvideo", "call parity", text(mask_of_ones)),
    Fault("mask added as numbers", "ltxvideo", "padding", predict(softened_attention)),
    Fault(
        "time of the given frame",
        "ltxvideo",
        "call parity",
        model_inputs("noisy", lambda shares: shares.flip(2)),
        started=True,
    ),
]
