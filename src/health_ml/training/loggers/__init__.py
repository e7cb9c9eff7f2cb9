"""Loggers for the Lightning Trainer."""
