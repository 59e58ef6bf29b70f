"""Keys of other trainers one by one: what they become, what is said of them, or why they are refused. 3 seconds."""

from pathlib import Path
from typing import Any

import pytest
from foreign_recipes import furnish, loaded, notes, refused

from grpo.options.derived import SIZES


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in with one rank, with the files that recipes name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "1")
    furnish(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name, value, word", [
    ("use_vllm", True, "this project's own sampler"), ("use_liger_kernel", True, "logprob_impl"),
    ("eval_delay", 5, "as eval_strategy says"), ("per_device_eval_batch_size", 4, "as eval_strategy says"),
    ("save_only_model", True, "what resume needs"), ("overwrite_output_dir", True, "never written over"),
    ("torch_compile", "true", "torch.compile is not used"), ("num_completions_to_print", 4, "completions.jsonl"),
    ("fsdp", "full_shard", "ZeRO shards"), ("data_seed", 7, "seed orders the data"),
    ("cast_lm_head_to_fp32", True, "with float32 logits"), ("logging_strategy", False, "logging_steps"),
])
def test_a_harmless_key_is_named_in_one_line(name: str, value: Any, word: str, place: Path) -> None:
    line, = notes(place, **{name: value})
    assert line.startswith(f"{name}={value!r} has no effect: ") and word in line


@pytest.mark.parametrize("name, value, valid", [
    ("top_k", 50, "0"), ("min_p", 0.1, "0"), ("repetition_penalty", 1.1, "1"), ("generation_kwargs", {"a": 1}, "none"),
    ("vllm_sampling_params", {"min_p": 0.1}, "none"), ("sync_ref_model", True, "False"),
    ("use_rslora", True, "False"), ("use_dora", True, "False"),
    ("load_in_8bit", True, "False"), ("bnb_4bit_quant_type", "fp4", "nf4"), ("fp16", True, "False"),
    ("shuffle_dataset", False, "True"), ("greater_is_better", False, "True"), ("adafactor", True, "False"),
    ("neftune_noise_alpha", 5, "none"), ("reward_fn", "a.py", "none"), ("model_init_kwargs", {"a": 1}, "none"),
    ("optim", "galore_adamw", "adamw_torch"), ("ignore_data_skip", True, "False"),
])
def test_what_would_compute_something_else_is_refused(name: str, value: Any, valid: str, place: Path) -> None:
    line, = refused(place, **{name: value})
    assert line.startswith(f"{name}={value!r} is not offered: ") and line.endswith(f"; nearest valid value: {valid}")
    loaded(place, f"--{name}={valid}", **{name: value})


def test_evaluation_on_the_way_is_that_of_transformers(place: Path) -> None:
    config = loaded(place, evaluation_strategy="steps", eval_steps=20, num_generations_eval=2,
                    load_best_model_at_end=True, metric_for_best_model="eval_greedy_accuracy")
    assert (config.eval_strategy, config.eval_steps, config.num_generations_eval) == ("steps", 20, 2)
    assert config.load_best_model_at_end and config.metric_for_best_model == "eval_greedy_accuracy"
    assert notes(place, eval_strategy=False, eval_steps=None, num_generations_eval=None) == []
    assert notes(place, eval_steps=20) == ["eval_steps=20 has no effect: eval_strategy is not steps"]


@pytest.mark.parametrize("optim, said", [
    ("adamw_torch", []), ("adamw_torch_fused", []),
    ("adamw_8bit", ["optim='adamw_8bit' is AdamW with both averages in float32, which is the same equation without the "
                    "rounding, and more memory"]),
    ("paged_adamw_32bit", ["optim='paged_adamw_32bit' is AdamW, with its averages where ZeRO puts them"]),
])
def test_what_is_adamw_there_is_adamw_here(optim: str, said: list[str], place: Path) -> None:
    assert notes(place, optim=optim) == said


@pytest.mark.parametrize("name, value", [("hub_token", "hf_secret"), ("env", {"WANDB_API_KEY": "secret"})])
def test_a_secret_is_not_shown(name: str, value: Any, place: Path) -> None:
    line, = notes(place, **{name: value})
    assert line.startswith(f"{name} has no effect: ") and "secret" not in line


