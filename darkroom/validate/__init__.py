"""Is it learning? Images through diffusers' pipeline, beside the base model's."""
