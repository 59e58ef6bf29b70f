"""What came of a run: what summary.json holds and `grpo.train` returns."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A run that has reached its end; accuracies are shares of right answers to held-out problems."""

    steps: int
    ranks: int
    seconds: float
    output_dir: str
    weights: str  # folder of the adapter, or of the model where every weight trains
    exported_step: int  # whose weights these are; below `steps` where load_best_model_at_end chose it
    # Sampled answers, then greedy ones; None without an evaluation.
    accuracy_before: float | None = None
    accuracy_after: float | None = None  # of the exported weights
    p_value: float | None = None  # of the paired test of both
    greedy_accuracy_before: float | None = None
    greedy_accuracy_after: float | None = None
    greedy_p_value: float | None = None

    def text(self) -> str:
        """JSON, without what was not measured."""
        return json.dumps({name: one for name, one in dataclasses.asdict(self).items() if one is not None}, indent=2)

    def save(self) -> None:
        """Write summary.json into the run's folder."""
        Path(self.output_dir, "summary.json").write_text(self.text())
