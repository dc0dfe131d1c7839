from tests.families.faults.kit import Fault, latents, mask_of_ones, pipe, predict, softened_attention, text

FAULTS = [
    Fault("sign of the answer", "lumina2", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "lumina2", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "lumina2", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - (1 - t) * 1000, c))),
    Fault("latent shift", "lumina2", "latent parity", latents(normalizer="scale")),
    Fault("mask of the padding", "lumina2", "call parity", text(mask_of_ones)),
    Fault("mask added as numbers", "lumina2", "call parity", predict(softened_attention)),
    Fault("instruction before a caption", "lumina2", "call parity", pipe(system_prompt="")),
    Fault("unconditional text", "lumina2", "call parity", lambda cls: {"unconditional": lambda self, pipe, e, o: e}),
]
