"""What torch is doing around a call: tracing, transforms, autocast, checkpoints, and what follows a step."""
