"""Text to pages: font chain, shaping, layout, drawing. Knows nothing of tensors."""
