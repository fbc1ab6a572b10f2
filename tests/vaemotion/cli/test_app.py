"""The choices of options, compared with the values that the implementations accept."""

import pytest

from export.components import FLOAT_TYPES
from export.gguf.quantise import QUANTIZED_TYPES
from export.gguf.search import TENSOR_TYPES
from export.gguf.write import GGUF_TYPES
from export.options import PRECISIONS as EXPORT_PRECISIONS
from export.to_onnx import EXPORTERS
from runtime.commands.ask import TASKS as ASK_TASKS
from runtime.engines.open import PRECISIONS as ENGINE_PRECISIONS
from runtime.run import PACES
from vaemotion.cli.app import (
    Choice,
    EngineName,
    GgufType,
    HeldOutSplit,
    LanguageModelType,
    OnnxExporter,
    Pace,
    PathName,
    Precision,
    Split,
    Task,
    TensorType,
)
from vaemotion.contract.front_end import PATHS
from vaemotion.data.manifest.item import QUESTION_TASKS, SPLITS
from vaemotion.evaluation.hearing.run import HELD_OUT_SPLITS

ACCEPTED = [
    (Pace, PACES),
    (EngineName, ENGINE_PRECISIONS),
    (Precision, EXPORT_PRECISIONS),
    (OnnxExporter, EXPORTERS),
    (GgufType, ("auto", *GGUF_TYPES, *QUANTIZED_TYPES)),
    (TensorType, TENSOR_TYPES),
    (LanguageModelType, FLOAT_TYPES),
    (PathName, PATHS),
    (Task, ASK_TASKS),
    (Task, QUESTION_TASKS),
    (Split, SPLITS),
    (HeldOutSplit, HELD_OUT_SPLITS),
]


@pytest.mark.parametrize(("choice", "accepted"), ACCEPTED)
def test_each_choice_offers_what_the_command_accepts(choice, accepted):
    assert [str(member) for member in choice] == list(accepted)


def test_every_choice_is_compared():
    assert {choice for choice, _ in ACCEPTED} == set(Choice.__subclasses__())


def test_the_precisions_are_also_those_of_tensorrt():
    assert set(Precision) == set(ENGINE_PRECISIONS["tensorrt"])


def test_a_choice_behaves_as_its_plain_string():
    assert (f"{Pace.MAX}", f"{Pace.MAX!r}", Pace.MAX) == ("max", "'max'", "max")
