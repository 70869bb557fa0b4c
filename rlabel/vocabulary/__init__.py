"""Vocabularies and snapping: from free text to a category. `vocabulary` reads files, `snapping` decides, `embedding`
compares, `scores` scores.
"""
