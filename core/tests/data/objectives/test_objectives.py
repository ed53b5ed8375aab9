"""What all objectives have in common, and that nothing else in the program knows their names."""

import ast
from pathlib import Path
from typing import get_args

import apr_train
import pytest
import torch
from apr_train.data.batch import IGNORED
from apr_train.data.objectives import OBJECTIVES
from apr_train.data.stream import validation_batches
from apr_train.family.card import ObjectiveName
from apr_train.model.loss import IGNORE
from apr_train.run.objective_names import TrainingObjective

SOURCE = Path(apr_train.__file__).parent
EVALUATIONS = {"run/evaluation_names.py", "run/measures.py", "training/evaluations.py", "cli/eval_.py"}
"""An evaluation may have the name of an objective: where evaluations are named."""
SETTINGS = {"run/settings.py", "api/setting_types.py"}
"""Which objective a setting is of stands beside the setting; the types for Python are made of these."""
BY_NAME = pytest.mark.parametrize("name", OBJECTIVES)


class Echo:
    """A model whose hidden states are the tokens themselves; its loss is how many there are."""

    def hidden_states(self, tokens, *, mask, positions=None, losses=None):
        self.mask = mask
        if losses is not None:
            losses["aux_loss"] = tokens.numel()
        return torch.stack((tokens, -tokens), dim=-1)


@pytest.fixture
def batch_of(tokenizer, tokens_of):
    def make(name, **options):
        shared = {"sequence_length": 8, "batch_size": 9, "tokenizer": tokenizer, **options}
        (batch,) = validation_batches(tokens_of((10, 4, 7)), objective=OBJECTIVES[name], **shared)
        return batch

    return make


def test_every_name_that_settings_take_is_an_objective_and_families_declare_what_it_predicts():
    assert {name: objective.name for name, objective in OBJECTIVES.items()} == {
        name: name for name in get_args(TrainingObjective)
    }
    assert {objective.predicts for objective in OBJECTIVES.values()} == set(get_args(ObjectiveName))


def test_what_a_batch_ignores_the_loss_ignores():
    assert IGNORED == IGNORE


@BY_NAME
@pytest.mark.parametrize("document_mask", [False, True])
def test_the_kind_of_mask_that_is_told_is_the_batches(batch_of, name, document_mask):
    objective = OBJECTIVES[name]
    assert objective.mask(batch_of(name, document_mask=document_mask)).kind == objective.mask_kind(document_mask=document_mask)


@BY_NAME
def test_every_target_is_among_the_predicted_positions_with_its_own_hidden_state(batch_of, name):
    batch, model = batch_of(name), Echo()
    hidden, targets = OBJECTIVES[name].predicted(model, batch)
    assert model.mask.kind == OBJECTIVES[name].mask(batch).kind
    assert hidden.shape == (targets.numel(), 2)
    wanted = batch.targets != IGNORED
    assert targets[targets != IGNORED].tolist() == batch.targets[wanted].tolist()
    assert hidden[targets != IGNORED, 0].tolist() == batch.tokens[wanted].tolist()


@BY_NAME
def test_losses_of_the_models_own_come_through(batch_of, name):
    batch, losses = batch_of(name), {}
    OBJECTIVES[name].predicted(Echo(), batch, losses)
    assert losses == {"aux_loss": batch.tokens.numel()}


@BY_NAME
def test_only_the_objective_the_card_and_the_table_spell_a_name(name):
    def spells(path):
        return any(isinstance(node, ast.Constant) and node.value == name for node in ast.walk(ast.parse(path.read_text())))

    found = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if spells(path)}
    own = f"data/objectives/{name.replace('-', '_')}.py"
    card = {"family/card.py"} if OBJECTIVES[name].predicts == name else set()
    assert found - EVALUATIONS - SETTINGS == {
        *card,
        "run/objective_names.py",
        "data/objectives/__init__.py",
        "run/other_names.py",
        own,
    }
