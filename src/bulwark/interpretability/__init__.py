"""What a model makes of roles inside: linear probes, activations, attention, and tokens whose role is changed.

The analyses of ASIDE (Zverev et al. 2025, arXiv 2503.10566, Sec. 6) are benchmarks (`bulwark.benchmarks`), because they
need the model; what they compute is here. Hidden states are reduced in hooks: what leaves one are the vectors at the
tokens that are asked for, of one batch.
"""
