"""The record of a run in plain files, and its mirrors in tracking services."""
