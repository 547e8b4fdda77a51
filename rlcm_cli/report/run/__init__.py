"""One run, read from its files: data, curves, images, progress, summary, model card."""
