"""The translation example: attention, padding, the stepped decoder, the readers of pairs; runs, kills, bad input."""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from examples.common import training
from examples.papers import sentences, translation
from examples.papers.sentences import EOS, PAD, SOS, UNK, Encoded, Vocabulary
from examples.papers.seq2seq import GATED, UNITS, Attention, Seq2Seq
from mnvi.parametrizations import Exponential
from mnvi.rnn import OrthogonalRNN
from tests.cases import cases
from tests.laws import assert_close, assert_refused

ROOT = Path(__file__).parents[2]

ALL = [*UNITS, "cwy:3"]
TINY = ["--data", "numbers", "--limit", "48", "--hidden", "8", "--embedding", "6", "--batch-size", "16"]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    monkeypatch.delenv("MNVI_DATA", raising=False)
    before = torch.get_num_threads(), torch.get_default_dtype()
    yield
    torch.set_num_threads(before[0])
    torch.set_default_dtype(before[1])


@pytest.fixture
def no_figure(monkeypatch):
    monkeypatch.setattr(translation, "figure", lambda path, *_: path.touch())


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)


def run(out, *options):
    return translation.main([*TINY, "--epochs", "1", "--out", str(out), *options])


def small(unit, nonlinearity="tanh"):
    return Seq2Seq(unit, 20, 15, 5, 8, nonlinearity)


def batch(lengths=((4, 6), (7, 3), (1, 1)), words=(20, 15)):
    """Sources and targets of these lengths, <eos> included, padded."""
    sides = []
    for side, count in enumerate(words):
        rows = [torch.cat([torch.randint(4, count, (pair[side] - 1,)), torch.tensor([EOS])]) for pair in lengths]
        sides.append(nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD))
    return sides


# --- the model ---


def test_attention_is_the_plain_loop(double):
    attention, states, h = Attention(5), torch.randn(3, 4, 5), torch.randn(3, 5)
    lengths = [4, 2, 1]
    padding = torch.arange(4) >= torch.tensor(lengths)[:, None]
    context, alpha = attention(h, attention.memory(states, padding))
    w1, w2, v = (layer.weight for layer in (attention.of_memory, attention.of_state, attention.v))
    for k, length in enumerate(lengths):
        scores = [torch.exp(v[0] @ torch.tanh(w1 @ states[k, i] + w2 @ h[k])).item() for i in range(length)]
        weights = [score / sum(scores) for score in scores]
        assert_close(alpha[k], weights + [0.0] * (4 - length))
        assert_close(context[k], sum(weight * states[k, i] for i, weight in enumerate(weights)))


@pytest.mark.parametrize("unit", ALL)
def test_padding_changes_nothing(double, unit):
    model, (source, target) = small(unit), batch()
    parameters = list(model.parameters())

    def gradients(source, target):
        logits, words = model(source, target)
        loss = F.cross_entropy(logits, words, reduction="sum")
        return loss, torch.autograd.grad(loss, parameters)

    loss, expected = gradients(source, target)
    wide_loss, wide = gradients(F.pad(source, (0, 3)), F.pad(target, (0, 2)))
    alone = [gradients(s[s != PAD][None], t[t != PAD][None]) for s, t in zip(source, target, strict=True)]
    assert_close(wide_loss, loss)
    assert_close(sum(each for each, _ in alone), loss)
    for k, gradient in enumerate(expected):
        assert_close(wide[k], gradient)
        assert_close(sum(each[k] for _, each in alone), gradient, 1e4)


