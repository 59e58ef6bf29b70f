"""`python -m benchmarks.rollout`: see bench.py."""

from benchmarks.rollout.bench import main

if __name__ == "__main__":
    main()
