"""Models made of models: a score, an allocation, a cut; (params, m) in, (params, m) out."""
