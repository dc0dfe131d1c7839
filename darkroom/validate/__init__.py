"""Is it learning? Pictures through the stock pipeline, beside the base model's."""
