"""The cross table: every defense under every attack, on every family of benchmarks, and the order of the defenses."""
