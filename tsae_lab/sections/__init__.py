"""Measures as numbers, tables and figures, for one run or one saved model."""
