"""What tools/hostile.py sends, and how it looks at a server meanwhile."""
