from tests.families.faults.kit import Fault, mask, predict, skipping_a_layer, text

FAULTS = [
    Fault("sign of the answer", "sd1x", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "sd1x", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 999 - t, c))),
    Fault("time scale", "sd1x", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("latent scale", "sd1x", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("dropped leading tokens", "sd1x", "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
    Fault("mask of the padding", "sd1x", "call parity", text(lambda c: {**c, "text": c["text"] * mask(c["text"])})),
    Fault("layer of the text encoder", "sd1x", "call parity", skipping_a_layer),
]