def test_values_of_the_command_line_are_read_as_in_a_recipe(place: Path) -> None:
    said = notes(
        place, "--push_to_hub", "--use_vllm", "--eval_strategy", "no", "--top_p", "1.0", "--vllm_server_port", "9",
        "--include_for_metrics", "a", "b", "--model_init_kwargs", "{}", "--delta", "none", "--debug", "[")
    assert [line.split(" has no effect")[0] for line in said] == [
        "push_to_hub=True", "vllm_server_port=9", "include_for_metrics=['a', 'b']", "debug='['", "use_vllm=True"]


def test_two_names_of_an_option_must_agree(place: Path) -> None:
    assert loaded(place, dtype="float32", torch_dtype="float32").torch_dtype == "float32"
    line, = refused(place, dtype="float32", torch_dtype="bfloat16")
    assert line == ("torch_dtype='bfloat16' contradicts dtype=float32, which makes it float32; "
                    "nearest valid value: float32")
    line, = refused(place, dataset_name="a/b", dataset_id_or_path="a/c")
    assert line.startswith("train_dataset_id_or_path='a/b' contradicts dataset_id_or_path=a/c")
    assert loaded(place, dataset_train_split=["test"], activation_checkpointing=None).dataset_splits == "test"
    assert refused(place, random_state="x")[0].startswith("random_state='x' must be a whole number")


def test_rewards_are_normalised_one_by_one_as_in_trl(place: Path) -> None:
    alone = dict(multi_objective_aggregation="normalize_then_sum")
    assert loaded(place, **alone).multi_objective_aggregation == "normalize_then_sum"
    assert notes(place, **alone) == notes(place, **alone, scale_rewards="group") == []
    # TRL does not look at it then, and says nothing
    assert notes(place, **alone, scale_rewards="batch") == [
        "scale_rewards='batch' has no effect: multi_objective_aggregation=normalize_then_sum has its own scale"]


def test_a_correction_of_the_kl_is_an_estimator(place: Path) -> None:
    assert loaded(place, use_bias_correction_kl=True).kl_estimator == "k3_unbiased"
    assert loaded(place, use_bias_correction_kl=False).kl_estimator == "k3"
    assert refused(place, use_bias_correction_kl=True, kl_estimator="k1")[0].startswith("kl_estimator='k1' contradicts")


def test_variants_of_trl_are_options_here(place: Path) -> None:
    said = dict(loss_type="sapo", sapo_temperature_pos=2.0, sapo_temperature_neg=3.0, entropy_coef=0.01,
                importance_sampling_level="sequence", top_entropy_quantile=0.2)
    config = loaded(place, **said)
    assert {name: getattr(config, name) for name in said} == said and not notes(place, **said)
    assert loaded(place, loss_type="dapo", delta=4.0).delta == 4.0
    adaptive = dict(use_adaptive_entropy=True, entropy_target=0.5, entropy_coef_delta=0.01, entropy_coef_max=0.5)
    assert {name: getattr(loaded(place, **adaptive), name) for name in adaptive} == adaptive
    assert notes(place, entropy_target=0.5) == ["entropy_target=0.5 has no effect: use_adaptive_entropy is false"]
    assert notes(place, loss_type="sapo", delta=4.0, epsilon_high=0.3, sapo_temperature_pos=2.0) == [
        "epsilon_high=0.3 has no effect: loss_type=sapo has no such clip",
        "delta=4.0 has no effect: only the clip of loss_type dapo, grpo and dr_grpo has a second one"]
    assert notes(place, sapo_temperature_pos=2.0) == ["sapo_temperature_pos=2.0 has no effect: loss_type is not sapo"]


def test_importance_sampling_of_trl_corrects_this_sampler(place: Path) -> None:
    def corrected(**keys: Any) -> tuple:
        config = loaded(place, **{f"vllm_importance_sampling_{name}": value for name, value in keys.items()})
        return config.rollout_correction, config.rollout_correction_cap, config.rollout_correction_floor

    assert corrected(mode="token_truncate") == ("truncated", 3.0, 0.0)  # TRL's cap
    assert corrected(mode="sequence_mask", clip_max=2.0, clip_min=0.5) == ("sequence_masked", 2.0, 0.5)
    assert corrected(mode="token_mask", clip_max=None) == ("masked", 1e9, 0.0)
    assert corrected(correction=True, clip_min=None) == corrected(mode="token_mask", correction=False)
    assert corrected(mode="token_mask", correction=False) == ("none", 2.0, 0.0)
    off, = notes(place, use_vllm=False, vllm_importance_sampling_mode="token_mask")
    assert off == "vllm_importance_sampling_mode='token_mask' has no effect: use_vllm is False"
    names = dict(vllm_importance_sampling_mode="token_mask", vllm_importance_sampling_correction=False)
    assert notes(place, **names) == ["vllm_importance_sampling_mode='token_mask' has no effect: "
                                     "vllm_importance_sampling_correction is False"]
    assert notes(place, vllm_importance_sampling_clip_max=2.0) == [
        "vllm_importance_sampling_clip_max=2.0 has no effect: vllm_importance_sampling_mode is not given"]
    line, = refused(place, vllm_importance_sampling_mode="token_mask", rollout_correction="truncated")
    assert line.startswith("rollout_correction='truncated' contradicts vllm_importance_sampling_mode=token_mask")


