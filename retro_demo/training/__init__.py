"""Batches and the one training loop of all kinds of run."""
