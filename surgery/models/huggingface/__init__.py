"""Models that Hugging Face's transformers saved: the folder, the class, its example inputs, its weights."""
