"""The commands, one file each. Thin: they read settings, call the rooms below, and say what was written where."""
