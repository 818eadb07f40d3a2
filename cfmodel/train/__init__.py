"""Training: one loop, a strategy object a stage."""
