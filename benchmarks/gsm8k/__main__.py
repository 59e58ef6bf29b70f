"""`python -m benchmarks.gsm8k`: see experiment.py."""

from benchmarks.gsm8k.experiment import main

if __name__ == "__main__":
    main()
