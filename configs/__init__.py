"""Containers and presets outside the package, as those of a user are."""
