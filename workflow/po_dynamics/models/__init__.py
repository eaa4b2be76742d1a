"""Language models as every stage uses them: loading, tokenizers, batches, sampling, reward models."""
