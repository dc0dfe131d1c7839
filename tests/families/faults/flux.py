from tests.families.faults.kit import Fault, ids, latents, mask, model_inputs, other_packing, predict, text, unnumbered

FAULTS = [
    Fault("sign of the answer", "flux", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time scale", "flux", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t * 1000, c))),
    Fault("time direction", "flux", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("packing order", "flux", "call parity", other_packing),
    Fault("latent shift", "flux", "latent parity", latents(normalizer="scale")),
    Fault("position ids", "flux", "call parity", ids(lambda ids: ids[:, [0, 2, 1]])),
    Fault("guidance", "flux", "call parity", model_inputs("guidance", lambda g: g * 1000)),
    Fault("mask of the padding", "flux", "call parity", text(lambda c: {**c, "text": c["text"] * mask(c["text"])})),
    Fault("dropped leading tokens", "flux", "call parity", text(lambda c: {**c, "text": c["text"][:, 2:]})),
    Fault("number of a reference", "flux", "call parity", ids(unnumbered), "tiny-kontext"),
    Fault("no references", "flux", "call parity", model_inputs("references", lambda r: ()), "tiny-kontext"),
]
