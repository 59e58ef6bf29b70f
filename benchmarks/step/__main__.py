"""`python -m benchmarks.step`: see bench.py."""

from benchmarks.step.bench import main

if __name__ == "__main__":
    main()
