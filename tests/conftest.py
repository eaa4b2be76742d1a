"""One thread per process, before torch is imported: forked children hang on OpenMP's threads otherwise."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
