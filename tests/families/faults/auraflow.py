from tests.families.faults.kit import Fault, predict, text

FAULTS = [
    Fault("sign of the answer", "auraflow", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "auraflow", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "auraflow", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t * 1000, c))),
    Fault("latent scale", "auraflow", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("text padding", "auraflow", "call parity", text(lambda c: {**c, "text": c["text"] + (c["text"] == 0)})),
    Fault("dropped leading tokens", "auraflow", "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
]
