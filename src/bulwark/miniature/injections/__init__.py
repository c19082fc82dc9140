"""Records of injection benchmarks in the miniature: the world's commands in texts, in the benchmarks' schemas."""
