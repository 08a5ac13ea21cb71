"""What a code is like, knows and does. Pure: a measure neither writes nor prints."""
