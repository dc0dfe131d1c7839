from tests.families.faults.kit import Fault, mask_of_ones, predict, softened_attention, text, without_instruction

FAULTS = [
    Fault("sign of the answer", "sana", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "sana", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "sana", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("latent scale", "sana", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("mask of the padding", "sana", "call parity", text(mask_of_ones)),
    Fault("mask added as numbers", "sana", "padding", predict(softened_attention)),
    Fault("instruction before a caption", "sana", "call parity", without_instruction),
    Fault("dropped leading tokens", "sana", "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
    Fault("unconditional text", "sana", "call parity", lambda cls: {"unconditional": lambda self, pipe, e, o: e}),
]
