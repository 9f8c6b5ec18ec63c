"""Selectors that look into a model, against plain computations on tiny ones: a prompt at a time, hooks written here, edited
weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shapley.clusters import Cluster
from shapley.corpus import reference_texts
from shapley.errors import ShapleyError
from shapley.prompts import Prompt, TopicPrompts
from shapley.selectors.activations import Entropy, ExpertUnits, FrequencyDifference, Norm, average_precision
from shapley.selectors.attribution import Attribution, GuardedAttribution, KnowledgeNeurons
from shapley.selectors.base import Evidence
from shapley.selectors.edit import EditVector
from shapley.selectors.matched import Random, activation_norm, matched_random
from shapley.selectors.tracing import CausalTracing, _Corrupted
from tests.tiny import tiny_lm

SPORT = [
    ("the player won the first", " race"),
    ("a small team and its old", " coach"),
    ("the club made a new", " player"),
]
MUSIC = [
    ("the singer sold a first", " album"),
    ("her song and the old", " guitar"),
    ("the singer made a large", " song"),
]
TOPICS = {
    name: TopicPrompts(name, tuple(Prompt(name, text, answer) for text, answer in pairs))
    for name, pairs in (("sport", SPORT), ("music", MUSIC))
}
FAMILIES = ("gpt2", "llama", "gemma3_text")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path))


@pytest.fixture(params=FAMILIES)
def evidence(request):
    return Evidence(lm=tiny_lm(request.param), prompts=TOPICS)


def seen(lm, text, edits=None, noise=None):
    """``[n_layers, tokens, d_mlp]`` activations, and the logits, of one text; hooks of its own. ``edits`` by layer."""
    found, handles = [], []

    def hook(layer):
        def keep(module, args):
            x = args[0].reshape(1, -1, args[0].shape[-1])
            if edits and layer in edits:
                x = edits[layer](x)
            found.append(x[0])
            return (x.reshape(args[0].shape),)

        return keep

    for layer, block in enumerate(lm.sites.blocks):
        handles.append(block.down.register_forward_pre_hook(hook(layer)))
    if noise is not None:
        embed = lm.model.get_input_embeddings()
        handles.append(embed.register_forward_hook(lambda module, args, output: output + noise))
    ids = lm.tokenizer(text, return_tensors="pt")["input_ids"][:, :64]
    logits = lm.model(input_ids=ids).logits[0]
    for handle in handles:
        handle.remove()
    return torch.stack(found), logits


def logprob(lm, prompt, **options):
    """Of an answer of one token."""
    _, logits = seen(lm, prompt.prompt + prompt.answer, **options)
    [answer] = lm.tokenizer(prompt.answer)["input_ids"][-1:]
    return logits[-2].log_softmax(0)[answer]


def plain_activations(evidence, topic):
    with torch.no_grad():
        return [seen(evidence.lm, p.prompt)[0][:, 1:].numpy() for p in evidence.prompts[topic].prompts]


def plain_frequency(evidence, topic):
    statistics = evidence.lm.statistics("mlp_hidden")
    threshold = (statistics.mean + statistics.std).numpy()
    return np.mean([(x > threshold[:, None]).mean(axis=1) for x in plain_activations(evidence, topic)], axis=0)


def test_frequency(evidence):
    ranking = FrequencyDifference().rank(evidence, "sport", ["music"])
    expected = plain_frequency(evidence, "sport") - plain_frequency(evidence, "music")
    np.testing.assert_allclose(ranking.score, expected, atol=1e-12)
    assert np.abs(ranking.score).max() > 0.1


def test_expert_units(evidence):
    ranking = ExpertUnits().rank(evidence, "sport", ["music"])
    largest = {name: [x.max(axis=1) for x in plain_activations(evidence, name)] for name in TOPICS}
    for layer, column in ((0, 3), (2, 7)):
        pairs = sorted(
            [(x[layer, column], True) for x in largest["sport"]]
            + [(x[layer, column], False) for x in largest["music"]],
            reverse=True,
        )
        hits, total = 0, 0.0
        for i, (_, own) in enumerate(pairs, start=1):
            hits += own
            total += own * hits / i
        assert ranking.score[layer, column] == pytest.approx(total / 3)


def test_average_precision_with_ties():
    # one threshold takes in all four: precision one half
    assert average_precision(np.zeros((4, 1)), np.array([True, True, False, False])) == pytest.approx([0.5])
    # 3 | 2 2 | 1: recall rises by 1/2 at precision 1, and by 1/2 at precision 2/3
    scores = np.array([[3.0], [2.0], [2.0], [1.0]])
    assert average_precision(scores, np.array([True, False, True, False])) == pytest.approx([0.5 + 0.5 * 2 / 3])


def test_entropy(evidence):
    ranking = Entropy(filter=0.5).rank(evidence, "sport", ["music"])
    p = np.stack([plain_frequency(evidence, name) for name in ("sport", "music")])
    kept = (p.max(axis=0) >= np.quantile(p, 0.5)) & (p[0] >= p[1])
    share = p / np.maximum(p.sum(axis=0), 1e-12)
    entropy = -np.sum(np.where(share > 0, share * np.log(np.maximum(share, 1e-12)), 0), axis=0)
    first = ranking.order()[: kept.sum()]
    assert 0 < kept.sum() < kept.size and kept.ravel()[first].all()
    assert np.all(np.diff(entropy.ravel()[first]) >= -1e-9)


def test_norm(evidence):
    square = np.mean([np.square(x).mean(axis=1) for x in plain_activations(evidence, "sport")], axis=0)
    ranking = Norm().rank(evidence, "sport", [])
    weight = evidence.lm.sites.blocks[1].down.weight
    weight = weight if evidence.lm.architecture.startswith("GPT2") else weight.T  # [d_mlp, d_model]
    expected = np.sqrt(square[1]) * weight.detach().norm(dim=1).numpy()
    np.testing.assert_allclose(ranking.score[1], expected, rtol=1e-5)


def gradient_times_activation(lm, prompt, scale=None, layer=None):
    """Summed over tokens, ``[n_layers, d_mlp]``; with one layer's activation scaled, and of the probability then."""
    gates = [torch.ones(lm.sites.d_mlp, requires_grad=True) for _ in lm.sites.blocks]
    if scale is not None:
        gates[layer] = torch.full((lm.sites.d_mlp,), scale, requires_grad=True)
    edits = {i: (lambda x, gate=gate: x * gate) for i, gate in enumerate(gates)}
    value = logprob(lm, prompt, edits=edits)
    value = value if scale is None else value.exp()
    return torch.stack(torch.autograd.grad(value, gates)).numpy()


