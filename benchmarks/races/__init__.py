"""Side-by-side measurements of speed, each a script that prints medians with their spread."""
