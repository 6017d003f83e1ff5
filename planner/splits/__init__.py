"""The best split of a model's layers over one group of devices."""
