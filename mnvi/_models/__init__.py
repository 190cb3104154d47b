"""What is asked of a whole model: ties, weights without a posterior, layers that are bypassed."""
