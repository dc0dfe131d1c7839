from tests.families.faults.kit import Fault, latents, mask, predict, text

FAULTS = [
    Fault("sign of the answer", "sd3", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time scale", "sd3", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("latent shift", "sd3", "latent parity", latents(normalizer="scale")),
    Fault("mask of the padding", "sd3", "call parity", text(lambda c: {**c, "text": c["text"] * mask(c["text"])})),
    Fault("pooled vector", "sd3", "call parity", text(lambda c: {**c, "pooled": c["pooled"].flip(-1)})),
]
