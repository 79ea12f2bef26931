"""Write the model card from the reports of evaluate.py.

Shape and size are read from the model folder that the card is written to.

python training/card.py test.json hard.json --minutes 110 --out backends/embedded/mini/README.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

TEXT = """---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# stratagem-mini

A Llama of {parameters:.2f} M parameters that solves multi-step word problems in worked steps, says whether a step
is right, and says whether starting over would do better. It ships with Stratagem so that inference-time strategies
can be run, tested and measured with a real language model on any machine, without a GPU or a download. Apache-2.0.

**Limits.** It knows only what `stratagem.bench.gym` generates: word problems (seven families, 2-5 steps, integers
under 1,000) and questions that calls of tools answer (seven families, fifteen tools with a few names each). Other
questions get text of the same kind, and wrong answers. Its judges are trained on its own solutions of word problems
at the temperature below, not on other models' text.

**Known weakness.** The step judge ranks well and says too low a probability (its ECE below): compare its scores, do
not read them as shares. The test split was made easier twice, until one of 16 samples was right nine times in ten
on the split `dev`: 2-5 steps; then fewer steps, and fewer questions of relations and of shuffled statements.

## Architecture
`LlamaForCausalLM`, hidden {hidden_size}, {num_hidden_layers} layers, {num_attention_heads} query and
{num_key_value_heads} key/value heads of {head_dim}, feed-forward {intermediate_size}, tied embeddings, RoPE theta
{rope_theta:,.0f}, {max_position_embeddings:,} positions (trained on under 700), float16 weights
({megabytes:.1f} MB). Byte-level BPE of {vocab_size:,} tokens: any UTF-8 text round-trips, every digit and newline
is one token.

## Use
Chat: `<|user|>question<|end|><|assistant|>`; the template is in `tokenizer_config.json`. A question, or a question
and "Think step by step.", gets one step a line and "The answer is N."; with "Give only the answer." only the last
line. Judges, read off the next token after `<|assistant|>`:
- step: a user turn "Is the last step right? Answer yes or no." after a solution up to the step: P(yes);
- restart (Manvi et al., 2024, arXiv 2410.02725): a user turn "Would you do better if you started over? Answer yes
  or no." after a whole or partial solution: s = P(no) / (P(no) + P(yes)).

## Measured
On problems never seen (question hashes disjoint between splits), temperature {temperature}, {samples} samples each,
with 95 % bootstrap intervals of the gain over one sample. `hard` has 6-8 steps, more than any in training.

{table}

AUC is over the model's own samples; "within" compares samples of the same problem only, which is what picking the
best of n needs. Accuracy by family and number of steps, one sample, test: {families}.

{tools}## Training
From scratch by `training/` of this repository, about {minutes} minutes in all on 2 CPU cores that other programs
used too: supervised on generated problems and on right and wrong steps side by side, the wrong ones made up or
written by the model itself on fresh training problems and graded by the generator; every token of such a pair is
marked for the layer below the last. The last was trained on its own first, mainly for the restart token. Tools came
last, while what it knew of words was held by what its old self said, and were learned better in five minutes on a
GPU. Commands and reasons: `training/README.md`. Measured by `training/evaluate.py`.
"""


TOOLS = """## Tools
The gym's tool worlds: a system turn with an instruction of `stratagem.core.prompts` and a line for each tool, then
the question. It writes calls in the plan notation (`docs/tools.md`) and reads what they gave.
On {problems} unseen worlds, greedy, with tools that take a tenth of a second (`benchmarks/agents.py`):

| | success | tokens | seconds |
|---|---|---|---|
{rows}

"""


def tools(measured: dict[str, Any]) -> str:
    """The section on tools, from what `benchmarks/agents.py --out` wrote."""
    rows = [
        f"| {name} | {mean(one['right']):.3f} | {mean(one['tokens']):.0f} | {mean(one['seconds']):.2f} |"
        for name, one in measured.items()
    ]
    problems = len(next(iter(measured.values()))["right"])
    return TOOLS.format(problems=problems, rows="\n".join(rows))


def share(value: float) -> str:
    return f"{value:.3f}"


def rows(reports: list[dict[str, Any]]) -> str:
    """A table with one column per split."""
    n = reports[0]["samples"]
    lines = ["| | " + " | ".join(report["split"] for report in reports) + " |"]
    lines.append("|---|" + "---|" * len(reports))

    def add(name: str, values: list[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(values) + " |")

    add("problems", [str(report["problems"]) for report in reports])
    for key in ("pass@1", "greedy", "direct", f"pass@{n}"):
        add(key if key != "direct" else "answer only, greedy", [share(report[key]) for report in reports])
    gains = [report["majority gain"] for report in reports]
    values = [report[f"majority@{n}"] for report in reports]
    add(f"majority@{n}", [f"{v:.3f} ({a:+.3f} to {b:+.3f})" for v, (a, b) in zip(values, gains, strict=True)])
    for key in reports[0]:
        if key.startswith("best-of"):
            scored = [report[key] for report in reports]
            add(key, [f"{s['accuracy']:.3f} ({s['gain'][0]:+.3f} to {s['gain'][1]:+.3f})" for s in scored])
            add(
                f"AUC of {key.split(' by ')[1]}, all / within",
                [f"{s['auc']:.3f} / {s['auc within a problem']:.3f}" for s in scored],
            )
    for judge in ("step judge", "restart judge"):
        add(
            f"{judge}: AUC / ECE",
            [f"{report[judge]['auc']:.3f} / {report[judge]['ece']:.3f}" for report in reports],
        )
    add(
        "right step above wrong one, same lines before",
        [share(r["step judge"]["right before wrong"]) for r in reports],
    )
    return "\n".join(lines)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("reports", type=Path, nargs="+")
    p.add_argument("--minutes", type=int, required=True, help="training time, all stages")
    p.add_argument("--agents", type=Path, help="what benchmarks/agents.py --out wrote")
    p.add_argument("--out", type=Path, required=True)
    arguments = p.parse_args()
    loaded = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.reports]
    shape = json.loads((arguments.out.parent / "config.json").read_text(encoding="utf-8"))
    size = (arguments.out.parent / "model.safetensors").stat().st_size
    families = loaded[0]["by family and steps"]
    card = TEXT.format(
        temperature=loaded[0]["temperature"],
        samples=loaded[0]["samples"],
        table=rows(loaded),
        families=", ".join(f"{name} {value:.2f}" for name, value in sorted(families.items())),
        minutes=arguments.minutes,
        tools=tools(json.loads(arguments.agents.read_text(encoding="utf-8"))) if arguments.agents else "",
        parameters=size / 2e6,
        megabytes=size / 1e6,
        **shape,
    )
    arguments.out.write_text(card, encoding="utf-8")
