"""What stands behind `tsae`, `metrics`, `probes` and `experiment`. Imports run downwards: jobs,
sections, measures, data.
"""
