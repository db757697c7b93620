"""Getting models and texts in: folders, hub models, GGUF files, calibration text."""
