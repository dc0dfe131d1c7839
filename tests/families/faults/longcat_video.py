from tests.families.faults.kit import MEANS_ONLY, Fault, latents, mask_of_ones, model_input, model_inputs, predict, text

STARTED = {"flavour": "tiny", "started": True}


def without_start(cls):
    """The first frame is as noisy as the others, though it is given."""
    return {"model_inputs": lambda self, batch, options, generator: {}}


FAULTS = [
    Fault("sign of the answer", "longcat_video", "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time direction", "longcat_video", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, 1 - t, c))),
    Fault("time scale", "longcat_video", "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("channel statistics", "longcat_video", "latent parity", latents(normalizer=MEANS_ONLY)),
    Fault("latent scale", "longcat_video", "latent parity", lambda cls: {"to_pipeline": lambda self, x: x * 1.1}),
    Fault("mask of the padding", "longcat_video", "call parity", text(mask_of_ones)),
    Fault(
        "dropped leading tokens", "longcat_video", "call parity", text(lambda c: {**c, "text": c["text"].roll(-2, 1)})
    ),
    Fault("order of the frames", "longcat_video", "call parity", model_input(hidden_states=lambda x: x.flip(2))),
    Fault("given frame's time", "longcat_video", "call parity", model_inputs("noisy", lambda n: n.flip(2)), **STARTED),
    Fault("number of given frames", "longcat_video", "call parity", model_inputs("given", lambda n: n + 1), **STARTED),
    Fault("no given frames", "longcat_video", "call parity", without_start, **STARTED),
]
