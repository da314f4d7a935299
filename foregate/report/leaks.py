"""What a split gives away, in a sentence."""

SENTENCES = {
    "token": "tokens of one prompt stand on both sides, so what the prompt's other tokens used was learned; memory of "
    "this very text passes for knowledge.",
    "sample": "single layers of one token stand on both sides, so the answer to a test row can be read off a training "
    "row of the same token.",
}
"""Split -> what leaks."""


def leaks(split: str) -> str:
    """What a split that leaks gives away."""
    return SENTENCES.get(split, "test rows are partly known from training.")
