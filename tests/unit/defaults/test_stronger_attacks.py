"""Stronger attacks on refusals: several directions, edits without a direction, a second look at trials.

"their code" is pralab/som-refusal-directions, of Piras et al. 2025 (arXiv 2511.08379).
"""

from __future__ import annotations

from defaults.reader import Row, check

NAME = "ours: a name, and a job's expected time in the stage of answering"
VARIANT = "ours: what this is a variant of"
LATER = "ours: as refusal_direction_later"
OWN_LOSS = "ours: an optimisation of our own"
OFF = "ours: off unless a step asks for it"
MAP = "their code, som.py"

COUNTS = {"harmful_directions": 200, "harmless_directions": 200, "harmful_search": 100, "harmless_search": 100}
SOM = {"rows": 4, "columns": 4, "iterations": 10_000, "learning_rate": 0.01, "sigma": 0.33}

STEPS: list[Row] = [
    ("steps/principal_directions", "like", "heretic", VARIANT),
    ("steps/principal_directions", "settings.directions.methods", ["principal"], "ours: the method"),
    ("steps/principal_directions", "settings.directions.most", 4, "ours: a few, of which a search chooses"),
    ("steps/principal_directions", "settings.edit.adapter_rank", None, "ours: no adapter of low rank is the edit"),
    ("steps/principal_directions_later", "like", "principal_directions", VARIANT),
    ("steps/principal_directions_later", "settings.prompts.after", 32, LATER),
    ("steps/som_directions", "like", "heretic", VARIANT),
    ("steps/som_directions", "settings.directions.methods", ["som"], "Piras et al., Sec. 3"),
    ("steps/som_directions", "settings.directions.most", 5, "their code, search_space of optuna_search.py"),
    ("steps/som_directions", "settings.directions.som", SOM, "their code: a grid of 4 by 4, the rest as som.py has it"),
    ("steps/som_directions", "settings.edit.adapter_rank", None, "ours: no adapter of low rank is the edit"),
    ("steps/som_directions_later", "like", "som_directions", VARIANT),
    ("steps/som_directions_later", "settings.prompts.after", 32, LATER),
    ("steps/gradient_edit", "", {"kind": "gradient_edit", "cost": 0.5}, NAME),
    ("steps/gradient_edit", "settings.prompts.harmful", "harmful_behaviors", "HERETIC, bad_prompts"),
    ("steps/gradient_edit", "settings.prompts.harmless", "harmless_alpaca", "HERETIC, good_prompts"),
    (
        "steps/gradient_edit",
        "settings.prompts.counts",
        COUNTS,
        "ours: half of HERETIC's for directions, all for trials",
    ),
    ("steps/gradient_edit", "settings.dtype", "bfloat16", 'HERETIC, dtypes: "auto", the checkpoint\'s own'),
    ("steps/gradient_edit", "settings.components", ["attention", "mlp"], "HERETIC: attn.o_proj and mlp.down_proj"),
    *(
        ("steps/gradient_edit", f"settings.{key}", value, OWN_LOSS)
        for key, value in {
            "rank": 4,
            "rounds": 4,
            "steps": 50,
            "batch_size": 8,
            "learning_rate": 0.1,
            "refusal_tokens": 16,
            "kl_at_most": 0.05,
            "kl_weight": 10.0,
        }.items()
    ),
    ("steps/gradient_edit", "settings.max_new_tokens", 100, "HERETIC, max_response_length"),
    ("steps/gradient_edit", "settings.rule", "heretic", "HERETIC, keyword_markers"),
    ("steps/gradient_edit", "settings.selection.kl_at_most", 0.1, "ours: as heretic, so that the two compare"),
    ("steps/gradient_edit_later", "like", "gradient_edit", VARIANT),
    ("steps/gradient_edit_later", "settings.prompts.after", 32, LATER),
    ("steps/interpolate_leading", "like", "interpolate", VARIANT),
    ("steps/interpolate_leading", "settings.weight", 1.0, "ours: all of these directions"),
    ("steps/interpolate_leading", "settings.rank", 16, "ours: a usual rank of adapters (LoraSettings)"),
    ("steps/heretic_judged", "like", "heretic", VARIANT),
    ("steps/heretic_judged", "settings.selection.judge.kind", "openai", "ours: the judge of StrongREJECT's benchmark"),
    ("steps/heretic_judged", "settings.selection.judge.scale", 100, "ours: the judge of StrongREJECT's benchmark"),
    (
        "steps/heretic_judged",
        "settings.selection.judge.openai.model",
        "gpt-4.1-mini-2025-04-14",
        "ours: the judge of StrongREJECT's benchmark",
    ),
    ("steps/heretic_judged", "settings.selection.criterion", "compliance", "ours: an evasion is no success"),
    ("steps/heretic_judged", "settings.selection.answer_kl_at_most", 0.1, "ours: as much as of the first token"),
]

CLASSES: list[Row] = [
    ("settings steps.interpolate", "rank", None, OFF),
    ("settings SomSettings", "rows", 4, "their code: a grid of 4 by 4 as in its instructions"),
    ("settings SomSettings", "columns", 4, "their code: a grid of 4 by 4 as in its instructions"),
    ("settings SomSettings", "iterations", 10_000, MAP),
    ("settings SomSettings", "learning_rate", 0.01, MAP),
    ("settings SomSettings", "sigma", 0.33, MAP),
    ("settings DirectionSettings", "most", 1, "HERETIC: one direction"),
    ("settings DirectionSettings", "som", {}, "ours: its class's own defaults, above"),
    ("settings SelectionSettings", "judge", None, OFF),
    ("settings SelectionSettings", "criterion", "refusal", "ours: what a refusal classifier tells"),
    ("settings SelectionSettings", "answer_kl_at_most", None, OFF),
    ("settings SelectionSettings", "looked_at", 8, "ours: as many answers again as eight trials have"),
    ("settings GradientEditSettings", "dtype", "bfloat16", 'HERETIC, dtypes: "auto", the checkpoint\'s own'),
    ("settings GradientEditSettings", "quantised", None, "HERETIC, quantization: none"),
    ("settings GradientEditSettings", "components", ["attention", "mlp"], "HERETIC: attn.o_proj and mlp.down_proj"),
    ("settings GradientEditSettings", "rank", 4, OWN_LOSS),
    ("settings GradientEditSettings", "rounds", 4, OWN_LOSS),
    ("settings GradientEditSettings", "steps", 50, OWN_LOSS),
    ("settings GradientEditSettings", "batch_size", 8, OWN_LOSS),
    ("settings GradientEditSettings", "learning_rate", 0.1, OWN_LOSS),
    ("settings GradientEditSettings", "max_grad_norm", 1.0, OWN_LOSS),
    ("settings GradientEditSettings", "refusal_tokens", 16, OWN_LOSS),
    ("settings GradientEditSettings", "kl_at_most", 0.05, OWN_LOSS),
    ("settings GradientEditSettings", "kl_weight", 10.0, OWN_LOSS),
    ("settings GradientEditSettings", "max_new_tokens", 100, "HERETIC, max_response_length"),
    ("settings GradientEditSettings", "rule", "heretic", "HERETIC, keyword_markers"),
    ("settings GradientEditSettings", "", {"selection": {}, "outcome": {}}, "ours: each class's own defaults"),
]

ROWS = STEPS + CLASSES


def test_stronger_attacks():
    check(ROWS)
