from tests.families.faults.kit import Fault, model_inputs, predict

FAMILY = "framepack_one_frame"


def turned(indices):
    return indices.flip(0)


def half_seen(cls):
    def encode_text_with_images(self, *args):
        found = cls.encode_text_with_images(self, *args)
        return {**found, "image": found["image"][:, 1:]}

    return {"encode_text_with_images": encode_text_with_images}


FAULTS = [
    Fault("sign of the answer", FAMILY, "oracle", predict(lambda plain, *a: -plain(*a))),
    Fault("time scale", FAMILY, "call parity", predict(lambda p, s, m, x, t, c: p(s, m, x, t / 1000, c))),
    Fault("place of the frame", FAMILY, "call parity", model_inputs("indices_latents", lambda place: place + 1)),
    Fault("places of the pictures", FAMILY, "call parity", model_inputs("indices_latents_clean", turned)),
    Fault("the blank frame behind", FAMILY, "call parity", model_inputs("latents_clean", lambda z: z.flip(2))),
    Fault("what is seen of the picture", FAMILY, "call parity", half_seen),
]
"""Against our own pipeline, which `test_framepack` holds to the stock one."""
