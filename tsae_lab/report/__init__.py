"""The page people look at: one self-contained HTML file of what runs have measured."""
