"""Everything that knows Lightning: the Trainer, its callbacks and loggers, and the life of a run."""
