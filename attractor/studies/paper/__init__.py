"""The paper's comparison: its runs side by side with the references."""
