"""A step's space: the settings that its trials vary, and which settings each trial has."""