@pytest.mark.parametrize("keys, line", [
    # 8 completions a rank * 1 rank * 2 = 16 completions a step
    (dict(generation_batch_size=32), "generation_batch_size=32 contradicts per_device_train_batch_size=8 * 1 ranks * "
     "gradient_accumulation_steps=2: completions are used in the step that they are sampled for, and only there; "
     "nearest valid value: 16"),
    (dict(steps_per_generation=4), "steps_per_generation=4 contradicts per_device_train_batch_size=8 * 1 ranks * "
     "gradient_accumulation_steps=2: completions are used in the step that they are sampled for, and only there; "
     "nearest valid value: 2"),
])
def test_completions_of_a_later_step_are_refused(keys: dict, line: str, place: Path) -> None:
    batch = dict(per_device_train_batch_size=8, gradient_accumulation_steps=2)
    assert refused(place, **batch, **keys) == [line]
    assert loaded(place, **batch, generation_batch_size=16, steps_per_generation=2).prompts_per_step == 2
    assert refused(place, **keys)[0].endswith("needs per_device_train_batch_size too; nearest valid value: "
                                              "per_device_train_batch_size=8")
    assert len(refused(place, **batch, generation_batch_size=32, steps_per_generation=4)) == 2
    assert {*keys} <= {*SIZES}


def test_the_rate_ends_at_min_lr_however_it_is_said(place: Path) -> None:
    cosine = dict(lr_scheduler_type="cosine_with_min_lr", learning_rate=1e-4)
    assert loaded(place, **cosine, min_lr="2e-5").min_lr == 2e-5
    assert loaded(place, **cosine, lr_scheduler_kwargs={"min_lr": "2e-5"}).min_lr == 2e-5
    config = loaded(place, **cosine, lr_scheduler_kwargs={"min_lr_rate": 0.25})
    assert config.min_lr == 2.5e-5 and "min_lr_rate=0.25 * learning_rate=0.0001 = min_lr=2.5e-05" in config.notes
    assert loaded(place, **cosine, min_lr_rate=0).min_lr == 0.0
    assert refused(place, **cosine) == [
        "lr_scheduler_type='cosine_with_min_lr' needs min_lr; nearest valid value: min_lr=1e-05"]
    assert refused(place, **cosine, min_lr=2e-4)[0].startswith("min_lr=0.0002 must be at most learning_rate=0.0001")
    assert refused(place, **cosine, lr_scheduler_kwargs={"min_lr_rate": 2})[0].startswith("min_lr_rate=2.0 must lie in")
    assert refused(place, **cosine, min_lr=1e-5, min_lr_rate=0.2)[0].startswith("min_lr=1e-05 contradicts")
    assert notes(place, min_lr=1e-5) == ["min_lr=1e-05 has no effect: lr_scheduler_type is not cosine_with_min_lr"]


def test_a_constant_rate_with_a_warm_up_is_what_transformers_calls_constant_with_warmup(place: Path) -> None:
    there = dict(dataset_name="a/b", warmup_ratio=0.1)
    assert notes(place, **there, lr_scheduler_type="constant_with_warmup") == []
    assert notes(place, **there, lr_scheduler_type="constant") == [
        "lr_scheduler_type='constant' warms up here; that of transformers does not"]
    assert notes(place, warmup_steps=3, warmup_ratio=0.1) == [
        "warmup_ratio=0.1 has no effect: warmup_steps comes first"]


