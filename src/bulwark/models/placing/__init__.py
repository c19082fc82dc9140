"""How the weights of a model that answers are held: over which GPUs, in which numbers, with which attention."""
