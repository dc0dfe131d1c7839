from tests.families.faults.kit import Fault, model_inputs, predict, text

FAULTS = [
    Fault("sign of the answer", "kolors", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "kolors", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1099 - t, c))),
    Fault("latent scale", "kolors", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("dropped leading tokens", "kolors", "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
    Fault("pooled vector", "kolors", "call parity", text(lambda c: {**c, "pooled": c["text"][:, -1]})),
    Fault("size conditions", "kolors", "call parity", model_inputs("time_ids", lambda ids: ids.flip(-1) + 1)),
    Fault(
        "unconditional text",
        "kolors",
        "call parity",
        lambda cls: {"unconditional": lambda self, pipe, entry, o: {k: v * 0 for k, v in entry.items()}},
    ),
]
