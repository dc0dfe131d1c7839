from tests.families.faults.kit import Fault, latents, mask, predict, text

FAULTS = [
    Fault("sign of the answer", "hidream", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "hidream", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "hidream", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("latent shift", "hidream", "latent parity", latents(normalizer="scale")),
    Fault("mask of the padding", "hidream", "call parity", text(lambda c: {**c, "text": c["text"] * mask(c["text"])})),
    Fault("pooled vector", "hidream", "call parity", text(lambda c: {**c, "pooled": c["pooled"].flip(-1)})),
    Fault("order of the layers", "hidream", "call parity", text(lambda c: {**c, "llama": c["llama"].flip(1)})),
]
