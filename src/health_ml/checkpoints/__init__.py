"""Checkpoint files: what a user may call one, how to fetch it, what is in it, and which one to continue from."""
