"""What goes in: texts, language models, activations on disk, probing tasks."""