def test_attribution(evidence):
    ranking = Attribution().rank(evidence, "sport", [])
    values = [gradient_times_activation(evidence.lm, prompt) for prompt in TOPICS["sport"].prompts]
    np.testing.assert_allclose(ranking.score, np.mean(values, axis=0), atol=2e-5)
    np.testing.assert_allclose(ranking.stderr, np.std(values, axis=0, ddof=1) / np.sqrt(3), atol=2e-5)


def test_guarded_attribution(evidence):
    own, other = (Attribution().rank(evidence, topic, []) for topic in TOPICS)
    ranking = GuardedAttribution(guard=3.0).rank(evidence, "sport", ["music"])
    np.testing.assert_allclose(ranking.score, own.score - 3 * np.abs(other.score))
    np.testing.assert_allclose(ranking.stderr, np.hypot(own.stderr, 3 * other.stderr))


def test_knowledge_neurons(evidence):
    method = KnowledgeNeurons(steps=3, prompts=2, threshold=0.3, share=0.5)
    ranking = method.rank(evidence, "sport", [])
    lm = evidence.lm
    found = []
    for prompt in TOPICS["sport"].prompts[:2]:
        by_layer = [
            np.mean([gradient_times_activation(lm, prompt, a / 3, layer)[layer] for a in (1, 2, 3)], axis=0)
            for layer in range(lm.sites.n_layers)
        ]
        found.append(np.stack(by_layer))
    kept = np.mean([x > 0.3 * x.max() for x in found], axis=0) >= 0.5
    mean = np.mean(found, axis=0)
    first = ranking.order()[: kept.sum()]
    assert 0 < kept.sum() < kept.size and kept.ravel()[first].all()
    assert np.all(np.diff(mean.ravel()[first]) <= 1e-7)
    np.testing.assert_allclose(ranking.score[~kept], mean[~kept], atol=1e-6)


def test_restored_neurons_and_layers(evidence):
    lm, prompt = evidence.lm, TOPICS["sport"].prompts[0]
    run = _Corrupted(lm, prompt, 3.0, 4, 0)
    text = prompt.prompt + prompt.answer
    neurons = np.array([[0, 5], [2, 1], [2, 9]])
    with torch.no_grad():
        clean, _ = seen(lm, text)
        corrupted = [logprob(lm, prompt, noise=noise) for noise in run.noise]
        for neuron, rise in zip(neurons, run.restored(neurons), strict=True):
            layer, column = map(int, neuron)

            def put_back(x, layer=layer, column=column):
                x = x.clone()
                x[0, :, column] = clean[layer, :, column]
                return x

            values = [logprob(lm, prompt, noise=noise, edits={layer: put_back}) for noise in run.noise]
            assert rise == pytest.approx(float(np.mean(values) - np.mean(corrupted)), abs=1e-5)
        layers = {layer: (lambda x, layer=layer: clean[layer][None]) for layer in (1, 2)}
        values = [logprob(lm, prompt, noise=noise, edits=layers) for noise in run.noise]
        assert run.restored_layers(1, 3) == pytest.approx(float(np.mean(values) - np.mean(corrupted)), abs=1e-5)
    assert run.restored_layers(0, 3) != pytest.approx(0, abs=1e-3)


