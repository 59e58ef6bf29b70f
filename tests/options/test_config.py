"""Recipes and command lines against the configuration, or the one line of refusal, they must give. 2 s on any CPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from grpo.advantage import AGGREGATIONS, ESTIMATORS, GATES, SCALES
from grpo.config import Config
from grpo.loss import KL_ESTIMATORS, LOSS_TYPES
from grpo.options.option import options
from grpo.options.recipe import ForeignNames, renamed
from grpo.ratio import CORRECTIONS, LEVELS
from grpo.run.command import load
from grpo.sampler.linear import FORMS
from kernels.choice import IMPLEMENTATIONS
from rewards.workers.pool import FAILURES

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

# Every key of a TRL recipe for QLoRA that users come with; the batch is 4 * 1 rank * 8 = 32 completions, 4 prompts.
TRL_RECIPE = """
model_name_or_path: Qwen/Qwen2.5-0.5B
tokenizer_name_or_path: Qwen/Qwen2.5-0.5B
model_revision: main
torch_dtype: bfloat16
attn_implementation: flash_attention_2
bf16: true
tf32: true
output_dir: outputs/from-trl
train_dataset_id_or_path: openai/gsm8k
test_dataset_id_or_path: openai/gsm8k
dataset_splits: train
max_seq_length: 1024
packing: true
use_peft: true
load_in_4bit: true
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target_modules: all-linear
lora_modules_to_save: [lm_head, embed_tokens]
num_train_epochs: 2
per_device_train_batch_size: 4
gradient_accumulation_steps: 8
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: false}
learning_rate: 2e-4
lr_scheduler_type: cosine
warmup_ratio: 0.1
max_grad_norm: 0.3
logging_strategy: steps
logging_steps: 5
report_to: none
save_strategy: "no"
seed: 7
push_to_hub: true
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, with one rank."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "1")
    return tmp_path


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def refusal(argv: list[str]) -> str:
    with pytest.raises(ValueError) as caught:
        load(argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_without_arguments_the_toy_recipe_runs(place):
    values = yaml.safe_load((ROOT / "recipes" / "toy.yaml").read_text())
    config = load([])
    shipped = str(ROOT / "data" / "tiny_qwen2")
    assert {name: getattr(config, name) for name in values} == values | {
        "gradient_checkpointing": "false", "model_name_or_path": shipped}
    assert config.notes == ()


@pytest.mark.parametrize("mine", [["--model_name_or_path", "Qwen/Qwen2.5-0.5B"],
                                  ["--train_dataset_id_or_path", "openai/gsm8k"], ["--dataset_name", "openai/gsm8k"]])
def test_with_a_model_or_data_of_ones_own_the_defaults_of_the_help_apply(place, mine):
    config = load(mine)
    assert (config.learning_rate, config.lr_scheduler_type, config.max_steps) == (1e-5, "cosine", -1)
    assert config.output_dir == "outputs/run" and config.recipe is None
    assert load(["--seed", "1"]).recipe == "recipes/toy.yaml"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_without_notes(path, place):
    config = load(["--config", str(path), "--report_to", "none"])
    assert config.notes == ()
    assert config.report_to == []


def test_the_small_recipe_has_the_published_hyperparameters(place):
    config = load(["--config", str(ROOT / "recipes" / "qwen2.5-0.5b-gsm8k.yaml"), "--report_to", "none"])
    assert (config.lora_r, config.lora_alpha, config.learning_rate) == (16, 16, 1.84e-4)
    assert (config.lr_scheduler_type, config.warmup_ratio, config.num_train_epochs) == ("cosine", 0.1, 2)
    assert (config.num_shots, config.num_generations, config.seed) == (8, 8, 42)
    assert len(config.lora_target_modules) == 7
    assert config.lora_modules_to_save == ["lm_head", "embed_tokens"]


def test_all_linear_are_the_seven_projections_however_it_is_written(place):
    seven = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    for text in ("all-linear", "[all-linear]", "\n- all-linear", "All-Linear"):
        recipe = write(place / "all.yaml", f"lora_target_modules: {text}")
        assert load(["--config", recipe]).lora_target_modules == seven
    assert load(["--lora_target_modules", "all-linear"]).lora_target_modules == seven
    assert load(["--lora_target_modules", "q_proj"]).lora_target_modules == ["q_proj"]


def test_every_key_of_a_trl_recipe_is_honoured_or_named(place):
    config = load(["--config", write(place / "trl.yaml", TRL_RECIPE)])
    assert config.prompts_per_step == 4
    assert config.max_prompt_length == 512  # 1024 - 512
    assert config.learning_rate == 2e-4  # YAML reads 2e-4 as text
    assert config.torch_dtype == "bfloat16" and config.tf32
    assert config.save_strategy == "no" and config.report_to == []
    assert config.lora_target_modules == Config().lora_target_modules
    assert (config.gradient_checkpointing, config.gradient_checkpointing_kwargs) == ("true", {"use_reentrant": False})
    named = " ".join(config.notes)
    assert len(config.notes) == 4
    assert "attn_implementation='flash_attention_2' has no effect" in named
    assert "push_to_hub=True has no effect" in named
    assert config.notes[-1] == "not in the recipe, with TRL's other defaults in brackets: beta=0.04 (0.0)"
    assert "gradient_accumulation_steps=8 / 8 generations = prompts_per_step=4" in named


@pytest.mark.parametrize(("text", "counted"), [
    ("num_iterations: 4\nmax_steps: 450\nwarmup_steps: 2e1\nsave_steps: 100", "max_steps, warmup_steps, save_steps"),
    ("num_iterations: 4\nmax_steps: 450\nwarmup_steps: 0.1\neval_steps: null", "max_steps"),
    ("num_iterations: 4\nnum_train_epochs: 2\nlogging_steps: 1", None), ("num_iterations: 1\nmax_steps: 450", None),
])
def test_a_recipe_of_trl_with_several_updates_is_told_what_its_steps_count(place, text, counted):
    config = load(["--config", write(place / "trl.yaml", f"per_device_train_batch_size: 8\n{text}\n")])
    said = f"num_iterations=4: {counted} count rollouts, of 4 updates each; TRL counts updates"
    assert [note for note in config.notes if note.startswith("num_iterations")] == ([said] if counted else [])


def test_the_batch_grows_with_the_ranks(place, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    # 8 completions * 2 ranks * 3 / 4 completions a prompt = 12 prompts
    config = load(["--config", write(place / "a.yaml", "per_device_train_batch_size: 8"),
                   "--gradient_accumulation_steps", "3", "--num_generations", "4"])
    assert config.prompts_per_step == 12


def test_an_override_of_the_batch_replaces_the_recipes_way_to_say_it(place):
    trl = write(place / "trl.yaml", "{per_device_train_batch_size: 8, gradient_accumulation_steps: 2}")
    assert load(["--config", trl, "--prompts_per_step", "6"]).prompts_per_step == 6
    plain = write(place / "plain.yaml", "prompts_per_step: 6")
    assert load(["--config", plain, "--per_device_train_batch_size", "24"]).prompts_per_step == 3


def test_the_command_line_takes_flags_lists_and_mappings(place):
    write(place / "mine.py", "")
    config = load(["--load_in_4bit", "false", "--tf32", "--reward_funcs", "format", "mine.py:score", "--beta=0.5",
                   "--reward_weights", "1", "0.5", "--deepspeed", '{"zero_optimization": {"overlap_comm": false}}'])
    assert config.load_in_4bit is False and config.tf32 is True
    assert config.reward_funcs == ["format", "mine.py:score"]
    assert config.reward_weights == [1.0, 0.5]
    assert config.beta == 0.5
    assert config.deepspeed == {"zero_optimization": {"overlap_comm": False}}


def test_trls_other_spellings_are_read(place):
    assert load(["--dtype", "bfloat16"]).torch_dtype == "bfloat16"
    assert [load(["--torch_dtype=auto", f"--bf16={on}"]).torch_dtype for on in (True, False)] == ["bfloat16", "auto"]
    assert load(["--config", write(place / "a.yaml", "scale_rewards: false")]).scale_rewards == "none"
    assert load(["--config", write(place / "b.yaml", "save_strategy: no")]).save_strategy == "no"


def test_a_saved_configuration_loads_back_equal(place):
    first = load(["--config", write(place / "trl.yaml", TRL_RECIPE), "--epsilon_high", "0.28"])
    first.save(place / "saved.yaml")
    second = load(["--config", str(place / "saved.yaml")])
    assert second == first
    assert all(note.startswith(("attn", "push", "per_device", "not in")) for note in first.notes)
    assert second.notes == ()


def test_help_lists_every_option_and_needs_no_torch():
    code = (
        "import sys; from grpo.run.command import load\n"
        "try: load(['--help'])\nfinally: assert 'torch' not in sys.modules")
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in options(Config) | options(ForeignNames) | renamed(Config):
        assert f"--{name} " in shown
    assert "--vllm_mode" not in shown


def test_each_choice_of_the_algorithm_is_one_that_the_code_knows():
    known = {
        "loss_type": set(LOSS_TYPES),
        "kl_estimator": {*KL_ESTIMATORS, "exact"},  # exact: a sum over the vocabulary, by the log-prob kernel
        "scale_rewards": set(SCALES),
        "adv_estimator": set(ESTIMATORS),
        "importance_sampling_level": set(LEVELS),
        "advantage_gate": set(GATES),
        "multi_objective_aggregation": set(AGGREGATIONS),
        "reward_failure": set(FAILURES),
        "rollout_correction": {*CORRECTIONS, "none"},
        "logprob_impl": set(IMPLEMENTATIONS),
        "rollout_weights": set(FORMS),
    }
    assert {name: set(options(Config)[name].metadata["choices"]) for name in known} == known


def test_both_clip_ends_are_epsilon_unless_the_upper_one_is_named():
    assert Config(epsilon=0.3).epsilon_high == 0.3
    assert Config(epsilon=0.3, epsilon_high=0.5).epsilon_high == 0.5


@pytest.mark.parametrize("argv, note", [
    (["--beta", "0", "--kl_estimator", "exact"], "kl_estimator='exact' has no effect: beta=0"),
    (["--use_peft", "false", "--load_in_4bit", "false", "--lora_r", "8"], "lora_r=8 has no effect: use_peft=False"),
    (["--max_steps", "5", "--num_train_epochs", "2"], "num_train_epochs=2.0 has no effect: max_steps"),
    (["--save_strategy", "epoch", "--save_steps", "7"], "save_steps=7 has no effect: save_strategy"),
    (["--multi_objective_aggregation", "normalize_then_sum", "--scale_rewards", "none"],
     "scale_rewards='none' has no effect: multi_objective_aggregation=normalize_then_sum has its own scale"),
    (["--rollout_correction_cap", "3"], "rollout_correction_cap=3.0 has no effect: rollout_correction is none"),
    (["--packing", "false"], "packing=False has no effect: completions are always packed"),
])
def test_a_setting_that_another_one_silences_is_named(argv, note, place):
    assert [note in line for line in load(argv).notes] == [True]


def test_the_cap_of_a_correction_that_is_on_is_taken_without_a_note(place):
    config = load(["--rollout_correction", "masked", "--rollout_correction_cap", "3"])
    assert (config.rollout_correction, config.rollout_correction_cap, config.notes) == ("masked", 3.0, ())


# option and value as given, the start of the message, the rule, the nearest valid value
BAD = [
    ("--num_generations 1", "num_generations=1", "[2, inf)", "2"),
    ("--num_generations abc", "num_generations='abc'", "whole number", "8 (the default)"),
    ("--num_generations 3.7", "num_generations='3.7'", "whole number", "4"),
    ("--save_steps 0.1", "save_steps='0.1'", "whole number", "1"),
    ("--beta -0.1", "beta=-0.1", "[0, inf)", "0"),
    ("--beta nan", "beta='nan'", "finite number", "0.04 (the default)"),
    ("--epsilon 0", "epsilon=0.0", "(0, 1)", "0.2 (the default)"),
    ("--epsilon 1.5", "epsilon=1.5", "(0, 1)", "0.2 (the default)"),
    ("--epsilon 0.3 --epsilon_high 0.2", "epsilon_high=0.2", "at least epsilon=0.3", "0.3"),
    ("--loss_type bnpo", "loss_type='bnpo'", "depends on how the batch is split", "dapo"),
    ("--loss_type dr-grpo", "loss_type='dr-grpo'", "one of dapo, grpo, dr_grpo", "dr_grpo"),
    ("--lr_scheduler_type cosin", "lr_scheduler_type='cosin'", "one of cosine, linear, constant", "cosine"),
    ("--kl_estimator exakt", "kl_estimator='exakt'", "one of k1, k2, k3, k3_unbiased, exact", "exact"),
    ("--rollout_correction truncate", "rollout_correction='truncate'", "one of none, truncated, masked", "truncated"),
    ("--rollout_correction_cap 0.5", "rollout_correction_cap=0.5", "[1, inf)", "1"),
    ("--scale_rewards groups", "scale_rewards='groups'", "one of group, batch, none", "group"),
    ("--multi_objective_aggregation normalise_then_sum", "multi_objective_aggregation='normalise_then_sum'",
     "one of sum_then_normalize, normalize_then_sum", "normalize_then_sum"),
    ("--outcome_reward corectness", "outcome_reward='corectness'", "one of reward_funcs, format, correctness",
     "correctness"),
    ("--reward_funcs format ./my.py:solved --outcome_reward ./old-2/../my.py:solved",
     "outcome_reward='./old-2/../my.py:solved'", "one of reward_funcs, format, solved, by that name", "solved"),
    ("--outcome_reward vowels", "outcome_reward='vowels'", "one of reward_funcs, format, correctness", "format"),
    ("--reward_funcs format ./my.py:solved --advantage_gate outcome", "advantage_gate='outcome'",
     "needs outcome_reward", "outcome_reward=format or outcome_reward=solved"),
    ("--torch_dtype float16", "torch_dtype='float16'", "one of auto, float32, bfloat16", "bfloat16"),
    ("--torch_dtype float32 --bf16", "torch_dtype='float32'", "contradicts bf16=True", "bfloat16"),
    ("--zero_stage 4", "zero_stage=4", "[0, 3]", "3"),
    ("--deepspeed ds.json", "deepspeed='ds.json'", "must be a mapping", "{}"),
    ('--deepspeed {"stage":', "deepspeed=", "must be a mapping", "{}"),
    ('--deepspeed {"zero_optimization":{"stage":2}}', "zero_stage=3", "contradicts stage 2", "2"),
    ("--top_p 0.9", "top_p=0.9", "truncated sampling biases the ratio", "1"),
    ("--top_k 50", "top_k=50", "truncated sampling biases the ratio", "0"),
    ("--temperature 0", "temperature=0.0", "(0, inf)", "1.0 (the default)"),
    ("--num_shots 9", "num_shots=9", "[0, 8]", "8"),
    ("--num_shots -1", "num_shots=-1", "[0, 8]", "0"),
    ("--rollout_weights nf4 --load_in_4bit false", "rollout_weights='nf4'", "needs load_in_4bit=True", "lora"),
    ("--lora_modules_to_save_learning_rate 1e-5", "lora_modules_to_save_learning_rate=1e-05",
     "needs lora_modules_to_save", "none"),
    ("--rollout_weights nf4 --rollout_keep false", "rollout_weights='nf4'", "rollout_keep=True", "lora"),
    ("--rollout_weights merged --use_peft false --load_in_4bit false", "rollout_weights='merged'", "nothing to merge",
     "lora"),
    ("--use_peft false", "load_in_4bit=True", "needs use_peft=True", "false, or use_peft=True"),
    ("--use_peft false --load_in_4bit false --adapter_name_or_path a/b", "adapter_name_or_path='a/b'",
     "needs use_peft=True", "none, or use_peft=True"),
    ("--learning_rate 0", "learning_rate=0.0", "(0, inf)", "1e-05 (the default)"),
    ("--warmup_ratio 1", "warmup_ratio=1.0", "[0, 1)", "0.0 (the default)"),
    ("--max_steps 0", "max_steps=0", "at least 1", "1"),
    ("--tf32 maybe", "tf32='maybe'", "true or false", "False (the default)"),
    ("--reward_weights 1", "reward_weights=[1.0]", "each of the 2 reward_funcs", "1.0 1.0"),
    ("--reward_funcs format ./mine.py:score", "reward_funcs='./mine.py:score'", "existing file", "my.py"),
    ("--micro_batch_tokens 300 --max_completion_length 300", "micro_batch_tokens=300", "must fit", "301"),
    ("--max_seq_length 48", "max_seq_length=48", "more than max_completion_length=48", "49"),
    ("--max_seq_length 100 --max_prompt_length 90", "max_prompt_length=90", "contradicts max_seq_length=100", "52"),
    ("--per_device_train_batch_size 6 --num_generations 8 --gradient_accumulation_steps 3",
     "gradient_accumulation_steps=3", "multiple of num_generations=8", "4"),
    ("--per_device_train_batch_size 16 --prompts_per_step 3", "prompts_per_step=3", "contradicts", "1"),
    ("--gradient_accumulation_steps 2", "gradient_accumulation_steps=2", "needs per_device",
     "per_device_train_batch_size=16"),
    ("--report_to tensorbord", "report_to='tensorbord'", "one of tensorboard, mlflow, wandb, trackio", "tensorboard"),
    ("--model_name_or_path ./empty", "model_name_or_path='./empty'", "holds config.json",
     "a folder that save_pretrained wrote, or a Hub name"),
    ("--model_name_or_path ./modle", "model_name_or_path='./modle'", "holds config.json", "model"),
    ("--model_name_or_path ./no/such/model", "model_name_or_path='./no/such/model'", "holds config.json",
     "a folder that save_pretrained wrote, or a Hub name"),
    ("--adapter_name_or_path ./model", "adapter_name_or_path='./model'", "adapter_config.json",
     "a folder that save_pretrained wrote"),
    ("--train_dataset_id_or_path trane.jsonl", "train_dataset_id_or_path='trane.jsonl'", "existing", "train.jsonl"),
    ("--test_dataset_id_or_path ./gone", "test_dataset_id_or_path='./gone'", "existing", "a path that exists"),
    ("--config toi.yaml", "config='toi.yaml'", "must be a recipe file", "toy.yaml"),
    ("--config list.yaml", "config='list.yaml'", "must hold a mapping, not a list", "a file like recipes/toy.yaml"),
    ("--config broken.yaml", "config='broken.yaml'", "must be YAML", "a file like recipes/toy.yaml"),
    ("--config train.jsonl", "unknown option question='q'", "nearest known one", "epsilon"),
    ("--num_generation 8", "unknown option --num_generation", "nearest known one", "--num_generations"),
    ("--optima adamw", "unknown option --optima", "see", "unknown option --optima; see --help"),
    ("--optim adamw", "optim='adamw'", "the optimizer is AdamW", "adamw_torch"),
    ("--seed", "argument --seed", "expected one argument",
     "expected one argument; a value that starts with a minus is written --option=-1e-3"),
    ("--resume", "resume=True", "needs a checkpoint", "False"),
    ("--output_dir old", "output_dir='old'", "holds another run (summary.json)", "old-3"),
    ("--output_dir train.jsonl", "output_dir='train.jsonl'", "is a file", "train.jsonl-2"),
]


@pytest.fixture
def stocked(place):
    """The folder with what the bad options name."""
    write(place / "model" / "config.json", "{}")
    write(place / "train.jsonl", '{"question": "q"}')
    write(place / "toy.yaml", "seed: 1")
    write(place / "list.yaml", "[seed, 1]")
    write(place / "broken.yaml", "seed: [1")
    write(place / "my.py", "")
    write(place / "old" / "summary.json", "kept")
    (place / "empty").mkdir()
    (place / "old-2").mkdir()
    return place


@pytest.mark.parametrize("given, value, rule, valid", BAD, ids=[case[0][:60] for case in BAD])
def test_bad_input_is_refused_in_one_line(given, value, rule, valid, stocked):
    before = {path: path.stat().st_mtime_ns for path in stocked.rglob("*")}
    message = refusal(given.split(" "))
    assert message.startswith(value)
    assert rule in message
    assert message.rpartition(": ")[2] == valid
    assert before == {path: path.stat().st_mtime_ns for path in stocked.rglob("*")}


# Rows whose hint is not a value of the option, but says where one is; no tracker is installed here.
ELSEWHERE = ("a ", "per_device_train_batch_size=16", "tensorboard", "outcome_reward=")
VALUED = [(given, value.partition("=")[0], valid) for given, value, _, valid in BAD if not valid.startswith(ELSEWHERE)]


@pytest.mark.parametrize("given, name, valid", [case for case in VALUED if case[1] in {*options(Config), "config"}])
def test_the_nearest_valid_value_is_valid(given, name, valid, stocked):
    words = valid.removesuffix(" (the default)").removesuffix(", or use_peft=True").split(" ")
    load([*given.split(" "), f"--{name}", *words])


@pytest.mark.parametrize(("rank", "world_size", "line"), [
    (None, "8", "RANK=None must be a number beside WORLD_SIZE='8'"),
    (None, "", "RANK=None must be a number beside WORLD_SIZE=''"),
    ("0", "", "WORLD_SIZE='' must be a number beside RANK='0', WORLD_SIZE=''"),
    ("0", None, "WORLD_SIZE=None must be a number beside RANK='0'")])
def test_half_of_what_torchrun_sets_is_refused_in_one_line(place, monkeypatch, rank, world_size, line):
    for name, value in (("RANK", rank), ("WORLD_SIZE", world_size)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    said = refusal([])
    assert said.startswith(line + " in the environment, where torchrun sets both; nearest valid value: `unset ")


def test_one_rank_may_be_said_without_torchrun(place, monkeypatch):
    assert load([]).prompts_per_step == 16


def test_prompts_that_do_not_divide_over_the_ranks_are_refused(place, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert refusal(["--prompts_per_step", "16"]) == (
        "prompts_per_step=16 must be a multiple of the 3 ranks; nearest valid value: 15")


def test_a_receiver_that_is_not_installed_is_refused_by_name(place, monkeypatch):
    monkeypatch.setattr("sys.meta_path", [])
    assert refusal(["--report_to", "wandb"]).startswith("report_to='wandb' needs the package wandb")


def test_an_unknown_key_of_a_recipe_is_refused_with_the_nearest_known_one(place):
    message = refusal(["--config", write(place / "a.yaml", "learning_rat: 1.0e-5")])
    assert message == "unknown option learning_rat=1e-05; nearest known one: learning_rate"


def test_a_finished_run_resumes_only_from_a_checkpoint(place):
    write(place / "run" / "config.yaml", "")
    (place / "run" / "checkpoints" / "step-3").mkdir(parents=True)
    assert "holds another run" in refusal(["--output_dir", "run"])
    assert load(["--output_dir", "run", "--resume"]).resume
