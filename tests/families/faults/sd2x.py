from tests.families.faults.kit import Fault, predict

FAULTS = [
    Fault("sign of the answer", "sd2x", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("latent scale", "sd2x", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("time direction", "sd2x", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 999 - t, c))),
]