@pytest.mark.parametrize(("unit", "sigma"), [("rnn", "tanh"), ("exprnn", "tanh"), ("cwy:3", "abs"), ("rgd", "relu")])
def test_the_decoder_is_the_written_recurrence(double, unit, sigma):
    model, (source, target) = small(unit, sigma), batch()
    logits, words = model(source, target)
    found = []
    for s, t in zip(source, target, strict=True):
        outputs, last = model.encoder(model.source(s[s != PAD])[:, None])
        h, memory = last[0, 0], outputs[:, 0]
        previous = SOS
        for word in t[t != PAD]:
            attention = model.attention
            scores = torch.tanh(memory @ attention.of_memory.weight.T + attention.of_state.weight @ h)
            context = (scores @ attention.v.weight[0]).softmax(0) @ memory
            x = torch.cat([model.target.weight[previous], context])
            if unit == "rnn":
                cell = model.decoder
                h = torch.tanh(cell.weight_ih @ x + cell.bias_ih + cell.weight_hh @ h + cell.bias_hh)
            else:
                linear, q = model.decoder.inputs[0], model.decoder.kernels[0].weight
                h = getattr(torch, sigma)(linear.weight @ x + linear.bias + q @ h)
            found.append(model.head.weight @ h + model.head.bias)
            previous = word
    assert torch.equal(words, target[target != PAD])
    assert_close(logits, torch.stack(found), 1e4)


@pytest.mark.parametrize("unit", [unit for unit in ALL if unit not in GATED])
def test_steps_of_an_orthogonal_cell_are_its_rollout(double, unit):
    cell, x, h = small(unit).decoder, torch.randn(6, 3, 13), torch.randn(3, 8, requires_grad=True)
    assert isinstance(cell, OrthogonalRNN)
    output, _ = cell(x, h[None])
    step, states, state = cell.stepper(), [], h
    for z in x:
        state = step(z, state)
        states.append(state)
    stepped, weights = torch.stack(states), torch.randn(6, 3, 8)
    assert_close(stepped, output)
    inputs = [h, *cell.parameters()]
    expected = torch.autograd.grad((weights * output).sum(), inputs)
    for found, gradient in zip(torch.autograd.grad((weights * stepped).sum(), inputs), expected, strict=True):
        assert_close(found, gradient, 1e4)


def test_a_kernel_is_mapped_once_a_batch(monkeypatch):
    calls, phi = [], Exponential.phi
    monkeypatch.setattr(Exponential, "phi", lambda self, a: calls.append(a) or phi(self, a))
    model = small("exprnn")
    calls.clear()
    model(*batch(((9, 12), (3, 5))))
    assert len(calls) == 2  # the encoder's and the decoder's


@pytest.mark.parametrize("unit", ["gru", "lstm", "exprnn"])
def test_every_translated_word_is_the_likeliest_given_those_before(unit):
    model, (source, _) = small(unit), batch()
    ends, output, alphas = [1], source, source
    with torch.no_grad():
        while len({*ends}) == 1:  # until sentences end, and not all at once
            model.head.weight.normal_()
            output, alphas = model.translate(source, max_length=12)
            ends = [row.index(EOS) if EOS in row else len(row) for row in output.tolist()]
        logits, words = model(source, output)
    assert torch.equal(logits.argmax(1), words)
    for row, end, alpha, s in zip(output, ends, alphas, source, strict=True):
        assert not row[end + 1 :].any()
        assert_close(alpha.sum(1), torch.ones(len(row)))
        assert not alpha[:, s == PAD].any()


# --- sentences ---


def test_a_vocabulary_knows_the_frequent_words():
    words = Vocabulary([["b", "a", "b"], ["a", "b", "c"]], min_count=2)
    assert words.words == [*sentences.SPECIAL, "b", "a"]
    assert words.encode(["a", "c", "b"]) == [5, UNK, 4, EOS]
    assert words.decode([5, UNK, 4, EOS, 5]) == ["a", "<unk>", "b"]


