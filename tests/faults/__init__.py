"""The kinds of faults of `tests/campaign.py`: each gives rows of what was done and how it ended."""
