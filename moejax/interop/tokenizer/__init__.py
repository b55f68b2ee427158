"""Tokenizers as other libraries keep them: hub directories, SentencePiece models, GGUF metadata."""
