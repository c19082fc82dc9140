"""A user's own model and records, with the README's overlay: a tiny model and the real validation records of SEP."""

import json

import pytest
import yaml

from tests.conftest import ROOT

RECORDS = ROOT.parent / "shared" / "data" / "sep" / "validation.json"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not RECORDS.exists(), reason=f"the SEP validation records are not at {RECORDS.relative_to(ROOT.parent)}"
    ),
]

# Only what makes the README's overlay fit a test: no GPU, few and short steps.
SMALL = {
    "name": "mine",
    "models": {
        "mine": {
            "dtype": "float32",
            "resources": {
                stage: {"gpu": 0, "hours": 0.1, "mem_gb": 4, "threads": 1} for stage in ("train", "generate")
            },
        }
    },
    "steps": {
        name: {
            "models": {
                "mine": {
                    "settings": {
                        "training": {
                            "epochs": None,
                            "max_steps": 3,
                            "batch_size": 8,
                            "micro_batch_size": 8,
                            "precision": "float32",
                            "zero_stage": 0,
                            "gradient_checkpointing": False,
                            "evaluate_every": None,
                            "keep_best": False,
                        }
                    }
                }
            }
        }
        for name in ("vanilla", "aside")
    },
    "benchmarks": {"sep": {"settings": {"decoding": {"max_new_tokens": 2}}}},
}


def save_tiny_model(folder, texts):
    """A Llama of some ten thousand weights with a byte-level BPE tokenizer that adds a BOS and has no chat template."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=600, special_tokens=["<s>", "</s>", "<pad>"])
    trained.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", trained.token_to_id("<s>"))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_the_readme_overlay_takes_them_through_the_whole_pipeline(checkout):
    records = json.loads(RECORDS.read_text(encoding="utf-8"))
    save_tiny_model(
        checkout.folder / "my-model", [record["system_prompt_clean"] + record["prompt_clean"] for record in records]
    )
    (checkout.folder / "my-sep.json").write_text(json.dumps(records), encoding="utf-8")
    rows = [
        {"question": record["system_prompt_clean"], "context": record["prompt_clean"], "answer": record["witness"]}
        for record in records[:60]
    ]
    (checkout.folder / "my-instructions.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    readme = (checkout.folder / "README.md").read_text(encoding="utf-8")
    overlay = next(
        block.split("```", 1)[0] for block in readme.split("```yaml\n")[1:] if block.startswith("# mine.yaml")
    )
    (checkout.folder / "mine.yaml").write_text(overlay, encoding="utf-8")
    (checkout.folder / "small.yaml").write_text(yaml.safe_dump(SMALL), encoding="utf-8")

    overlays = ("--configfile", "mine.yaml", "small.yaml")
    checkout.snakemake("--cores", "2", *overlays, "--quiet", "rules", "--", "paper_aside")

    for recipe in ("vanilla", "aside"):
        scores = json.loads((checkout.folder / f"results/scores/mine/{recipe}/seed0/sep.json").read_text())
        assert scores["n"] == 892
        assert set(scores["breakdowns"]["appended_type"]) == {"ll", "lr", "rl", "rr"}
    assert "| mine |" in (checkout.folder / "results/reports/mine/tables/sep.md").read_text()
    assert len((checkout.folder / "results/data/my_instructions/train.jsonl").read_text().splitlines()) == 54
