from tests.families.faults.kit import Fault, predict

FAULTS = [
    Fault("time direction", "sd2x", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 999 - t, c))),
]
