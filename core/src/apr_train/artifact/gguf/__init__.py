"""A checkpoint as a GGUF file for llama.cpp: planned, written, opened again and compared with its source. Torch-free."""
