"""Instruction templates and the text of conversations. Plain strings; tokens are made by the processor of the model."""
