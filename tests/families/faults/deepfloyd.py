from tests.families.faults.kit import Fault, entries, model_inputs, predict, text

NAME = "deepfloyd"

FAULTS = [
    Fault("sign of the answer", NAME, "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", NAME, "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 999 - t, c))),
    Fault("time scale", NAME, "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("dropped leading tokens", NAME, "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
    Fault("range of the small picture", NAME, "call parity", entries("small", lambda s: s / 2 + 0.5), "tiny-ii"),
    Fault("noise on the small picture", NAME, "call parity", model_inputs("seen", lambda s: s * 1.1), "tiny-ii"),
    Fault("level of that noise", NAME, "call parity", model_inputs("level", lambda n: n + 1), "tiny-ii"),
    Fault("range of the pixels", NAME, "latent parity", lambda cls: {"to_pipeline": lambda self, x: x / 2 + 0.5}),
]
