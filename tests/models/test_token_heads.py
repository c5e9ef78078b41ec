"""Heads that say something of each token: transformers' names and classes in every encoder family, and PyTorch's numbers."""

import json

import families
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from torch_reference import inputs_for

from ftjax.pretrained import load_pretrained, save_pretrained

HEADS = {"every-token": ("ForTokenClassification", "classifier", 3), "span": ("ForQuestionAnswering", "qa_outputs", 2)}
FAMILIES = [(model_type, classifier) for model_type in families.ENCODERS for classifier in HEADS]


def write(directory, model_type, classifier):
    """A model as transformers saves it for the task: no pooler, and a linear layer named as its class has it."""
    ending, name, outputs = HEADS[classifier]
    config, shapes = families.golden_shapes()[f"{model_type} {families.HEADS[0]}"]
    body = {n: shape for n, shape in shapes.items() if not n.startswith(("classifier", "pre_classifier", "bert.pooler"))}
    labels = {str(i): label for i, label in enumerate(families.LABELS[:outputs])}
    if classifier == "span":
        labels = {"0": "LABEL_0", "1": "LABEL_1"}
    named = {"architectures": [families.ENCODERS[model_type][0] + ending], "id2label": labels, "problem_type": None}
    own = {"label2id": {label: int(i) for i, label in labels.items()}, "dtype": "float32"}
    return families.write(directory, config | named | own, body | {f"{name}.weight": [outputs, 24], f"{name}.bias": [outputs]})


def logits(loaded, batch):
    @jax.jit
    def run(params):
        module = loaded.model.bind(params)
        return module.classify(module.hidden_states(batch, readout=True)[-1])

    return np.asarray(run(loaded.params))


@pytest.mark.parametrize(("model_type", "classifier"), FAMILIES)
def test_names_go_both_ways(model_type, classifier, tmp_path):
    before = write(tmp_path / "theirs", model_type, classifier)
    loaded = load_pretrained(tmp_path / "theirs")
    assert (loaded.classifier, loaded.new, loaded.carried, loaded.model.of_tokens) == (classifier, (), (), True)
    save_pretrained(loaded, loaded.params, tmp_path / "ours")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    assert after.keys() == before.keys() and all(np.array_equal(after[n], before[n]) for n in before)
    ours, theirs = (json.loads((tmp_path / d / "config.json").read_text()) for d in ("ours", "theirs"))
    assert ours["architectures"] == theirs["architectures"] and ours["id2label"] == theirs["id2label"]
    assert "ftjax_classifier" not in ours
    other = load_pretrained(tmp_path / "ours", labels=("a", "b", "c"), classifier="first-token")
    assert set(other.new) >= {"classifier.kernel"} and other.model.shapes["classifier.kernel"].shape == (24, 3)


@pytest.mark.parity
@pytest.mark.parametrize(("model_type", "classifier"), FAMILIES)
def test_logits_equal_pytorchs_and_what_is_trained_loads_there(model_type, classifier, tmp_path):
    import torch
    import transformers

    write(tmp_path / "theirs", model_type, classifier)
    kind = getattr(transformers, families.ENCODERS[model_type][0] + HEADS[classifier][0])
    config = families.ENCODERS[model_type][1]
    inputs = families.inputs(config["pad_token_id"], 2) | inputs_for(model_type, config)
    loaded = load_pretrained(tmp_path / "theirs")
    changed = {name: value * 1.01 for name, value in loaded.params.items()}
    save_pretrained(loaded, changed, tmp_path / "ours")
    for directory, params in (("theirs", loaded.params), ("ours", changed)):
        model, notes = kind.from_pretrained(tmp_path / directory, output_loading_info=True)
        assert not any(notes.values()), notes
        known = {name: torch.tensor(value).long() for name, value in inputs_for(model_type, config).items()}
        with torch.no_grad():
            found = model.eval()(**known)
        expected = found.logits if classifier == "every-token" else torch.stack([found.start_logits, found.end_logits], -1)
        module = loaded.model.bind(params)
        ours = np.asarray(module.classify(module.hidden_states(inputs, readout=True)[-1]))
        assert families.differ(ours, expected.numpy(), inputs["attention_mask"]) <= 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", "tokens", "spans"])
def test_losses_and_gradients_equal_pytorchs(problem, tmp_path):
    """As transformers' classes compute them from `problem_type` and labels."""
    import torch
    import transformers

    from ftjax.models.bert import NAMES as BERT
    from ftjax.objectives.classification import Classification
    from ftjax.objectives.multi_label import MultiLabel
    from ftjax.objectives.regression import Regression
    from ftjax.objectives.span import Span

    rng = np.random.default_rng(0)
    inputs = families.inputs(0, 2)
    inputs["attention_mask"][:] = 1  # PyTorch's loss of spans sees padding, ours does not
    inputs["input_ids"] = np.maximum(inputs["input_ids"], 1)  # PyTorch gives the embedding of padding, 0, no gradient
    tags = rng.integers(-1, 3, inputs["input_ids"].shape)
    tags[tags < 0] = -100
    cases = {
        "regression": ("SequenceClassification", 1, Regression, "pooled", rng.standard_normal(5).astype(np.float32)),
        "multi_label_classification": ("SequenceClassification", 3, MultiLabel, "pooled", rng.integers(0, 2, (5, 3))),
        "tokens": ("TokenClassification", 3, Classification, "every-token", tags),
        "spans": ("QuestionAnswering", 2, Span, "span", rng.integers(0, 17, (5, 2))),
    }
    ending, outputs, objective, classifier, labels = cases[problem]
    kind = problem if ending == "SequenceClassification" else None
    config = transformers.BertConfig(**families.ENCODERS["bert"][1], num_labels=outputs, problem_type=kind)
    torch.manual_seed(0)
    theirs = getattr(transformers, f"BertFor{ending}")(config).eval()
    theirs.save_pretrained(tmp_path)
    given = {n: torch.tensor(v).long() for n, v in inputs.items()}
    if problem == "spans":
        given |= {"start_positions": torch.tensor(labels[:, 0]), "end_positions": torch.tensor(labels[:, 1])}
    else:
        given["labels"] = torch.tensor(labels).float() if ending == "SequenceClassification" else torch.tensor(labels)
    expected = theirs(**given).loss
    expected.backward()
    loaded = load_pretrained(tmp_path)
    assert (loaded.classifier, loaded.new) == (classifier, ())
    labels = labels if labels.dtype == np.float32 else labels.astype(np.int32)
    batch = inputs | {"labels": labels, "example_ids": np.arange(5)}

    def loss(params):
        (total, weight), _ = objective(loaded.model)(params, batch, None)
        return total / weight

    value, gradients = jax.jit(jax.value_and_grad(loss))(loaded.params)
    assert float(value) == pytest.approx(float(expected.detach()), rel=1e-4)
    table = BERT.with_classifier(classifier)
    references = dict(theirs.named_parameters())
    for name, gradient in gradients.items():
        their_name, transposed = table.theirs(name)
        reference = references[their_name].grad.numpy()
        reference = reference.T if transposed else reference
        assert np.abs(np.asarray(gradient) - reference).max() <= 1e-4 * max(np.abs(reference).max(), 1e-2), name