def test_batches_hold_every_pair_once_and_similar_lengths():
    pairs = [(["a"] * (1 + 7 * i % 23), ["b"] * (1 + 5 * i % 31)) for i in range(100)]
    encoded = Encoded(pairs, *(Vocabulary(side) for side in zip(*pairs, strict=True)))
    first, again = (encoded.batches(8, torch.Generator().manual_seed(1), pool=4) for _ in range(2))
    other = encoded.batches(8, torch.Generator().manual_seed(2), pool=4)
    assert first == again != other
    for batches in (first, other, encoded.batches(8)):
        assert sorted(i for each in batches for i in each) == list(range(100))
        assert len(batches) == 13
        targets = [encoded.batch(each)[1] for each in batches]
        assert sum(int((target == PAD).sum()) for target in targets) < 0.3 * sum(t.numel() for t in targets)


def test_number_words():
    corpus = sentences.load("numbers")
    pairs = [*corpus.train, *corpus.validation, *corpus.test]
    assert len({" ".join(s) for s, _ in pairs}) == len({" ".join(t) for _, t in pairs}) == 999
    assert [len(part) for part in (corpus.train, corpus.validation, corpus.test)] == [760, 40, 199]
    assert (sentences.english(342), sentences.german(342)) == (
        "three hundred and forty two",
        "drei hundert zwei und vierzig",
    )
    assert [sentences.german(n) for n in (1, 16, 20, 21, 101, 200)] == [
        *("eins", "sechzehn", "zwanzig", "ein und zwanzig", "ein hundert eins", "zwei hundert")
    ]
    turned = sentences.load("numbers", reverse=True)
    assert turned.test == [(t, s) for s, t in corpus.test]
    assert sentences.load("numbers", seed=1).test != corpus.test


def write_pairs(path, count=50):
    lines = [f"Go to room {i}!\t¡Ve a la habitación {i}, señor!\tCC-BY attribution {i}" for i in range(count)]
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")


def test_tab_separated_pairs(tmp_path):
    write_pairs(tmp_path / "spa.txt")
    corpus = sentences.load("multi30k", str(tmp_path / "spa.txt"))
    assert [len(part) for part in (corpus.train, corpus.validation, corpus.test)] == [38, 2, 10]
    pairs = sorted([*corpus.train, *corpus.validation, *corpus.test], key=lambda pair: int(pair[0][3]))
    assert pairs[7] == (
        ["go", "to", "room", "7", "!"],
        ["¡", "ve", "a", "la", "habitacion", "7", ",", "senor", "!"],
    )
    assert [pair[0][3] for pair in pairs] == [str(i) for i in range(50)]
    assert sentences.load("multi30k", str(tmp_path / "spa.txt"), seed=1).test != corpus.test
    assert sentences.tokens("L'été, it's ÜBER") == ["l'ete", ",", "it's", "uber"]


def write_multi30k(root, counts=(40, 12, 11)):
    folder = root / "multi30k"
    folder.mkdir(exist_ok=True)
    for part, count in zip(sentences.FILES, counts, strict=True):
        for language, text in (("en", "a man &apos;s dog number {}"), ("fr", "le chien numéro {} d&apos; un homme")):
            with gzip.open(folder / f"{part}.{language}.gz", "wt", encoding="utf-8") as file:
                file.writelines(text.format(i % 7) + "\n" for i in range(count))


def test_multi30k_is_read_as_it_is(tmp_path, monkeypatch, no_figure):
    write_multi30k(tmp_path)
    monkeypatch.setenv("MNVI_DATA", str(tmp_path))
    corpus = sentences.load("multi30k")
    assert [len(part) for part in (corpus.train, corpus.validation, corpus.test)] == [40, 12, 11]
    source, target = corpus.test[2]
    assert source == ["a", "man", "'s", "dog", "number", "2"]
    assert target == ["le", "chien", "numéro", "2", "d'", "un", "homme"]
    result = run(tmp_path / "out", "--data", "multi30k", "--methods", "rnn")
    assert result["runs"]["rnn"]["corpus"] == "Multi30k, English to French"
    assert result["runs"]["rnn"]["pairs"] == 40


