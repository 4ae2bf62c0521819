"""Source models: where they are found, how they are built and loaded, and the texts they are asked about."""
