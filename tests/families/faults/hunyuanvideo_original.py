from tests.families.faults.kit import Fault, conditions, mask_of_ones, predict, text

NAME = "hunyuanvideo_original"

FAULTS = [
    Fault("sign of the answer", NAME, "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", NAME, "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", NAME, "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("latent scale", NAME, "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("guidance", NAME, "call parity", conditions("guidance", lambda g: g / 1000)),
    Fault("mask of the padding", NAME, "call parity", text(mask_of_ones)),
    Fault("dropped leading tokens", NAME, "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
    Fault("pooled text", NAME, "call parity", text(lambda c: {**c, "pooled": c["text"][:, 0]})),
]
