"""Train recurrent self-attention with local rules, without backpropagation, on images."""
