from tests.families.faults.kit import Fault, latents, mask_of_ones, other_packing, predict, text

FAULTS = [
    Fault("sign of the answer", "chroma", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "chroma", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "chroma", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t * 1000, c))),
    Fault("packing order", "chroma", "call parity", other_packing),
    Fault("latent shift", "chroma", "latent parity", latents(normaliser="scale")),
    Fault("mask of the padding", "chroma", "call parity", text(mask_of_ones)),
    Fault("first token of the padding", "chroma", "call parity", text(lambda c: {**c, "mask": c["mask"].roll(-1, 1)})),
    Fault("dropped leading tokens", "chroma", "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
]
