from tests.families.faults.kit import Fault, conditions, predict, text

FAULTS = [
    Fault("time direction", "sdxl", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 999 - t, c))),
    Fault("latent scale", "sdxl", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("dropped leading tokens", "sdxl", "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
    Fault("size conditions", "sdxl", "call parity", conditions("time_ids", lambda ids: ids.flip(-1) + 1)),
    Fault("unconditional text", "sdxl", "call parity", lambda cls: {"unconditional": lambda self, pipe, e, o: e}),
]
