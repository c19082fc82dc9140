"""Alignment meant to survive attacks on the input (R2D2) or by fine-tuning (Vaccine, Booster, Lisa, SDD)."""
