"""Processors of text and images, for text encoders with image input."""

from __future__ import annotations

from typing import Any

import transformers


class Qwen2VLProcessor(transformers.Qwen2VLProcessor):
    """The processor of transformers without video input, so that it works without torchvision."""

    # a saved pipeline names the class of transformers, so it loads anywhere
    __module__ = transformers.Qwen2VLProcessor.__module__

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any):
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)
