"""Checks of a run before its first step: is anything about it known to go wrong?

The short form runs before every run. `train.py --doctor` also asks the user's own rewards, and then tries a step, see
`grpo/doctor/trial.py`.
"""

import json
import platform
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from grpo.config import Config
from grpo.distributed import free_bytes, gather_objects, rank
from grpo.doctor.finding import Finding, agree, failures, judge
from grpo.doctor.problems import of_problems, sample
from grpo.memory.concurrency import slot_bytes
from grpo.memory.ledger import size
from grpo.options.option import options
from grpo.run.parts import Run
from grpo.saving import checkpoint
from grpo.saving.content import fingerprint
from grpo.schedule import learning_rate
from grpo.trainer.policy import REFERENCE, TRAINED

LONG_RUN = 100  # steps that nobody wants to lose
EVEN = 0.8  # the least free memory of a rank, as a share of the most


def admit(run: Run) -> Run:
    """The short form: the run, with every warning in its start-up block. Collective: every rank, once.

    Raises:
        ValueError: something about it is known to fail.
    """
    findings = look(run, own_rewards=False)
    failed = failures(findings)
    if failed:
        more = f" ({len(failed) - 1} more: see --doctor)" if failed[1:] else ""
        raise ValueError(f"{failed[0].check}: {failed[0].words}; cure: {failed[0].cure}{more}")
    line = f"checks     checked {len(findings)} things; --doctor tries a step as well"
    return replace(run, announcement=[*run.announcement, line, *(str(one) for one in findings if one.level == "warn")])


def look(run: Run, *, own_rewards: bool) -> list[Finding]:
    """Every check that needs neither a completion nor a forward. Collective: every rank, once.

    `own_rewards` calls the user's own rewards too, which can be slow, cost money, or count their calls.
    """
    findings = [*of_problems(run, own_rewards=own_rewards), *weights(run), schedule(run), memory(run)]
    if rank() == 0:  # which alone writes
        findings += disk(run)
    return agree(findings + of_ranks(gather_objects(facts(run))))


def weights(run: Run) -> list[Finding]:
    """Is what should be trained trained, and nothing else; is the reference the policy of step 0?"""
    policy, adapter = run.engine.policy, run.config.adapter_name_or_path
    named = dict(policy.model.named_parameters(remove_duplicate=False))
    copied = {} if policy.frozen_model is None else dict(policy.frozen_model.named_parameters(remove_duplicate=False))
    trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    stray = [name for name in trained if run.peft_config is not None and not _is_of_adapter(name)]
    stray += [name for name, parameter in copied.items() if parameter.requires_grad]
    broken = [name for name, parameter in (named | copied).items() if not _is_finite(parameter)]
    fresh = run.first_step == 0  # a resumed run has left its start
    moved = [name for name in trained if fresh and not _is_start(name, named, copied)]
    start = f"the adapter {adapter}" if adapter else "the base" if run.peft_config else "a copy of the model"
    drops = dropout_cure(run) if run.config.beta > 0 else ""
    start += " without the dropout it is trained with, so the KL begins above 0" if drops else ""
    return [
        judge("trained", f"{run.engine.num_trained():,} parameters, {len(trained)} tensors with a gradient"
              + _first(stray, "not to be trained"),
              fail="requires_grad=False for all but LoRA and lora_modules_to_save" if stray
              else "lora_target_modules or lora_modules_to_save that the model has" if not trained else ""),
        judge("finite", f"{len(named)} tensors looked through" + _first(broken, "not finite"),
              fail="model_name_or_path=weights without NaN and infinity" if broken else ""),
        judge("reference", (start if run.config.beta > 0 else "none, as beta is 0") + _first(moved, "not equal to it"),
              fail="a reference that is what training starts from" if moved and run.config.beta > 0 else "",
              warn=drops),
    ]


def dropout_cure(run: Run) -> str:
    """What to set where a start adapter drops in the policy alone; a fresh one adds nothing yet, dropped or not."""
    drops = run.config.adapter_name_or_path and run.peft_config.lora_dropout > 0
    return "lora_dropout: 0 in its adapter_config.json" if drops else ""


def _first(names: list[str], what: str) -> str:
    return f"; {what}: {len(names)}, first {names[0]}" if names else ""


def _is_of_adapter(name: str) -> bool:
    return f".{REFERENCE}." not in name and ("lora_" in name or f".modules_to_save.{TRAINED}." in name)


