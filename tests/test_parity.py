"""Against PyTorch itself: random BERTs of every kind, and classifiers that go back and forth."""

import numpy as np
import pytest

from ftjax.pretrained import load_pretrained, save_pretrained

pytestmark = pytest.mark.parity

CONFIGS = {
    "gelu": {},
    "gelu_new, one head": {"hidden_act": "gelu_new", "num_attention_heads": 1, "num_hidden_layers": 1},
    "relu, wide": {"hidden_act": "relu", "hidden_size": 48, "intermediate_size": 20, "num_attention_heads": 6},
    "no types, deep, epsilon": {"type_vocab_size": 1, "num_hidden_layers": 5, "layer_norm_eps": 1e-5},
}


def random_bert(kind, **changes):
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        **{
            "vocab_size": 90,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 48,
            "initializer_range": 0.3,
            **changes,
        }
    )
    model = getattr(transformers, kind)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def random_inputs(types, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.ones((4, 17), np.int32)
    mask[0, 11:] = 0
    mask[1, :6] = 0
    return {
        "input_ids": rng.integers(1, 90, mask.shape).astype(np.int32),  # 0: PyTorch gives the padding row no gradient
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, types, mask.shape).astype(np.int32),
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_all_hidden_states_and_the_pooled_output(name, tmp_path):
    from torch_reference import torch_hidden_states

    bert = random_bert("BertModel", **CONFIGS[name])
    bert.save_pretrained(tmp_path)
    inputs = random_inputs(bert.config.type_vocab_size)
    expected, pooled = torch_hidden_states(bert, inputs)
    loaded = load_pretrained(tmp_path)
    module = loaded.model.bind(loaded.params)
    hidden = module.hidden_states(inputs)
    assert len(hidden) == len(expected) == bert.config.num_hidden_layers + 1
    for ours, theirs in zip(hidden, expected, strict=True):
        seen = inputs["attention_mask"][..., None] > 0
        assert np.abs((np.asarray(ours) - theirs) * seen).max() <= 1e-5 * np.abs(theirs).max()
    assert np.abs(np.asarray(module.pool(hidden[-1][:, 0])) - pooled).max() <= 1e-5


def torch_logits(model, inputs):
    import torch

    with torch.no_grad():
        return model(**{k: torch.tensor(v).long() for k, v in inputs.items()}).logits.numpy()


def test_a_classifier_trained_elsewhere_loads_here_and_the_reverse(tmp_path):
    import transformers

    theirs = random_bert("BertForSequenceClassification", num_labels=3, id2label={0: "a", 1: "b", 2: "c"})
    theirs.save_pretrained(tmp_path / "theirs")
    inputs = random_inputs(2)
    expected = torch_logits(theirs, inputs)
    loaded = load_pretrained(tmp_path / "theirs")
    assert loaded.labels == ("a", "b", "c")
    assert loaded.new == ()
    module = loaded.model.bind(loaded.params)
    found = np.asarray(module.classify(module.hidden_states(inputs)[-1]))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()

    changed = {name: value * 1.01 for name, value in loaded.params.items()}
    save_pretrained(loaded, changed, tmp_path / "ours")
    back, notes = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(notes.values()), notes
    assert back.config.id2label == {0: "a", 1: "b", 2: "c"}
    module = loaded.model.bind(changed)
    found = np.asarray(module.classify(module.hidden_states(inputs)[-1]))
    assert np.abs(found - torch_logits(back.eval(), inputs)).max() <= 1e-5 * np.abs(found).max()


def test_the_masked_lm_head_equals_pytorchs_and_exports_to_it(tmp_path):
    import transformers

    theirs = random_bert("BertForMaskedLM")
    theirs.save_pretrained(tmp_path / "theirs")
    inputs = random_inputs(2)
    loaded = load_pretrained(tmp_path / "theirs", masked_lm=True)
    assert loaded.new == ()
    module = loaded.model.bind(loaded.params)
    found = np.asarray(module.vocabulary_logits(module.hidden_states(inputs)[-1]))
    seen = inputs["attention_mask"][..., None] > 0
    expected = torch_logits(theirs, inputs)
    assert np.abs((found - expected) * seen).max() <= 1e-5 * np.abs(expected).max()
    save_pretrained(loaded, loaded.params, tmp_path / "ours")
    back, notes = transformers.BertForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not notes["missing_keys"], notes
    assert np.array_equal(torch_logits(back.eval(), inputs), expected)


def test_gradients_of_the_classification_loss(tmp_path):
    import jax
    import torch

    from ftjax.models.bert import NAMES as BERT
    from ftjax.objectives.classification import Classification

    theirs = random_bert("BertForSequenceClassification", num_labels=2)
    theirs.save_pretrained(tmp_path)
    inputs, labels = random_inputs(2), np.array([0, 1, 1, 0], np.int32)
    theirs(**{k: torch.tensor(v).long() for k, v in inputs.items()}, labels=torch.tensor(labels).long()).loss.backward()
    loaded = load_pretrained(tmp_path)
    batch = inputs | {"labels": labels, "example_ids": np.arange(4)}

    def loss(params):
        (total, weight), _ = Classification(loaded.model)(params, batch, None)
        return total / weight

    expected = dict(theirs.named_parameters())
    for name, gradient in jax.grad(loss)(loaded.params).items():
        their_name, transposed = BERT.theirs(name)
        reference = expected[their_name].grad.numpy()
        reference = reference.T if transposed else reference
        assert np.abs(np.asarray(gradient) - reference).max() <= 1e-4 * max(np.abs(reference).max(), 1e-2), name


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "mpnet"])
def test_a_cloze_reads_the_masked_lm_in_the_gap_trains_as_pytorch_and_goes_back(family, tmp_path):
    import jax
    import torch
    import transformers
    from families import ENCODERS

    from ftjax.models.body import Cloze
    from ftjax.objectives.classification import Classification, class_logits

    torch.manual_seed(0)
    name, sizes = ENCODERS[family]
    theirs = getattr(transformers, f"{name}ForMaskedLM")(getattr(transformers, f"{name}Config")(**sizes)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "theirs")
    rng, lengths = np.random.default_rng(0), np.array([17, 11, 8, 14])
    mask = (np.arange(17) < lengths[:, None]).astype(np.int32)
    ids = np.where(mask, rng.integers(5, 90, mask.shape), sizes["pad_token_id"]).astype(np.int32)
    labels, words = np.array([0, 1, 1, 0], np.int32), ((7, 9), (11,))

    def torch_classes(model):
        inputs = {"input_ids": torch.tensor(ids).long(), "attention_mask": torch.tensor(mask).long()}
        at_gap = model(**inputs).logits[torch.arange(4), torch.tensor(lengths - 3)]
        return torch.stack([at_gap[:, list(tokens)].mean(-1) for tokens in words], -1)

    expected = torch_classes(theirs)
    torch.nn.functional.cross_entropy(expected, torch.tensor(labels).long()).backward()
    cloze = Cloze(words, before=1, after=4, gap=-3)
    loaded = load_pretrained(tmp_path / "theirs", labels=("no", "yes"), classifier="cloze", cloze=cloze)
    assert loaded.new == ()
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    found = np.asarray(class_logits(loaded.model, loaded.params, batch, None))
    expected = expected.detach().numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()

    def loss(params):
        rows = batch | {"labels": labels, "example_ids": np.arange(4)}
        (total, weight), _ = Classification(loaded.model)(params, rows, None)
        return total / weight

    by_name, table = dict(theirs.named_parameters()), loaded.model.config.table
    for ours, gradient in jax.grad(loss)(loaded.params).items():
        their_name, transposed = table.theirs(ours)
        reference = by_name[their_name].grad
        reference = np.zeros(by_name[their_name].shape, np.float32) if reference is None else reference.numpy()
        reference = reference.T if transposed else reference
        assert np.abs(np.asarray(gradient) - reference).max() <= 1e-4 * max(np.abs(reference).max(), 1e-2), ours

    changed = {name: value * 1.01 for name, value in loaded.params.items()}
    save_pretrained(loaded, changed, tmp_path / "ours")
    back, notes = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(back) is type(theirs) and not any(notes.values()), notes
    with torch.no_grad():
        again = torch_classes(back.eval()).numpy()
    found = np.asarray(class_logits(loaded.model, changed, batch, None))
    assert np.abs(found - again).max() <= 1e-5 * np.abs(again).max()
