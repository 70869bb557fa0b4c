"""The run directory: the manifest, shards committed once each, merge into COCO, status.

Knows nothing of Ray or models.
"""
