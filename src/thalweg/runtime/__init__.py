"""What runs a compiled program: its memory, its threads, its state, and the call itself."""
