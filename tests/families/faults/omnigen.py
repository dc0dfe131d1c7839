from tests.families.faults.kit import Fault, predict, softened_attention, text, without_first


def all_text(p, s, m, x, t, c):
    """Padding counts as text."""
    return p(s, m, x, t, {**c, "length": c["length"] * 0 + c["text"].shape[1]})


FAULTS = [
    Fault("sign of the answer", "omnigen", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "omnigen", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "omnigen", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - (1 - t) * 9, c))),
    Fault("latent scale", "omnigen", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("mask of the padding", "omnigen", "call parity", predict(all_text)),
    Fault("mask added as numbers", "omnigen", "call parity", predict(softened_attention)),
    Fault("dropped leading tokens", "omnigen", "call parity", text(without_first)),
    Fault("unconditional text", "omnigen", "call parity", lambda cls: {"unconditional": lambda self, pipe, e, o: e}),
]
