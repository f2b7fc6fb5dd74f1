"""From text to rows of tokens: a model's own tokenizer, packed windows, padded lines, masks."""
