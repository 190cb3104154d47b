"""What mnvi costs, as ratios measured within one run."""
