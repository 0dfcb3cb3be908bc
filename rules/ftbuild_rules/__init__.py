"""The standard rules: `x.py` below holds rule `x`, `_x.py` is a helper beside its users.

The engine finds them by file name, through the entry point group `ftbuild.rules`. Nothing is
imported here: a rule's file is imported when a manifest names the rule, and the libraries it
needs when its function runs.
"""

WORKER_ENVIRONMENT = {
    # An action has no network unless a source declares it; these libraries would ask anyway.
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    # The tokenizers' thread pool does not survive a fork, and workers are forked.
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Environment variables with which workers start."""
