from tests.families.faults.kit import Fault, entries, mask_of_ones, model_inputs, predict, softened_attention, text

NAME = "hunyuanvideo"

FAULTS = [
    Fault("sign of the answer", NAME, "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", NAME, "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", NAME, "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("latent scale", NAME, "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("mask of the padding", NAME, "call parity", text(mask_of_ones)),
    Fault("mask added as numbers", NAME, "padding", predict(softened_attention)),
    Fault("template tokens", NAME, "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
    Fault("which frame is given", NAME, "call parity", model_inputs("given", lambda g: g.flip(2)), "tiny-i2v"),
    Fault("order of the channels", NAME, "call parity", model_inputs("given", lambda g: g.roll(1, 1)), "tiny-i2v"),
    Fault("the picture's latent", NAME, "call parity", entries("start", lambda z: z * 1.1), "tiny-i2v"),
    Fault("picture's features", NAME, "call parity", entries("image", lambda e: e[:, 1:]), "tiny-i2v"),
]
