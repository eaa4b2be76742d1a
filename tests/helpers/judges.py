"""Completion functions for tests: judges with a known bias, or that fail, named in YAML as "judges:function"."""

import json
import os
from pathlib import Path


def longer(prompts, **_):
    """Prefers the longer text; replies with JSON. Counts its calls in the file $JUDGE_CALLS."""
    if path := os.environ.get("JUDGE_CALLS"):
        with Path(path).open("a") as file:
            file.writelines(f"{json.dumps(prompt)}\n" for prompt in prompts)
    replies = []
    for prompt in prompts:
        _, first, second = prompt.split("|")
        preference = 1.5 if len(first) == len(second) else 1 + (len(second) > len(first))
        replies.append(json.dumps({"preference": preference}))
    return {"completions": replies}


def always_first(prompts, **_):
    """The pure position bias."""
    return {"completions": ['{"preference": 1}'] * len(prompts)}


def silent_on_bad(prompts, **_):
    """`longer`, but prompts with the word in $JUDGE_SILENT get no reply, or $JUDGE_MUMBLES."""
    word, mumbled = os.environ.get("JUDGE_SILENT", ""), os.environ.get("JUDGE_MUMBLES")
    replies = longer(prompts)["completions"]
    return {"completions": [mumbled if word and word in p else r for p, r in zip(prompts, replies, strict=True)]}
