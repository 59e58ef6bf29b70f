"""Make the tiny base models that the small recipes start from: `python -m data.warmup [--task programs] [--steps N]`.

GRPO only makes more frequent what a model already does sometimes, so the base model has to be right some of the time.
This stands for pretraining: a Qwen2 of 0.8 million parameters learns from text of mixed quality. Some word problems
are solved in the format that the rewards ask for, some in another one, and some with wrong arithmetic; some programs
have no fence, and some have mistakes.

The defaults made the shipped folder data/tiny_qwen2, in six minutes, and with `--task programs` data/tiny_coder. On one
kind of processor, with the same library versions, the command writes the same bytes again. On others the weights
differ, and the accuracies stay close.
"""

import argparse
import os
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from data import programs
from data.prompts import COMPLETION, build_prompt
from data.wordproblems import NAMES, TEMPLATES, Problem, problems, solve

ENDINGS = [COMPLETION, " {reasoning}\nSo the answer is {final_answer}.", " {reasoning}\n#### {final_answer}"]
# How often each ending comes. Only for every other template is the wanted format the likeliest, so that with greedy
# decoding, too, there is something to learn.
ENDING_WEIGHTS = [(0.65, 0.20, 0.15), (0.15, 0.65, 0.20)]
SLIP_RATE = 0.35  # share of solutions with one wrong result
SLIPS = [-10, -2, -1, 1, 2, 10]

BATCH_SIZE = 64
LEARNING_RATE = 2e-3
NUM_RAMP_STEPS = 50
IGNORED = -100  # transformers leaves this label out of the loss


def words_of_problems() -> list[str]:
    """Texts that hold each word of prompts and answers."""
    texts = [ending.format(reasoning="0.", final_answer="0") for ending in ENDINGS]
    for template in TEMPLATES:
        for name in NAMES:
            problem = Problem(template, name, tuple(numbers[0] for numbers in template.ranges))
            texts += [build_prompt(problem.question), " " + solve(problem)[0]]
    return texts


def build_tokenizer(texts: list[str]) -> Qwen2Tokenizer:
    """Qwen2's byte-level BPE, trained until each word of the texts is one token; digits stay apart, as in Qwen2."""
    return Qwen2Tokenizer().train_new_from_iterator(texts, vocab_size=1000)  # fewer: nothing is left to merge


def build_model(tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """A random tiny Qwen2; the sides of its projections are multiples of 64, the block of NF4."""
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return Qwen2ForCausalLM(config).float()


def draw_text(problem: Problem, *, rng: random.Random) -> tuple[str, str]:
    """A prompt and a completion of mixed quality for it."""
    slips = [0] * len(problem.template.operators)
    if rng.random() < SLIP_RATE:
        slips[rng.randrange(len(slips))] = rng.choice(SLIPS)
    reasoning, final_answer = solve(problem, slips=slips)
    weights = ENDING_WEIGHTS[TEMPLATES.index(problem.template) % 2]
    ending = rng.choices(ENDINGS, weights)[0]
    return build_prompt(problem.question), ending.format(reasoning=reasoning, final_answer=final_answer)


def solved_problems(*, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Endless word problems with answers."""
    for problem in problems("train", rng=rng):
        yield draw_text(problem, rng=rng)


def written_programs(*, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Endless programming problems with answers."""
    for problem in programs.problems("train", rng=rng):
        yield problem.prompt, programs.mixed_answer(problem, rng=rng)


# The folder of each task, and where its texts come from.
TASKS = {"wordproblems": ("tiny_qwen2", words_of_problems, solved_problems),
         "programs": ("tiny_coder", programs.every_word, written_programs)}


def collate(texts: list[tuple[str, str]], *, tokenizer: Qwen2Tokenizer) -> dict[str, torch.Tensor]:
    """A batch of N texts, each ended by EOS, padded on the right to S tokens; only the completions have labels."""
    prompts = [tokenizer.encode(prompt) for prompt, _ in texts]
    completions = [tokenizer.encode(completion) + [tokenizer.eos_token_id] for _, completion in texts]
    width = max(len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True))
    token_NS = torch.full((len(texts), width), tokenizer.pad_token_id)
    label_NS = torch.full((len(texts), width), IGNORED)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(completion)
        token_NS[row, :end] = torch.tensor(prompt + completion)
        label_NS[row, len(prompt) : end] = torch.tensor(completion)
    return {"input_ids": token_NS, "labels": label_NS}  # causal: no text sees the padding to its right


def train(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, stream: Iterator[tuple[str, str]], *, steps: int
) -> None:
    """Next-token training in float32 on the train split: AdamW, a linear ramp, then a cosine down to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    ramp = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / NUM_RAMP_STEPS, total_iters=NUM_RAMP_STEPS)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, steps - NUM_RAMP_STEPS))
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [ramp, cosine], milestones=[NUM_RAMP_STEPS])
    progress = tqdm(range(steps), desc="warm-up", unit="step")
    for _ in progress:
        texts = [next(stream) for _ in range(BATCH_SIZE)]
        loss = model(**collate(texts, tokenizer=tokenizer)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")


def main() -> None:
    """Read the command line, train, and write the model folder."""
    parser = argparse.ArgumentParser(description="Make the tiny base model of a small recipe.")
    parser.add_argument("--task", choices=TASKS, default="wordproblems", help="what the model learns")
    parser.add_argument("--output_dir", type=Path, help="default: where the recipe expects it")
    parser.add_argument("--steps", type=int, default=1200, help="optimizer steps of 64 texts each")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the texts")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"steps={options.steps}: must be at least 1; nearest valid value: 1")

    torch.set_num_threads(1)  # how a sum is split over threads decides how it is rounded
    torch.manual_seed(options.seed)
    name, words, stream = TASKS[options.task]
    folder = options.output_dir or Path(__file__).parent / name
    tokenizer = build_tokenizer(words())
    model = build_model(tokenizer)
    train(model, tokenizer, stream(rng=random.Random(options.seed)), steps=options.steps)

    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = os.path.getsize(folder / "model.safetensors")
    print(f"{folder}: {model.num_parameters():,} parameters, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
