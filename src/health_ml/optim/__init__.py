"""Optimizers and learning-rate schedules that the container's flags describe."""
