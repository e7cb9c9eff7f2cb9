"""Everything that touches the SDKs of AzureML: no other part of the package imports ``azure`` or ``azureml``."""
