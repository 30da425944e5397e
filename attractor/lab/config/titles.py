"""Models and tasks in words, for tables, figures and messages."""

TITLES = {
    "bare_attention": "bare self-attention",
    "local_attention": "local self-attention",
    "hopfield": "vector Hopfield network",
    "local_linear_memory": "local linear memory",
    "slots": "slots",
    "transformer": "transformer",
    "transformer_block": "transformer block",
    "training_mean": "training mean",
    "regression": "linear regression",
    "memory": "softmax memory",
}
TASK_WORDS = {"masked": "masked prediction", "denoise": "denoising"}


def title(model: str) -> str:
    """A model's key as words: run/bare_attention+evidence is `run: bare self-attention + evidence`."""
    run, _, key = model.rpartition("/")
    name, _, variant = key.partition("+")
    words = TITLES.get(name, name) + (f" + {variant}" if variant else "")
    return f"{run}: {words}" if run else words
