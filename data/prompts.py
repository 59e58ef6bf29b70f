"""The words around a problem: one template, eight worked examples, and the strings that end a completion.

A base model follows no instructions, it continues text. So the prompt is a document of solved problems that stops where
the next solution starts, and the examples show the format that we want. They are written for this project, in the style
of GSM8K; none is taken from it.
"""

from collections.abc import Iterable

from data.example import Prompt

TEMPLATE = "Question: {question}\nSolution: Let's think step by step."
COMPLETION = " {reasoning}\n#### The final answer is {final_answer}"
SEPARATOR = "\n\n"

# After its answer a base model goes on to invent the next problem: in our words, or as in a chat it has read.
STOP_STRINGS = ["\nQuestion:", "\nQ:", "\nHuman:"]

# (question, reasoning, final answer): from two steps to four, with division, percentages, a fraction and a comma.
EXEMPLARS = [
    ("Mira picks 14 apples in the morning and twice as many in the afternoon. How many apples does she pick?",
     "In the afternoon Mira picks 14 * 2 = 28 apples.\nOver the day she picks 14 + 28 = 42 apples.",
     "42"),
    ("A baker fills 9 trays with 12 rolls each. He sells 84 rolls and shares the rest equally among 8 neighbors. "
     "How many rolls does each neighbor get?",
     "The baker makes 9 * 12 = 108 rolls.\nAfter the sale 108 - 84 = 24 rolls are left.\n"
     "Each neighbor gets 24 / 8 = 3 rolls.",
     "3"),
    ("Tomas earns $18 an hour and works 6 hours a day, 5 days a week. How much does he earn in 4 weeks?",
     "In a day Tomas earns 18 * 6 = $108.\nIn a week he earns 108 * 5 = $540.\n"
     "In 4 weeks he earns 540 * 4 = $2160.",
     "2160"),
    ("A coat costs $80. In a sale its price drops by 25%, and Ines pays with $100. How much change does she get?",
     "The discount is 80 * 25 / 100 = $20.\nThe sale price is 80 - 20 = $60.\nInes gets 100 - 60 = $40 back.",
     "40"),
    ("Three fourths of the 48 seats in a bus are taken. At the next stop 10 people get off and 4 get on. "
     "How many people are on the bus then?",
     "At first 48 * 3 / 4 = 36 people are on the bus.\nAfter 10 get off there are 36 - 10 = 26 people.\n"
     "After 4 get on there are 26 + 4 = 30 people.",
     "30"),
    ("Omar is 5 years older than Lena, and Lena is half as old as Petra. Petra is 34. "
     "How old will Omar be in 3 years?",
     "Lena is 34 / 2 = 17 years old.\nOmar is 17 + 5 = 22 years old.\nIn 3 years Omar will be 22 + 3 = 25.",
     "25"),
    ("A tank holds 600 liters of water and is one third full. A pump adds 16 liters a minute. "
     "How many minutes does it take to fill the tank?",
     "The tank already holds 600 / 3 = 200 liters.\nIt needs 600 - 200 = 400 liters more.\n"
     "The pump takes 400 / 16 = 25 minutes.",
     "25"),
    ("A school orders 45 desks at $64 each and 90 chairs at $23 each. Delivery costs $150. What is the total bill?",
     "The desks cost 45 * 64 = $2880.\nThe chairs cost 90 * 23 = $2070.\n"
     "The furniture costs 2880 + 2070 = $4950.\nWith delivery the bill is 4950 + 150 = $5100.",
     "5100"),
]


def build_prompt(question: str, num_shots: int = 0) -> str:
    """The text that the policy continues: `num_shots` solved examples, then the question and the start of a solution.

    It ends in "step by step." without a space: the completion starts with one. ValueError unless 0 <= num_shots <= 8.
    """
    check_num_shots(num_shots)
    # Always the first ones, in the same order: so all prompts of a run share one prefix.
    shots = [TEMPLATE.format(question=shot) + COMPLETION.format(reasoning=reasoning, final_answer=final_answer)
             for shot, reasoning, final_answer in EXEMPLARS[:num_shots]]
    return SEPARATOR.join([*shots, TEMPLATE.format(question=question)])


def default_stop_strings(prompts: Iterable[Prompt]) -> list[str]:
    """STOP_STRINGS where every prompt ends as our template does; what ends a ready prompt's completion, others know."""
    ours = TEMPLATE.rpartition("}")[2]
    return STOP_STRINGS if all(isinstance(prompt, str) and prompt.endswith(ours) for prompt in prompts) else []


def check_num_shots(num_shots: int) -> None:
    """Refuse with ValueError a number of examples that we do not have."""
    if not 0 <= num_shots <= len(EXEMPLARS):
        nearest = min(max(num_shots, 0), len(EXEMPLARS))
        raise ValueError(f"num_shots={num_shots}: must be from 0 to {len(EXEMPLARS)}; nearest valid value: {nearest}")
