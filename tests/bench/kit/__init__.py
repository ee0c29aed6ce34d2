"""The parts of run.py: servers to measure, how they are measured, what is reported, the scenarios."""
