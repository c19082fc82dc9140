"""Tampering attack resistance: training against simulated fine-tuning attacks."""
