"""What is measured of a process and its machine: memory by phase, bandwidth, clock and load, who listens where."""
