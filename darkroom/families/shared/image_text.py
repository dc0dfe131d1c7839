"""Processors of text and pictures, for text encoders that look while they read."""

from __future__ import annotations

from typing import Any

import transformers


class Qwen2VLProcessor(transformers.Qwen2VLProcessor):
    """The stock one without its reader of films, so that it works without torchvision."""

    # a pipeline that is saved with it names the stock class, and loads anywhere
    __module__ = transformers.Qwen2VLProcessor.__module__

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **rest: Any):
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **rest)
