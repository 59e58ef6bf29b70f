"""What a command line of train.py asks for. Imports no torch: all but a run itself is answered at once."""

from grpo.config import Config, load
from grpo.health import last_words
from grpo.memory import plan
from grpo.options.refusal import told


def asked(argv: list[str]) -> Config:
    """The configuration of a command line that asks for a run.

    Raises:
        SystemExit: with 0 after `--help` and `--plan`, with 2 after a line about each mistake, else with 1.
    """
    try:
        config = load(argv)
        if config.plan is None:
            return config
        print("\n".join(plan.page(config)))
    except ValueError as error:
        raise SystemExit(last_words.fail(told(error), 2)) from None
    except (Exception, KeyboardInterrupt) as error:
        raise SystemExit(last_words.fail(last_words.words(error), 1)) from None
    raise SystemExit(0)
