"""What quantization costs: perplexity, distance to the full-precision model, benchmark tasks."""
