"""LightningModules: one thin adapter a file."""
