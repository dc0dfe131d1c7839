from tests.families.faults.kit import MEANS_ONLY, Fault, latents, mask_of_ones, predict, text

FAULTS = [
    Fault("sign of the answer", "mochi", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "mochi", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "mochi", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("channel statistics", "mochi", "latent parity", latents(normalizer=MEANS_ONLY)),
    Fault("mask of the padding", "mochi", "call parity", text(mask_of_ones)),
    Fault("dropped leading tokens", "mochi", "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
]
