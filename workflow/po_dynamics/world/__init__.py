"""The embedded world: facts, language, gold reward, data sets and base model."""
