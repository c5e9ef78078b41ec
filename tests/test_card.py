"""The model card: what it says, that the hub's library reads it back, and that nothing a user named breaks out of it."""

import pytest
from huggingface_hub import ModelCard
from test_report import make_run

from ftjax.card import card, write_card
from ftjax.report import read_run


@pytest.fixture
def run(tmp_path):
    return read_run(make_run(tmp_path / "run", "partial"))


def test_the_hub_reads_what_the_run_was(run):
    config = run.config | {"task": "classification", "dataset": "stanfordnlp/sst2", "test_file": "/home/me/secret/test.csv"}
    text = card(config, run.result, name="mine")
    data = ModelCard(text).data
    assert data.pipeline_tag == "text-classification" and data.library_name == "transformers"
    assert data.base_model == "organisation/small-bert" and data.datasets == ["stanfordnlp/sst2"]
    found = {(result.dataset_split, result.metric_type): result.metric_value for result in data.eval_results}
    assert found["test", "accuracy"] == 0.8 and found["validation", "loss"] == 0.45
    for part in (
        "`fresh`, `rotten`",
        "| train_parameters | last:2,head |",
        "22,713,218",
        "jax 0.10.2",
        "2 min 40 s",
        "my <file>.csv",
    ):
        assert part in text
    assert "secret" not in text and "`test.csv`" in text


def test_a_run_without_labels_scores_or_a_hub_name(tmp_path):
    text = card({"model": str(tmp_path), "method": "self-supervised", "labels": []}, {}, name="mine")
    data = ModelCard(text).data
    assert data.base_model is None and data.pipeline_tag is None and not data.eval_results
    assert str(tmp_path) not in text and "## Scores" not in text


def test_hostile_names_stay_text(run):
    config = run.config | {"labels": ["a`b", "x\n# y"], "train_file": "t`.csv", "command": "ftjax\n```\n# out"}
    text = card(config, run.result, name="n")
    assert "``" + " a`b " + "``" in text and "\n# y" not in text
    assert "````sh\nftjax\n```\n# out\n````" in text
    assert ModelCard(text).data.tags == ["ftjax", "jax"]


def test_a_head_that_transformers_does_not_know(run, tmp_path):
    (tmp_path / "config.json").write_text('{"ftjax_classifier": "mean"}')
    write_card(tmp_path, run.config, run.result, name="n")
    text = (tmp_path / "README.md").read_text()
    assert ModelCard(text).data.library_name == "ftjax" and "pipeline(" not in text
