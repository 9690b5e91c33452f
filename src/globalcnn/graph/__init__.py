"""What optimize, condense and export share: tracing of shapes, folding of norms, replacing a named child."""
