from tests.families.faults.kit import MEANS_ONLY, Fault, latents, model_input, predict, text

FAULTS = [
    Fault("sign of the answer", "cosmos2image", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "cosmos2image", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "cosmos2image", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t * 1000, c))),
    Fault("sigma in place of its share", "cosmos2image", "call parity", lambda cls: {"sigma_is_ratio": False}),
    Fault("channel statistics", "cosmos2image", "latent parity", latents(normalizer=MEANS_ONLY)),
    Fault("mask of the padding", "cosmos2image", "call parity", model_input(padding_mask=lambda mask: mask + 1)),
    Fault("text padding", "cosmos2image", "call parity", text(lambda c: {"text": c["text"] + (c["text"] == 0)})),
]