BAD_FILES = {
    "no-tab": ("one\tuno\njust one\n", "line 2 of .*pairs.txt must be two sentences and a tab between, got 'just one'"),
    "empty": ("one\tuno\ntwo\t \n", "line 2 of .* must be two sentences"),
    "few": ("one\tuno\n", "pairs has 1 pairs, expected at least 10"),
}


@cases("text, message", BAD_FILES)
def test_files_that_are_no_pairs_are_refused(tmp_path, text, message):
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "out", "--methods", "rnn", "--pairs", str(tmp_path / "pairs.txt"))
    assert not (tmp_path / "out").exists()


def test_missing_data_is_explained(tmp_path, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match=r"MNVI_DATA is not set: .*github.com/multi30k/dataset; or give --pairs"
    ):
        sentences.load("multi30k")
    monkeypatch.setenv("MNVI_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"which has no folder multi30k: .*--data numbers"):
        sentences.load("multi30k")
    write_multi30k(tmp_path)
    (tmp_path / "multi30k" / "test.fr.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"test.fr.gz does not exist"):
        sentences.load("multi30k")
    with gzip.open(tmp_path / "multi30k" / "test.fr.gz", "wt") as file:
        file.write("une phrase\n")
    with pytest.raises(ValueError, match=r"multi30k \(test\) has 11 English and 1 French sentences"):
        sentences.load("multi30k")
    with pytest.raises(FileNotFoundError, match=r"--pairs .*none.txt does not exist"):
        sentences.load("multi30k", str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="data must be multi30k or numbers, got 'wmt14'"):
        sentences.load("wmt14")


# --- the example ---


def timeless(result):
    """What does not depend on the clock."""
    runs = {name: {k: v for k, v in each.items() if k != "seconds"} for name, each in result["runs"].items()}
    return {name: each | {"curve": {**each["curve"], "seconds": None}} for name, each in runs.items()}


@pytest.mark.slow
def test_two_steps_of_every_method(tmp_path, capsys):
    result = run(tmp_path, "--limit", "32", "--methods", ",".join(ALL))
    names = {unit.replace(":", "-") for unit in ALL}
    files = {f"{name}.{kind}" for name in names for kind in ("pt", "json")} | {"result.json", "translation.png"}
    assert {path.name for path in tmp_path.iterdir()} == files
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert sorted(result["runs"]) == sorted(ALL)
    for each in result["runs"].values():
        assert each["steps"] == 2
        assert each["test"]["perplexity"] == pytest.approx(math.exp(each["test"]["cross-entropy"]))
        assert min(each["curve"]["validation"]) == each["validation"]
    sizes = {name: each["parameters"] for name, each in result["runs"].items()}
    assert sizes["cwy:3"] < sizes["rgd"] < sizes["gru"] < sizes["lstm"]
    with Image.open(tmp_path / "translation.png") as image:
        assert image.size[0] == 1650
    assert "translated by" in capsys.readouterr().out


def test_the_losses_are_those_of_single_sentences(tmp_path, no_figure):
    run(tmp_path, "--methods", "gru")
    result = json.loads((tmp_path / "gru.json").read_text())
    corpus = sentences.load("numbers")
    source, target = (Vocabulary((pair[side] for pair in corpus.train[:48]), 2) for side in (0, 1))
    model = Seq2Seq("gru", len(source), len(target), 6, 8)
    best = torch.load(tmp_path / "gru.pt", weights_only=True)["states"]["best"]
    model.load_state_dict(best["weights"])
    nats, right = [], []
    with torch.no_grad():
        for s, t in corpus.test:
            logits, words = model(torch.tensor([source.encode(s)]), torch.tensor([target.encode(t)]))
            nats += (-logits.log_softmax(1)).gather(1, words[:, None]).flatten().tolist()
            right += (logits.argmax(1) == words).tolist()
    assert result["test"]["cross-entropy"] == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert result["test"]["accuracy"] == pytest.approx(100 * sum(right) / len(right))
    assert result["validation"] == best["error"]


@pytest.mark.slow
def test_it_learns(tmp_path, no_figure):
    options = ["--limit", "760", "--hidden", "24", "--embedding", "16", "--epochs", "3", "--lr", "1e-2"]
    result = run(tmp_path, *options, "--methods", "cwy:12", "--every", "12")["runs"]["cwy:12"]
    assert len(result["curve"]["validation"]) == 12
    assert result["test"]["cross-entropy"] < result["curve"]["validation"][0] / 2


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["cwy:3", "dtriv1", "rgd", "lstm"])
def test_a_killed_run_continues_to_the_same_result(tmp_path, monkeypatch, no_figure, unit):
    options = ["--epochs", "2", "--every", "2", "--methods", unit]
    expected = run(tmp_path / "whole", *options)
    left, forward = iter(range(6)), Seq2Seq.forward

    def interrupted(self, *args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return forward(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "SAVE_SECONDS", 0.0)
        patch.setattr(Seq2Seq, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", *options)
    assert not list((tmp_path / "cut").glob("*.json"))
    assert timeless(run(tmp_path / "cut", *options)) == timeless(expected)
    name = f"{unit.replace(':', '-')}.pt"
    whole, cut = (torch.load(tmp_path / each / name, weights_only=True)["states"] for each in ("whole", "cut"))
    for part in ("model", "best"):
        first, second = (each[part] if part == "model" else each[part]["weights"] for each in (whole, cut))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first if isinstance(first[key], torch.Tensor))


def test_the_clock_ends_a_run_and_a_longer_one_goes_on(tmp_path, no_figure):
    short = run(tmp_path, "--methods", "rnn", "--minutes", "1e-9")["runs"]["rnn"]
    assert short["steps"] == 1
    assert len(short["curve"]["validation"]) == 1
    assert run(tmp_path, "--methods", "rnn")["runs"]["rnn"]["steps"] == 3
    with pytest.raises(ValueError, match=r"other settings: lr 0.003 \(now 0.1\).*--restart"):
        run(tmp_path, "--methods", "rnn", "--lr", "0.1")
    run(tmp_path, "--methods", "rnn", "--lr", "0.1", "--restart")
    assert list(run(tmp_path, "--methods", "")["runs"]) == ["rnn"]


def test_a_loss_that_is_not_finite_is_reported(tmp_path, monkeypatch):
    measured = F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda *args, **options: math.nan * measured(*args, **options))
    with pytest.raises(ValueError, match=r"the loss of rnn is nan at step 1; give a lower rate"):
        run(tmp_path, "--methods", "rnn")


BAD_OPTIONS = {
    "method": (["--methods", "rnn,transformer"], "methods must be of rnn, gru, lstm, dtriv1"),
    "reflections": (["--methods", "cwy:9"], "cwy:L needs 1 to 8 reflections, the hidden size, got 'cwy:9'"),
    "no-reflections": (["--methods", "cwy:0"], "cwy:L needs 1 to 8"),
    "no-number": (["--methods", "cwy:many"], "cwy:L needs 1 to 8"),
    "other-number": (["--methods", "gru:4"], "methods must be of rnn"),
    "lr": (["--lr", "nan"], "lr must be at least 1e-12, got nan"),
    "clip": (["--clip", "0"], "clip must be at least 1e-12, got 0"),
    "epochs": (["--epochs", "0"], "epochs must be at least 1, got 0"),
    "seed": (["--seed", "99999999999"], "seed must be from 0 to 4294967295, got 99999999999"),
    "alias": (["--methods", "cwy:03"], "cwy:L needs 1 to 8"),
    "data": (["--data", "wmt14"], "invalid choice: 'wmt14'"),
    "kind": (["--hidden", "many"], "invalid int value: 'many'"),
}


@cases("options, message", BAD_OPTIONS)
def test_bad_options_are_refused_before_anything_is_done(tmp_path, capsys, options, message):
    assert_refused(run, options, message, tmp_path / "out", capsys)