def test_a_run_goes_on_only_from_the_newest_checkpoint_of_its_folder(place: Path) -> None:
    for step in (9, 10):
        (place / "run" / "checkpoints" / f"step-{step}").mkdir(parents=True)
    newest = str(place / "run" / "checkpoints" / "step-10")
    for value in (True, "true", "run", "run/", "run/checkpoints/step-10", newest):
        assert loaded(place, output_dir="run", resume_from_checkpoint=value).resume, value
    assert not loaded(place, output_dir="new", resume_from_checkpoint=False).resume
    line, = refused(place, output_dir="run", resume_from_checkpoint="run/checkpoints/step-9")
    assert line == ("resume_from_checkpoint='run/checkpoints/step-9' must be true, output_dir='run' or its newest "
                    "checkpoint: a run goes on in its own folder, from there; nearest valid value: "
                    "run/checkpoints/step-10")
    assert refused(place, output_dir="new", resume_from_checkpoint="run")[0].endswith("nearest valid value: true")
    assert refused(place, output_dir="new", resume_from_checkpoint=True)[0].startswith("resume=True needs a checkpoint")


def test_a_name_of_the_run_is_for_trackers_that_show_one(place: Path) -> None:
    line = "run_name='first' has no effect: no tracker in report_to shows it"
    assert notes(place, run_name="first") == [line]


def test_a_deepspeed_file_leaves_to_the_options_what_is_auto_in_it(place: Path) -> None:
    config = loaded(place, deepspeed="zero3.json")
    assert config.deepspeed == {"zero_optimization": {"stage": 3, "overlap_comm": True}}
    assert config.notes == (
        "deepspeed='zero3.json' leaves to the options here: fp16, bf16, optimizer.params.lr, optimizer.params.betas, "
        "zero_optimization.reduce_bucket_size, gradient_accumulation_steps, gradient_clipping, train_batch_size, "
        "train_micro_batch_size_per_gpu",)


@pytest.mark.parametrize("content, words", [
    ('{"gradient_clipping": 1.0}', "is set by the option max_grad_norm"),
    ('{"bf16": {"enabled": true}}', "is set by the option torch_dtype"),
    ('{"bf16": {"enabled": false}}', "is set by the option torch_dtype"),
    ('{"optimizer": {"type": "AdamW", "params": {"lr": 1e-5}}}', "is set by the option learning_rate"),
    ('{"optimizer": {"type": "Lion", "params": {"lr": "auto"}}}', "is set by the option learning_rate"),
    ('{"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}', "it needs another AdamW"),
    ('{"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}}}', "the option lr_scheduler_type"),
    ('{"zero_optimization": {"stage": 2}}', "contradicts stage 2 of the option deepspeed"),
    ('{"fp16": {"enabled": true}}', "is set by the option torch_dtype"),
    ("[1]", "must hold a mapping, not a list"), ("{", "or a JSON file that holds one, but Expecting property name"),
    ('{"a": 1, "a": 2}', "the key 'a' comes twice"), ("", "but Expecting value"),
    ("[" * 10**5, "but maximum recursion"),
])
def test_the_rest_of_a_deepspeed_file_is_checked_as_a_mapping_is(content: str, words: str, place: Path) -> None:
    (place / "ds.json").write_text(content)
    line, = refused(place, deepspeed="ds.json")
    assert words in line and line.startswith(("deepspeed=", "zero_stage="))


def test_all_that_is_wrong_in_a_deepspeed_file_is_told_at_once(place: Path) -> None:
    (place / "ds.json").write_text(
        '{"gradient_clipping": 1, "scheduler": {"type": "WarmupLR"}, "data_types": {"a": 1}, "steps_per_print": 0,'
        ' "zero_optimization": {"stage": 1, "zenflow": {"a": 1}}}')
    assert [line[:40] for line in refused(place, deepspeed="ds.json", use_dora=True)] == [
        "use_dora=True is not offered: adapters a", "deepspeed={'gradient_clipping': 1} is se",
        "deepspeed={'scheduler': {'type': 'Warmup", "deepspeed={'steps_per_print': 0} must ha",
        "deepspeed={'data_types': {'a': 1}} has a", "zero_stage=3 contradicts stage 1 of the ",
        "deepspeed={'zero_optimization': {'zenflo"]


def test_what_a_deepspeed_file_switches_off_is_not_there(place: Path) -> None:
    (place / "ds.json").write_text('{"fp16": {"enabled": false}, "zero_optimization": {"stage": "auto"}}')
    assert loaded(place, deepspeed="ds.json").deepspeed == {}
    assert "No such file" in refused(place, deepspeed="none.json")[0]


def test_no_terminal_obeys_a_deepspeed_file(place: Path) -> None:
    (place / "ds.json").write_text('{"\\u001b[31m": "auto"}')
    assert loaded(place, deepspeed="ds.json").notes == (
        "deepspeed='ds.json' leaves to the options here: \\x1b[31m",)
