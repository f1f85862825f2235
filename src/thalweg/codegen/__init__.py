"""From a plan to a native program: loops, then text in C, then a loaded library. All C text of the package lives here."""
