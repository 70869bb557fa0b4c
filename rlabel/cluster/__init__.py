"""Ray: places shards on actors and training on workers. Knows nothing of models or COCO; wraps plain classes at the edge."""
