"""What is asked of a model before it is trained, and of what was saved when it is."""
