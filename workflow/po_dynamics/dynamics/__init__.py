"""What the stored token scores say, on a CPU: gradient alignment of any objective, component and segment."""