def shard(parameter: nn.Parameter) -> torch.Tensor:
    """This rank's shard of a parameter. Equal shapes are sharded in the same way, so shards compare as wholes do."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter.detach()
    part = parameter.ds_tensor.detach()
    return part[: max(parameter.ds_numel - rank() * part.numel(), 0)]  # the last shard ends in padding


def _is_finite(parameter: nn.Parameter) -> bool:
    packed = getattr(parameter, "quant_state", None)  # the packed bytes are no numbers, their scales are
    return bool((shard(parameter) if packed is None else packed.state2.absmax).isfinite().all())


def _is_start(name: str, named: dict[str, nn.Parameter], copied: dict[str, nn.Parameter]) -> bool:
    """Does a trained tensor hold what the reference answers with?"""
    if copied:
        return torch.equal(shard(named[name]), shard(copied[name]))
    reference = name.replace(f".{TRAINED}.", f".{REFERENCE}.")
    if reference not in named:  # a fresh adapter: the base answers, to which a branch adds nothing
        if "lora_" in name:
            return "lora_A" in name or not shard(named[name]).any()
        reference = name.replace(f".modules_to_save.{TRAINED}.", ".original_module.")
    return reference in named and torch.equal(shard(named[name]), shard(named[reference]))


def schedule(run: Run) -> Finding:
    """Does the learning rate move anything, over a run of what length?"""
    config, total = run.config, run.num_steps
    rates = [learning_rate(step, peak=config.learning_rate, scheduler=config.lr_scheduler_type,
                           warmup_ratio=config.warmup_ratio, warmup_steps=config.warmup_steps, min_lr=config.min_lr,
                           total=total) for step in range(total)]
    epochs = total * config.prompts_per_step / len(run.train_examples)
    reference = f"beta {config.beta:g}" if config.beta else "beta 0: no reference, and no KL is measured"
    # What AdamW adds is computed in float32.
    dead = not torch.tensor(max(rates), dtype=torch.float32).item()
    return judge("schedule", f"{total:,} steps, {epochs:.3g} epochs; rate {rates[0]:.3g} first, {max(rates):.3g} at "
                 f"most, {rates[-1]:.3g} last; {reference}",
                 fail="learning_rate=1e-5: this one is 0 in float32" if dead else "")


def memory(run: Run) -> Finding:
    """Does a step fit into the memory that is free now, before any of it is allocated?"""
    config, ledger, free = run.config, run.ledger, free_bytes(run.device)
    slots = run.num_slots * slot_bytes(run.decoder, config.max_completion_length)
    coming = ledger.gradients() + ledger.optimizer() + (slots if config.rollout_keep else 0)
    longest = max(len(run.prompt_ids(example)) for example in sample(run))
    checkpointing = config.gradient_checkpointing == "true"
    row, least = (ledger.update(num_tokens, checkpointing=checkpointing)
                  for num_tokens in (config.micro_batch_tokens, longest + config.max_completion_length))
    return judge("memory", f"a step adds up to {size(max(coming + row, slots))} by formula ({size(slots)} of rollout "
                 f"slots, {size(row)} of a packed batch of {config.micro_batch_tokens:,} tokens); "
                 f"{size(free)} are free",
                 warn=f"micro_batch_tokens={config.micro_batch_tokens // 2}" if coming + row > free else "",
                 fail=f"rollout_slots={max(run.num_slots // 2, 1)}, rollout_weights=nf4 or a shorter "
                 "max_completion_length" if max(coming + least, slots) > free else "")


def num_checkpoints(run: Run) -> int:
    """How many checkpoints the run will have on the disk at once: the limit, and the one being written."""
    number = run.num_steps // run.config.save_steps if run.config.save_strategy == "steps" else 0
    if run.config.save_strategy == "epoch":
        number = int(run.num_steps * run.config.prompts_per_step / len(run.train_examples))
    return number if run.config.save_total_limit is None else min(number, run.config.save_total_limit + 1)


def disk(run: Run) -> list[Finding]:
    """Can output_dir be written, does the run fit on its disk, and would an accident cost it all?"""
    number, trained = num_checkpoints(run), run.engine.num_trained()
    export = trained * run.ledger.dtype.itemsize
    each = 12 * trained + export  # a float32 master and two moments, and the adapter
    needed = number * each + export
    folder = next(path for path in (run.output_dir, *run.output_dir.absolute().parents) if path.exists())
    lost = "save_strategy=steps with save_steps=20" if number == 0 and run.num_steps >= LONG_RUN else ""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(1))
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return [judge("disk", f"{folder} cannot be written: {error.strerror}", fail="output_dir=a folder of yours")]
    return [
        judge("checkpoints", f"{number:,} in {run.num_steps:,} steps", warn=lost),
        judge("disk", f"{number:,} checkpoints of {size(each)} and an export of {size(export)} take {size(needed)}; "
              f"{size(free)} are free in {folder}",
              fail="output_dir on a larger disk, or fewer checkpoints by save_total_limit" if needed > free else ""),
    ]


def facts(run: Run) -> dict[str, Any]:
    """What ranks have to have in common, and their free memory."""
    versions = [f"{name} {version}" for name, version in checkpoint.versions().items()]
    in_force = {name: getattr(run.config, name) for name in options(Config)}
    return {
        "versions": ", ".join([f"python {platform.python_version()}", *versions]),
        "options": fingerprint([json.dumps(in_force, sort_keys=True)])[:12],
        "data": fingerprint(example.prompt_text for example in (*run.train_examples, *run.test_examples))[:12],
        "free": free_bytes(run.device),
    }


def of_ranks(everyone: list[dict[str, Any]]) -> list[Finding]:
    """Are the ranks alike? `everyone` holds each rank's facts."""
    cures = {"versions": "the same packages on every node", "options": "the same recipe on every node",
             "data": "the same train_dataset_id_or_path and test_dataset_id_or_path on every node"}
    findings = []
    for name, cure in cures.items():
        (usual, _), *others = Counter(one[name] for one in everyone).most_common()
        differ = [f"rank {number} has {one[name]}" for number, one in enumerate(everyone) if one[name] != usual]
        alike = f"{usual} on {len(everyone) - len(differ)} of {len(everyone)} ranks"
        findings.append(judge(f"same {name}", "; ".join([alike, *differ]), fail=cure if others else ""))
    most = max(one["free"] for one in everyone)
    short = [f"rank {number} has {size(one['free'])}" for number, one in enumerate(everyone)
             if one["free"] < EVEN * most]
    findings.append(judge("even memory", "; ".join([f"{size(most)} free at most", *short]),
                          warn="a node where nothing else runs: the rank with least decides" if short else ""))
    return findings
