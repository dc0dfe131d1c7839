from tests.families.faults.kit import Fault, entries, mask_of_ones, model_inputs, predict, softened_attention, text

FAULTS = [
    Fault("sign of the answer", "framepack", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time scale", "framepack", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("guidance", "framepack", "call parity", model_inputs("guidance", lambda g: g / 1000)),
    Fault("place of the section", "framepack", "call parity", model_inputs("indices_latents", lambda i: i - 1)),
    Fault("what is whole", "framepack", "call parity", model_inputs("latents_clean", lambda z: z.flip(2))),
    Fault("start", "framepack", "call parity", entries("start", lambda z: z * 1.1)),
    Fault("picture's features", "framepack", "call parity", entries("image", lambda e: e[:, 1:])),
    Fault("mask of the padding", "framepack", "call parity", text(mask_of_ones)),
    Fault("mask added as numbers", "framepack", "call parity", predict(softened_attention)),
    Fault("latent scale", "framepack", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
]
