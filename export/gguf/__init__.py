"""The language model as GGUF: shape, tensors, tokenizer, quantization and what it costs."""
