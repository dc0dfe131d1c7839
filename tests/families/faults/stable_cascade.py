from tests.families.faults.kit import Fault, model_input, predict, text

NAME = "stable_cascade"

FAULTS = [
    Fault("sign of the answer", NAME, "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", NAME, "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 999 - t, c))),
    Fault("time scale", NAME, "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t * 999, c))),
    Fault("dropped leading tokens", NAME, "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})),
    Fault("pooled text", NAME, "call parity", text(lambda c: {**c, "pooled": c["pooled"].roll(1, 2)})),
    Fault("picture that is not shown", NAME, "call parity", model_input(clip_img=lambda zeros: zeros + 1)),
    Fault("latent scale", NAME, "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
]
