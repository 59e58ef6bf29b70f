"""What the doctor asks of the chat template: is it used, and how do its prompts and answers end?"""

from data.conversation import is_continued
from data.example import Example
from data.prompt_ids import end_of_turn
from data.prompts import default_stop_strings
from grpo.doctor.finding import Finding, judge
from grpo.run.parts import Run

THOUGHT = "<think>"
TAIL = 40  # characters of a prompt's end


def chat_template(run: Run, examples: list[Example]) -> Finding:
    """Is a template there that nobody uses, or used and not as a reward may expect?"""
    tokenizer, encoded = run.tokenizer, [run.prompt_ids(example) for example in examples]
    if isinstance(examples[0].prompt, str):
        there = tokenizer.chat_template is not None
        # A text that was rendered before has the template's tokens in it. Our own is a document, for base models too.
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        rendered = any(special & set(ids[1:]) for ids in encoded)
        ours = default_stop_strings(example.prompt for example in examples)
        twice = any(ids[:2] == [tokenizer.bos_token_id] * 2 for ids in encoded)
        doubt = there and run.config.apply_chat_template == "auto" and not rendered and not ours
        return judge("chat template", f"{'there, and not used' if there else 'none'}: the prompts are texts",
                     warn=f"prompts without {tokenizer.bos_token}, which the tokenizer puts in front of them" if twice
                     else "apply_chat_template=true; or false, which says that texts are meant" if doubt else "")
    ends = tokenizer.decode(encoded[0])[-TAIL:]
    unknown = [name for name in run.config.chat_template_kwargs or {} if name not in str(tokenizer.chat_template)]
    begun = ends.rstrip().endswith(THOUGHT) and not is_continued(examples[0].prompt)
    return judge("chat template", f"used: a prompt ends in {ends!r}",
                 warn=f"chat_template_kwargs without {', '.join(unknown)}, which the template does not name" if unknown
                 else f"rewards that do not look for {THOUGHT}: the prompt holds it, not the completion; or "
                 "chat_template_kwargs={enable_thinking: false}" if begun else "")


def ends_turn(run: Run) -> bool:
    """Whether a token ends an answer, so that a policy which knows the template stops by itself."""
    prompt = run.train_examples[0].prompt
    return isinstance(prompt, str) or bool(end_of_turn(run.tokenizer, prompt, run.config.chat_template_kwargs))


def what_ends(run: Run) -> str:
    """What to set where completions do not end."""
    if isinstance(run.train_examples[0].prompt, list):
        return "chat_template=the one that the model was trained with"
    ready = not default_stop_strings(example.prompt for example in run.train_examples)
    unused = ready and run.tokenizer.chat_template is not None
    return "apply_chat_template=true" if unused else "num_shots that show how to end"
