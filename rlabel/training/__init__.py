"""Turns labeled corpora into a checkpoint that the labeler loads: recipes, samples, objectives, the loop. Plain torch; knows nothing of Ray."""
