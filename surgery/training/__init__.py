"""Training what was cut: any captured graph, by AdamW, under any objective. See `engine.train`."""
