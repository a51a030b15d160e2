"""The official HEAR validator and harness on a current Python."""
