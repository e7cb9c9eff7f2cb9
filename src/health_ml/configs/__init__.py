"""Containers that ship with health_ml. A bare name in ``--model`` is searched here."""
