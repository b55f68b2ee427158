"""Models of llama.cpp: files in the GGUF format, in and out."""
