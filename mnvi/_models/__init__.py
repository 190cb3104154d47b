"""Questions about a whole model: tied weights, weights without a posterior, layers that are bypassed."""
