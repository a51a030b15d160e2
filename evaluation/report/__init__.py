"""The report: runs of `hear-m2d evaluate` beside the published HEAR figures."""
