"""Why an option or choice is declared but not offered yet: one sentence per part that is still to come.

An option names one of these as `pending=...`; taking the keyword away is all that is needed when the part arrives.
"""

METHODS = "This training method comes with the training methods release."
REGULARISERS = "Representation regularisers come with the training methods release."
DISTILLATION = "Distillation comes with the training methods release."
LOFTQ = "LoftQ, which starts from what rounding takes away from weights, comes with the adapters release."
ADAPTERS = "Further adapter kinds come with the adapters release."
VALIDATION = "This part of validation comes with the validation and evaluation release."
EVALUATION = "Evaluation scores come with the validation and evaluation release."
PUBLISHING = "Uploads, webhooks and scripts come with the publishing release."
DISTRIBUTED = "Runs on several devices come with the distributed release."

TRAINS_NOTHING = frozenset({VALIDATION, EVALUATION})
"""Parts that only show what was trained: a run without them trains the same, so they are noted and not refused."""
