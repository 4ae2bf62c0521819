"""Training a model's weights a little further, for the cells that ask whether that pays: seeded, resumable, the same for all."""
