"""What `compile_offline.py` compiles, and how: no kernel is launched."""
