"""ASIDE and what it is compared with: Zverev et al. 2025 (arXiv 2503.10566, ICLR 2026), "the paper" in these rows.

"the code" is the authors' repository; run numbers are those that it names as kept, decoded as
config/steps/aside.yaml says. SEP is Zverev et al. 2024 (arXiv 2403.06833).
"""

from defaults.reader import Row, check

ARMS = ("aside", "vanilla", "ise")

# The same in all three arms, of Table 2 where it has one value.
TRAINING: list[Row] = [
    (f"steps/{arm}", f"settings.{key}", value, source)
    for arm in ARMS
    for key, value, source in (
        ("data", "alpaca_cleaned", "the paper, Sec. 4.1 and App. C: cleaned Alpaca"),
        ("training.epochs", 3.0, "the paper, Table 2 (the code's README says 2)"),
        ("training.batch_size", 128, "ours: a value of Table 2 for models that the paper does not train"),
        ("training.micro_batch_size", 4, "ours: a value of Table 2 for models that the paper does not train"),
        ("training.learning_rate", 2e-5, "ours: a value of Table 2 for models that the paper does not train"),
        ("training.warmup_ratio", 0.0, "ours: a value of Table 2 for models that the paper does not train"),
        ("training.weight_decay", 0.0, "the code, fine-tune.py --weight_decay"),
        ("training.betas", [0.9, 0.999], "the code leaves the Hugging Face trainer's AdamW as it is"),
        ("training.eps", 1e-8, "the code leaves the Hugging Face trainer's AdamW as it is"),
        ("training.optimizer", "adamw", "the code leaves the Hugging Face trainer's AdamW as it is"),
        ("training.schedule", "cosine", "the code, fine-tune.py --lr_scheduler_type"),
        ("training.max_grad_norm", 1.0, "the Hugging Face trainer's default, which the code's clipping takes"),
        ("training.loss_on", "all", "the code: every token but padding is learned"),
        ("training.max_tokens", 768, "the code, fine-tune.py --max_length"),
        ("training.packing", False, "the code: one example a row"),
        ("training.gradient_checkpointing", True, "the code: always on"),
        ("training.precision", "bfloat16", "the code: bfloat16 with fp32 master weights"),
        ("training.zero_stage", 3, "the code's DeepSpeed configuration"),
        ("training.offload", False, "ours: the code offloads to the CPU, which 8 cards of 80 GB do not need"),
        ("training.keep_best", True, "the code, --load_best_model_at_end in the README's command"),
        ("training.evaluate_every", "epoch", "the code, --evaluation_strategy in the README's command"),
    )
]

# The runs that were kept, of the grid of Table 2: batch size, micro-batch on 8 GPUs, learning rate, warm-up.
KEPT: list[Row] = [
    (
        f"steps/{arm} on {model}",
        "settings.training",
        {"batch_size": batch, "micro_batch_size": micro, "learning_rate": rate, "warmup_ratio": warmup},
        source,
    )
    for arm, model, batch, micro, rate, warmup, source in (
        ("aside", "llama2-7b", 64, 2, 2e-5, 0.0, "the code: run 6, in the order of the grid of other models"),
        ("aside", "llama2-13b", 128, 2, 2e-5, 0.1, "the code: run 15"),
        ("aside", "llama3.1-8b", 256, 4, 2e-5, 0.1, "the code: run 15_fix, in the order of the grid of other models"),
        ("aside", "qwen2.5-7b", 256, 4, 2e-5, 0.0, "the code: run 14, and the README's command"),
        ("aside", "mistral-7b-v0.3", 256, 4, 5e-6, 0.0, "the code: run 10, in the order of the grid of other models"),
        ("aside", "qwen3-8b", 256, 4, 2e-5, 0.0, "ours: no run is named; that of Qwen2.5-7B"),
        ("vanilla", "llama2-7b", 64, 2, 5e-6, 0.1, "the code: run 19, in the order of the grid of other models"),
        ("vanilla", "llama2-13b", 64, 2, 1e-5, 0.0, "the code: run 20"),
        (
            "vanilla",
            "llama3.1-8b",
            256,
            4,
            5e-6,
            0.1,
            "the code: run 11_fix, read as an index within the method's runs",
        ),
        ("vanilla", "qwen2.5-7b", 64, 2, 5e-6, 0.0, "the code: run 18"),
        ("vanilla", "mistral-7b-v0.3", 64, 2, 1e-6, 0.0, "the code: run 16, in the order of the grid of other models"),
        ("vanilla", "qwen3-8b", 64, 2, 5e-6, 0.0, "ours: no run is named; that of Qwen2.5-7B"),
        ("ise", "llama2-7b", 64, 2, 5e-6, 0.1, "the code: run 35, in the order of the grid of other models"),
        ("ise", "llama2-13b", 64, 2, 1e-5, 0.0, "the code: run 36"),
        ("ise", "llama3.1-8b", 64, 2, 5e-6, 0.0, "the code: run 2_fix, read as an index within the method's runs"),
        ("ise", "qwen2.5-7b", 64, 2, 5e-6, 0.0, "the code: run 34"),
        ("ise", "mistral-7b-v0.3", 256, 4, 5e-6, 0.0, "the code: run 42, in the order of the grid of other models"),
        ("ise", "qwen3-8b", 64, 2, 5e-6, 0.0, "ours: no run is named; that of Qwen2.5-7B"),
    )
]

