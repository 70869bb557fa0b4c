"""Image-text-to-text models as plain transformers loads them, without fine-tuning: how a region is shown to each family, and how its answer is read.

`families` says what is known of a family; `showing` makes pictures and box texts; `loading` finds and loads; `inputs` and `decoding` prepare and answer.
"""
