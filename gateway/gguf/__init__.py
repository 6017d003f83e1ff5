"""Models in one GGUF file: config, places of tensors and tokenizer from what the file says."""
