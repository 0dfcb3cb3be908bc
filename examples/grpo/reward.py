"""What an answer is worth. Each function gets lists and returns a number for each completion."""


def correct(completions, answer):
    """Return 1 where the completion is the answer of the row, which is a column of the data."""
    return [float(said.strip() == right) for said, right in zip(completions, answer, strict=True)]


def brief(completion_ids):
    """Return less than 0 for each token after the second: the digit and the end."""
    return [-max(0, len(ids) - 2) / 10 for ids in completion_ids]
