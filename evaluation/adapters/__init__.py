"""Our models under other benchmarks: mteb and X-ARES."""
