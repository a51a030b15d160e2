"""Our models under other benchmarks (mteb, X-ARES), and other models under HEAR (transformers)."""
