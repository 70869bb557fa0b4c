"""The region vision-language model in transformers' own shape: configuration, modeling, processing, assembly, quantization.

Knows nothing of corpora on disk, vocabularies, runs or Ray. `rlabel.regiongpt.auto.register()` makes the Auto classes know the two model types.
"""
