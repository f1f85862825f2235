"""From a plan to a native program: loops, then C text, then a loaded library. All C text lives here."""
