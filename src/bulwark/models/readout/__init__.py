"""From hidden states through the output embedding to numbers of each token, without all logits at once."""