def test_linearised_restoration_is_exact_in_the_limit(evidence):
    run = _Corrupted(evidence.lm, TOPICS["sport"].prompts[0], 1e-3, 2, 0)
    linear = run.linearised()
    pairs = np.stack(np.unravel_index(np.argsort(-np.abs(linear).ravel())[:4], linear.shape), axis=1)
    with_doubles = [linear[tuple(pair)] for pair in pairs]
    evidence.lm.model.double()
    try:
        run = _Corrupted(evidence.lm, TOPICS["sport"].prompts[0], 1e-3, 2, 0)
        exact = run.restored(pairs)
    finally:
        evidence.lm.model.float()
    np.testing.assert_allclose(exact, with_doubles, rtol=0.05, atol=3e-7)


def test_tracing_puts_the_exact_first_and_the_window_second(evidence):
    method = CausalTracing(samples=2, window=2, shortlist=5, prompts=2, exact_prompts=1)
    order = method.rank(evidence, "sport", []).order()
    runs = [_Corrupted(evidence.lm, prompt, 3.0, 2, 0) for prompt in TOPICS["sport"].prompts[:2]]
    first = int(np.argmax([np.mean([run.restored_layers(s, s + 2) for run in runs]) for s in (0, 1)]))
    width = evidence.lm.sites.d_mlp
    pairs = np.stack([order[:5] // width, order[:5] % width], axis=1)
    assert np.all(np.diff(runs[0].restored(pairs)) <= 1e-6)
    assert set((order[: 2 * width] // width).tolist()) == {first, first + 1}
    linear = np.mean([run.linearised() for run in runs], axis=0).ravel()
    assert np.all(np.diff(linear[order[5 : 2 * width]]) <= 1e-7) and np.all(np.diff(linear[order[2 * width :]]) <= 1e-7)


def test_edit_vector(evidence):
    ranking = EditVector(ridge=0.1).rank(evidence, "sport", [])
    with torch.no_grad():
        tokens = np.concatenate([seen(evidence.lm, text)[0][1][1:].numpy() for text in reference_texts()]).astype(float)
    key = np.mean([x[1, -1] for x in plain_activations(evidence, "sport")], axis=0)
    moment = tokens.T @ tokens / len(tokens)
    u = np.linalg.inv(moment + 0.1 * np.trace(moment) / len(moment) * np.eye(len(moment))) @ key
    np.testing.assert_allclose(ranking.score[1], np.abs(u) / np.linalg.norm(u), rtol=2e-3, atol=1e-5)
    assert not np.array_equal(EditVector().rank(evidence, "music", []).score, ranking.score)


def test_random_is_keyed(evidence):
    first, again, other = (Random().rank(evidence, topic, []).score for topic in ("sport", "sport", "music"))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_matched_random_clusters():
    lm = tiny_lm("gpt2", d_mlp=64)
    norm = activation_norm(lm)
    loud = tuple((layer, int(column)) for layer in (0, 2) for column in np.argsort(-norm[layer])[:5])
    cluster = Cluster(loud)
    drawn = [matched_random(cluster, norm, 0, draw) for draw in range(40)]
    assert drawn[3] == matched_random(cluster, norm, 0, 3) and len({own.neurons for own in drawn}) > 30
    for own in drawn:
        assert not set(own.neurons) & set(loud) and len(set(own.neurons)) == 10
        assert own.per_layer(3).tolist() == [5, 0, 5]
    own_norm = np.mean([norm[pair] for pair in loud])
    ours = np.mean([norm[pair] for one in drawn for pair in one.neurons])
    anyone = norm[[0, 2]].mean()
    assert abs(ours - own_norm) < abs(anyone - own_norm)  # as near as the free ones allow


def test_a_cluster_that_leaves_too_few():
    with pytest.raises(ShapleyError, match="too few are left"):
        matched_random(Cluster(tuple((0, i) for i in range(13))), np.ones((1, 24)), 0, 1)


def test_what_is_missing_is_named():
    with pytest.raises(ShapleyError, match="'attribution' looks into the model: give --model"):
        Attribution().rank(Evidence(), "sport", [])
    with pytest.raises(ShapleyError, match="sprt"):
        Attribution().rank(Evidence(lm=tiny_lm("gpt2"), prompts=TOPICS), "sprt", [])
