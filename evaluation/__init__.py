"""HEAR's official tools on a current Python: validate, evaluate, results."""
