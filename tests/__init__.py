"""The tests. A package, so that `tests.azureml` does not pass for the `azureml` of Microsoft."""
