"""From a YAML file to a plan: every cell with its questions, every square that cannot exist with the reason."""
