"""Training speed against the obvious alternatives, in one run: DPO against TRL 1.16, PPO against TRL 1.12.

    python benchmarks/train.py [dpo|ppo] [options of benchmarks/train_dpo.py or train_ppo.py]

Without a name both run, with their default options.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    chosen = sys.argv[1:2] if sys.argv[1:2] in (["dpo"], ["ppo"]) else ["dpo", "ppo"]
    options = sys.argv[2:] if len(chosen) == 1 else []
    return max(subprocess.call([sys.executable, HERE / f"train_{name}.py", *options]) for name in chosen)


if __name__ == "__main__":
    sys.exit(main())
