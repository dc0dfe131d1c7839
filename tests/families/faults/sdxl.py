from tests.families.faults.kit import Fault, model_inputs, predict, text

REFINER = "tiny-refiner"

FAULTS = [
    Fault("time direction", "sdxl", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 999 - t, c))),
    Fault("latent scale", "sdxl", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("dropped leading tokens", "sdxl", "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
    Fault("size conditions", "sdxl", "call parity", model_inputs("time_ids", lambda ids: ids.flip(-1) + 1)),
    Fault("unconditional text", "sdxl", "call parity", lambda cls: {"unconditional": lambda self, pipe, e, o: e}),
    Fault(
        "aesthetic score", "sdxl", "call parity", model_inputs("time_ids", lambda ids: ids * 0.9),
        REFINER,
    ),
    Fault("order of sizes", "sdxl", "call parity", model_inputs("time_ids", lambda ids: ids.roll(2, -1)), REFINER),
    Fault(
        "unconditional text", "sdxl", "call parity",
        lambda cls: {"unconditional": lambda self, pipe, e, o: {k: v * 0 for k, v in e.items()}}, REFINER,
    ),
    Fault("pooled text", "sdxl", "call parity", text(lambda c: {**c, "pooled": c["text"][:, -1]}), REFINER),
    Fault("latent scale", "sdxl", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}, REFINER),
    Fault("sign", "sdxl", "oracle", predict(lambda p, s, m, x, t, c: -p(s, m, x, t, c)), REFINER),
]  # fmt: skip
