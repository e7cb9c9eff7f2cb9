"""Names that users of hi-ml import from here; each is defined elsewhere in health_ml."""
