from tests.families.faults.kit import Fault, mask_of_ones, predict, text

FAULTS = [
    Fault("sign of the answer", "hunyuan_image", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "hunyuan_image", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "hunyuan_image", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("latent scale", "hunyuan_image", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("mask of the padding", "hunyuan_image", "call parity", text(mask_of_ones)),
    Fault(
        "dropped leading tokens", "hunyuan_image", "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})
    ),
]