# What trials vary; which trial is which run is in tests/unit/config/test_grid_trials.py.
GRID: list[Row] = [
    row
    for arm in ARMS
    for row in (
        (f"steps/{arm}", "grid", True, "the code: every combination"),
        (f"steps/{arm}", "space.training.batch_size", [64, 256], "the paper, Table 2"),
        (f"steps/{arm}", "space.training.learning_rate", [1e-6, 5e-6, 1e-5, 2e-5], "the paper, Table 2"),
        (f"steps/{arm}", "space.training.warmup_ratio", [0.0, 0.1], "the paper, Table 2"),
        (f"steps/{arm} on llama2-13b", "space.training.batch_size", [64, 128], "the code: its notebook of runs"),
    )
]

METHOD: list[Row] = [
    *((f"steps/{arm}", "", {"kind": arm, "cost": 1.0}, "ours: the name, and one fine-tuning's time") for arm in ARMS),
    (
        "steps/aside",
        "settings.alpha",
        1.5707963267948966,
        "the paper, Sec. 3 (π/2) and App. A.1, the best of the angles",
    ),
    ("steps/aside", "settings.direction", "right", "the code, --rotation_direction; App. A writes its mirror image"),
    ("steps/aside", "settings.learned", False, "the paper, Sec. 3: the rotation is fixed"),
    ("steps/aside", "settings.gradual", False, "the code's README: the rotation is whole from the first step on"),
    ("steps/aside", "settings.linear_shift", False, "the code, --add_linear_shift"),
    (
        "steps/aside",
        "settings.response_role",
        "data",
        "the code: responses and generated tokens stand in the data part",
    ),
    ("steps/ise", "settings.response_role", "data", "the code: responses and generated tokens stand in the data part"),
    ("settings steps.aside", "alpha", 1.5707963267948966, "the paper, Sec. 3 (π/2)"),
    ("settings steps.aside", "direction", "right", "the code, --rotation_direction"),
    ("settings steps.aside", "learned", False, "the paper, Sec. 3"),
    ("settings steps.aside", "gradual", False, "the code's README"),
    ("settings steps.aside", "linear_shift", False, "the code, --add_linear_shift"),
    ("settings RoleTraining", "response_role", "data", "the code"),
    ("settings RoleTraining", "roles", ["instruction", "data"], "the paper, Sec. 3: two roles"),
    ("steps/aside_hierarchy", "like", "aside", "ours: a variant"),
    (
        "steps/aside_hierarchy",
        "settings.roles",
        ["system", "instruction", "tool", "data"],
        "ours, in the order of privileges of Wallace et al. 2024 (arXiv 2404.13208)",
    ),
]

# Weights are pretrained models, tokenizers and templates those of their chat models (the paper, Sec. 4.1 and App. C).
PAD = "the code's choice of a padding token"
MODELS: list[Row] = [
    *(
        (f"models/{model}", key, value, source)
        for model, hub, tokenizer, blocks in (
            ("llama2-7b", "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf", 32),
            ("llama2-13b", "meta-llama/Llama-2-13b-hf", "meta-llama/Llama-2-13b-chat-hf", 40),
            ("llama3.1-8b", "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", 32),
            ("qwen2.5-7b", "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct", 28),
            ("mistral-7b-v0.3", "mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3", 32),
            ("qwen3-8b", "Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B", 36),
        )
        for key, value, source in (
            ("source.hub", hub, "the paper, Sec. 4.1: pretrained weights"),
            ("source.tokenizer.hub", tokenizer, "the paper, App. C: template of the instruction-tuned version"),
            ("template", "alpaca", "the code's one template, Alpaca's words"),
            ("dtype", "bfloat16", "the code loads bfloat16"),
            ("blocks", blocks, "the model's configuration on the Hub"),
        )
    ),
    ("models/llama2-7b", "source.pad_token", "<unk>", PAD),
    ("models/llama2-13b", "source.pad_token", "<unk>", PAD),
    ("models/llama3.1-8b", "source.pad_token", "<|reserved_special_token_3|>", PAD),
    ("models/qwen2.5-7b", "source.pad_token", "<|endoftext|>", PAD),
    ("models/mistral-7b-v0.3", "source.pad_token", "<unk>", "ours: the code's <pad> is not in the vocabulary"),
    ("models/qwen3-8b", "source.pad_token", "<|endoftext|>", "the tokenizer's own; the code does not cover it"),
]

