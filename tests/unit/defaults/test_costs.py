"""How many parameters the models have, by which times, disk and downloads are reckoned, and which are gated."""

from defaults.reader import Row, check

CARD = "the model's page on the Hub: the parameters of its weights, rounded"
GATED = "the model's page on the Hub: a licence to be accepted"
PARAMETERS = {
    "gemma-2-2b-it": 2.61e9,
    "gemma-3-12b-it": 12.2e9,
    "llama2-7b": 6.74e9,
    "llama2-7b-chat": 6.74e9,
    "llama2-13b": 13.0e9,
    "llama3-8b-instruct": 8.03e9,
    "llama3.1-8b": 8.03e9,
    "llama3.1-8b-instruct": 8.03e9,
    "mistral-7b-v0.3": 7.25e9,
    "phi-4-mini-instruct": 3.84e9,
    "qwen2.5-0.5b-instruct": 4.94e8,
    "qwen2.5-7b": 7.62e9,
    "qwen2.5-7b-instruct": 7.62e9,
    "qwen2.5-32b-instruct": 32.8e9,
    "qwen3-8b": 8.19e9,
    "smollm2-360m-instruct": 3.62e8,
}
ROWS: list[Row] = [
    *((f"models/{model}", "parameters", count, CARD) for model, count in PARAMETERS.items()),
    *((f"models/{model}", "gated", True, GATED) for model in PARAMETERS if model.startswith(("llama", "gemma"))),
]


def test_parameters_and_gates():
    check(ROWS)
