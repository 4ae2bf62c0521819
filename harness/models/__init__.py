"""Source models: where they lie, how they are built and loaded, and the texts they are asked about."""