# Commits that public projects pin, see the files.
SEEN = "ours: a commit that public projects pin"
REVISIONS: list[Row] = [
    (f"models/{model}", "source", {"revision": weights, "tokenizer": {"revision": tokenizer}}, SEEN)
    for model, weights, tokenizer in (
        ("llama2-7b", "01c7f73d771dfac7d292323805ebc428287df4f9", "f5db02db724555f92da89c216ac04704f23d4590"),
        ("llama2-13b", "5c31dfb671ce7cfe2d7bb7c04375e44c55e815b1", "a2cb7a712bb6e5e736ca7f8cd98167f81a0b5bd8"),
        ("llama3.1-8b", "d04e592bb4f6aa9cfee91e2e20afa771667e1d4b", "0e9e39f249a16976918f6564b8830bc894c89659"),
        ("qwen2.5-7b", "d149729398750b98c0af14eb82c78cfe92750796", "a09a35458c702b33eeacc393d103063234e8bc28"),
        ("mistral-7b-v0.3", "d8cadc02ac76bd617a919d50b092e59d2d110aff", "e0bc86c23ce5aae1db576c8cca6f06f1f73af2db"),
        ("qwen3-8b", "49e3418fbbbca6ecbdf9608b4d22e5a407081db4", "b968826d9c46dd6066d109eabc6255188de91218"),
    )
]

TRAINS = "the paper, App. C: 8 GPUs; ours: memory and threads"
ANSWERS = "ours: one GPU of 80 GB holds the model"
RESOURCES: list[Row] = [
    *(
        row
        for model in ("llama2-7b", "llama3.1-8b", "qwen2.5-7b", "mistral-7b-v0.3", "qwen3-8b")
        for row in (
            (f"models/{model}", "resources.train", {"gpu": 8, "mem_gb": 512.0, "threads": 32}, TRAINS),
            (f"models/{model}", "resources.generate", {"gpu": 1, "mem_gb": 96.0, "threads": 8}, ANSWERS),
        )
    ),
    ("models/llama2-13b", "resources.train", {"gpu": 8, "mem_gb": 768.0, "threads": 32}, TRAINS),
    ("models/llama2-13b", "resources.generate", {"gpu": 1, "mem_gb": 96.0, "threads": 8}, ANSWERS),
]

TUNED_ON = [3, 11, 27, 34, 41, 53, 61, 77, 84, 91]
SEP: list[Row] = [
    ("benchmarks/sep", "", {"module": "sep", "dataset": "sep", "split": "test"}, "the paper, Sec. 4.2"),
    ("benchmarks/sep", "settings.decoding.do_sample", False, "the code's evaluation of SEP: greedy"),
    ("benchmarks/sep", "settings.decoding.max_new_tokens", 1024, "the code's evaluation of SEP"),
    ("benchmarks/sep", "settings.decoding.max_prompt_tokens", 512, "the code, max_token_len"),
    ("datasets/sep", "splits", {"test": 9160}, "Zverev et al. 2024: 9,160 records"),
    *(
        row
        for part, split, records, cost in (("test", "test", 8268, 0.9), ("validation", "validation", 892, 0.1))
        for row in (
            (f"benchmarks/sep_{part}", "", {"like": "sep", "dataset": f"sep_{part}"}, "the code: val_eval_split.ipynb"),
            (f"benchmarks/sep_{part}", "cost", cost, "ours: its share of the records"),
            (f"datasets/sep_{part}", "splits", {split: records}, "the code: val_eval_split.ipynb"),
        )
    ),
    ("benchmarks/sep_validation", "split", "validation", "ours: a name"),
    ("datasets/sep_validation", "where", {"info.appended_task_id": TUNED_ON}, "the code: val_eval_split.ipynb"),
    ("datasets/sep_test", "without", {"info.appended_task_id": TUNED_ON}, "the code: val_eval_split.ipynb"),
    ("datasets/alpaca_cleaned", "splits", {"train": 0.9, "validation": 0.1}, "the code: 46,581 and 5,175 records"),
]

ROWS = TRAINING + KEPT + GRID + METHOD + MODELS + REVISIONS + RESOURCES + SEP


def test_aside_and_its_baselines():
    check(ROWS)
