from tests.families.faults.kit import Fault, mask_of_ones, predict, softened_attention, text

FAULTS = [
    Fault("sign of the answer", "pixart_sigma", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "pixart_sigma", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 999 - t, c))),
    Fault("time scale", "pixart_sigma", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("latent scale", "pixart_sigma", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("mask of the padding", "pixart_sigma", "call parity", text(mask_of_ones)),
    Fault("mask added as numbers", "pixart_sigma", "padding", predict(softened_attention)),
    Fault(
        "dropped leading tokens", "pixart_sigma", "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})
    ),
]
