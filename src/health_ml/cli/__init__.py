"""From the command line to an experiment config and a container, and what the console shows."""
