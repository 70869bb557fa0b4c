"""Labels shards: the decoding engine and the Labeler. The whole product without Ray, clusters or run directories."""
