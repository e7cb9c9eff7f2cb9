"""Every claim about speed, as a command that prints a ratio: ``python -m benchmarks [name …]``."""
