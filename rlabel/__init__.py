"""rlabel: masks or boxes in, scored COCO labels out, by a vision-language model that looks at regions."""

__version__ = "0.1.0"
