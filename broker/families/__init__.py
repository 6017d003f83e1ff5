"""Families of models, one file each: what their ``config.json`` says about the computation."""
