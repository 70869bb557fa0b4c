"""Formats in, pictures and masks: from a COCO-like file and an image folder to checked images and region masks.

`coco` streams the file, `sharding` plans the work, `inputs` prepares one image with `images` and `masks`, `labeled`
reads the same files with their categories for training, `validate` reports what is wrong before a run. It knows nothing
of models, vocabularies or Ray.
"""
