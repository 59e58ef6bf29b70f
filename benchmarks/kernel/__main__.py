"""`python -m benchmarks.kernel`: see command.py."""

from benchmarks.kernel.command import main

if __name__ == "__main__":
    main()
