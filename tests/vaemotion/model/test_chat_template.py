"""Prompts of pretrained bases: the same tokens as ``transformers`` gives the chat template of the folder."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Idefics3Processor, SmolVLMProcessor
from transformers.utils import chat_template_utils

from tests.llama_cpp_sources import llama_cpp_models
from tests.published_folders import PICTURE_TOKENS, VLMS, published
from tests.real_language_model import real_language_model
from tests.tiny import tiny_tokenizer
from vaemotion.contract.errors import UsageError
from vaemotion.contract.prompt_tokens import PromptTokens
from vaemotion.contract.prompts import PromptTemplate
from vaemotion.data.instructions import tokenizer_corpus
from vaemotion.model.chat_template import PROMPT_DAY, prompt_template
from vaemotion.model.checkpoint_config import ModelConfig

QUESTIONS = ("What is this?", "which of these: {calm}, stirring?", "Où est-ce ? 音", "Describe it.\nBriefly.")
ANSWER = "a bell"
CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
)


def with_tokens(tokenizer: Tokenizer, *tokens: str) -> Tokenizer:
    """Return a copy of a tokenizer that has these special tokens, too."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.add_special_tokens(list(tokens))
    return copy


def write(folder: Path, template: str | None, **files: dict[str, Any]) -> Path:
    """Write the JSON files of a model that reads text, and its template."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"config": {"model_type": "llama"}, "tokenizer_config": {"eos_token": "</s>"}} | files
    for name, values in files.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def write_published(folder: Path, name: str, tokenizer: Tokenizer) -> Path:
    """Write the JSON files of a published SmolVLM with this tokenizer's ids."""
    files = published(name)
    files["config.json"]["image_token_id"] = tokenizer.token_to_id("<image>")
    eos = [tokenizer.token_to_id(token) for token in ("<end_of_utterance>", "<|im_end|>")]
    files["generation_config.json"]["eos_token_id"] = eos
    folder.mkdir()
    for file, values in files.items():
        (folder / file).write_text(json.dumps(values))
    return folder


def rendered(
    template: str, question: str, pictures: int | None, answer: str | None = None, **values: Any
) -> str:
    """Render a conversation by ``transformers``; with an answer, without the prompt for one."""
    parts = [*[{"type": "image"}] * (pictures or 0), {"type": "text", "text": question}]
    messages = [{"role": "user", "content": question if pictures is None else parts}]
    if answer is not None:
        text = answer if pictures is None else [{"type": "text", "text": answer}]
        messages.append({"role": "assistant", "content": text})
    texts, _ = chat_template_utils.render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=answer is None, **values
    )
    return texts[0]


def prompt_ids(
    tokenizer: Tokenizer, template: PromptTemplate, question: str, pictures: int = 0, token: str = "<image>"
) -> list[int]:
    """Return the ids of a prompt with one token in the place of each picture's, as the product joins them."""
    tokens = PromptTokens(tokenizer, template)
    before, after = tokens.of_template(template.before_picture), tokens.of_template(template.after_picture)
    placeholder = [tokenizer.token_to_id(token)] if pictures else []
    return [
        *tokens.of_template(template.prefix),
        *[*before, *placeholder, *after] * pictures,
        *tokens.of_question(question),
    ]


def assert_same_answers(
    tokenizer: Tokenizer, template: PromptTemplate, prompt: list[int], conversation: str
) -> None:
    """Assert that a conversation goes on with the template's answer and its stop token."""
    answer = PromptTokens(tokenizer, template).of_answer(ANSWER)
    whole = tokenizer.encode(conversation, add_special_tokens=False).ids
    stop = tokenizer.token_to_id(template.stop)
    assert whole[: len(prompt) + len(answer) + 1] == [*prompt, *answer, stop]


def expand(processor: Any) -> str:
    """Return the text into which a processor turns the token of a whole picture of one visual token."""
    tokens = SimpleNamespace(
        fake_image_token="<fake_token_around_image>",
        image_token="<image>",
        global_image_token="<global-img>",
        global_image_tag="<global-img>",
        image_seq_len=1,
    )
    return processor.replace_image_token(tokens, {"rows": [[0]], "cols": [[0]]}, 0)


@pytest.mark.parametrize("name", VLMS)
def test_smolvlms_prompt_has_the_tokens_of_its_processor(name: str, tmp_path: Path) -> None:
    tokenizer = with_tokens(tiny_tokenizer(), *PICTURE_TOKENS)
    template = prompt_template(write_published(tmp_path / "m", name, tokenizer), tokenizer)
    assert template == PromptTemplate(
        before_picture="<fake_token_around_image><global-img>",
        after_picture="<fake_token_around_image>",
        question="{question}<end_of_utterance>\nAssistant:",  # glued to the picture: no space
        stops=("<|im_end|>",),
    )
    files = published(name)
    of_smolvlm = files["config.json"]["model_type"] == "smolvlm"
    expanded = expand(SmolVLMProcessor if of_smolvlm else Idefics3Processor)
    source = files["chat_template.json"]["chat_template"]
    for question in QUESTIONS:
        for pictures in (1, 2, 8):
            text = rendered(source, question, pictures).replace("<image>", expanded)
            ours = prompt_ids(tokenizer, template, question, pictures)
            assert ours == tokenizer.encode(text, add_special_tokens=False).ids
            told = rendered(source, question, pictures, ANSWER).replace("<image>", expanded)
            assert_same_answers(tokenizer, template, ours, told)


def test_a_real_vocabulary_has_another_token_where_the_question_is_glued_to_the_picture(
    tmp_path: Path,
) -> None:
    tokenizer = Tokenizer.from_file(str(real_language_model() / "tokenizer.json"))
    tokenizer = with_tokens(tokenizer, "<image>", "<end_of_utterance>", *PICTURE_TOKENS)
    template = prompt_template(write_published(tmp_path / "m", VLMS[0], tokenizer), tokenizer)
    ids = prompt_ids(tokenizer, template, "What is this?", 1)
    first = tokenizer.id_to_token(ids[ids.index(tokenizer.token_to_id("<image>")) + 2])
    assert first == "What"  # not "ĠWhat", as our own bases have it


@pytest.mark.parametrize("place", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_qwens_pictures_stand_between_its_vision_tokens_and_its_system_prompt_is_kept(
    place: str, tmp_path: Path
) -> None:
    tokenizer = with_tokens(tiny_tokenizer(), *QWEN_TOKENS)
    ids = {token: tokenizer.token_to_id(token) for token in QWEN_TOKENS}
    config = {"model_type": "qwen2_5_vl", "vision_config": {}, "image_token_id": ids["<|image_pad|>"]}
    settings: dict[str, Any] = {"eos_token": {"content": "<|im_end|>", "special": True}}
    generation = {"eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]]}
    if place == "tokenizer_config.json":
        settings["chat_template"] = [
            {"name": "tools", "template": ""},
            {"name": "default", "template": CHATML},
        ]
    folder = write(
        tmp_path / "m",
        CHATML if place.endswith("jinja") else None,
        config=config,
        tokenizer_config=settings,
        generation_config=generation,
        **({"chat_template": {"chat_template": CHATML}} if place == "chat_template.json" else {}),
    )
    template = prompt_template(folder, tokenizer)
    assert template.prefix == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"
    assert (template.before_picture, template.after_picture) == ("<|vision_start|>", "<|vision_end|>")
    assert template.ends == ("<|im_end|>", "<|endoftext|>")
    for question in QUESTIONS:
        for pictures in (1, 2, 5):
            ours = prompt_ids(tokenizer, template, question, pictures, "<|image_pad|>")
            text = rendered(CHATML, question, pictures)
            assert ours == tokenizer.encode(text, add_special_tokens=False).ids
            assert_same_answers(tokenizer, template, ours, rendered(CHATML, question, pictures, ANSWER))


# -- llama.cpp's collection of templates
# ---------------------------------------------------------------------------------------------------------

# Tokens as templates write them: <|user|>, <｜User｜>, [INST], </s>, ]~b], <SPECIAL_10>.
MARKERS = r"<[|｜][^|｜<>{}'\" ]+[|｜]>|</?[\w:|]+>|\[/?[A-Z_]+\]|\]~!?b\[?\]?|\[e~\["

# Compiling a template takes a quarter of a second: ``transformers`` compiles those of known decoders.
COMPARED = re.compile("Llama-3|Qwen|SmolLM3|istral|gemma|Phi|gpt-oss|DeepSeek")


def of_template(template: str, tokenizer: Tokenizer) -> Tokenizer:
    markers = {marker for marker in re.findall(MARKERS, template) if len(marker) > 2}
    return with_tokens(tokenizer, *sorted(markers | {"<s>", "</s>"}))


@pytest.fixture
def same_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``transformers`` render the day that our prompts have."""

    class Day(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return PROMPT_DAY

    monkeypatch.setattr(chat_template_utils, "datetime", Day)


@pytest.mark.usefixtures("same_day")
def test_llama_cpps_templates_give_the_same_tokens_or_a_reason(tmp_path: Path) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    quiet = {"enable_thinking": False, "thinking": False, **special}
    converted: list[str] = []
    refused: dict[str, str] = {}
    for file in sorted((llama_cpp_models() / "templates").glob("*.jinja")):
        source = file.read_text("utf-8")
        tokenizer = of_template(source, tiny_tokenizer())
        folder = write(tmp_path / file.stem, source, tokenizer_config=special)
        try:
            template = prompt_template(folder, tokenizer)
        except UsageError as error:
            refused[file.stem] = str(error)
            continue
        converted.append(file.stem)
        if not COMPARED.search(file.stem):
            continue  # it was compared with our own rendering, or it would have been refused
        for question in QUESTIONS:
            ours = prompt_ids(tokenizer, template, question)
            prompt = rendered(source, question, None, **quiet)
            expected = tokenizer.encode(prompt, add_special_tokens=False).ids
            assert ours[: len(expected)] == expected, file.stem
            if len(ours) > len(expected):  # thinking that is left out, or a channel, before each answer
                told = rendered(source, question, None, ANSWER, **quiet)
                ids = tokenizer.encode(told, add_special_tokens=False).ids
                assert ids[: len(ours)] == ours, file.stem
    for name, reason in refused.items():
        print(f"{name}: {reason}")
        assert (
            "begins every answer with thinking" in reason
            or "cannot be rendered for a plain question" in reason
        )
    assert len(converted) >= 55
    assert {"Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.2-3B-Instruct", "HuggingFaceTB-SmolLM3-3B"} <= {
        *converted
    }
    assert "deepseek-ai-DeepSeek-R1-Distill-Llama-8B" in refused


def test_a_real_template_of_a_model_that_sees_is_cut_at_its_pictures(tmp_path: Path) -> None:
    source = (llama_cpp_models() / "templates" / "Qwen3.5-4B.jinja").read_text("utf-8")
    tokenizer = with_tokens(of_template(source, tiny_tokenizer()), *QWEN_TOKENS)
    picture = tokenizer.token_to_id("<|image_pad|>")
    config = {"model_type": "qwen3_5", "vision_config": {}, "image_token_id": picture}
    template = prompt_template(write(tmp_path / "m", source, config=config), tokenizer)
    for pictures in (1, 3):
        text = rendered(source, QUESTIONS[0], pictures, enable_thinking=False)
        ours = prompt_ids(tokenizer, template, QUESTIONS[0], pictures, "<|image_pad|>")
        assert ours == tokenizer.encode(text, add_special_tokens=False).ids


# -- tokenizers that treat spaces in their own ways
# ---------------------------------------------------------------------------------------------------------


def sentencepiece(kind: str) -> Tokenizer:
    """Train a tokenizer with Llama's marks for spaces, by the old or by the new rule for the first one."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if kind == "old":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", "<image>"])
    words = [word for line in tokenizer_corpus()[:200] for word in line.split()]
    tokenizer.train_from_iterator([*words, "[INST]", "[/INST]", "ASSISTANT: USER:"], trainer)
    return tokenizer


INST = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("kind", ["old", "first", "never", "always"])
def test_spaces_that_a_tokenizer_puts_itself_are_not_put_twice(kind: str, tmp_path: Path) -> None:
    tokenizer = sentencepiece(kind)
    folder = write(tmp_path / "m", INST, tokenizer_config={"bos_token": "<s>", "eos_token": "</s>"})
    template = prompt_template(folder, tokenizer)
    assert template.stop == "</s>"
    for question in ("What is this?", "calm or stirring?"):
        ours = prompt_ids(tokenizer, template, question)
        assert ours == tokenizer.encode(rendered(INST, question, None), add_special_tokens=False).ids


def test_white_space_that_a_special_token_takes_is_left_out(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(tiny_tokenizer().to_str())
    tokens = ("<|user|>", "<|end|>", "<|assistant|>")
    tokenizer.add_special_tokens([AddedToken(token, rstrip=True, special=True) for token in tokens])
    source = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    template = prompt_template(write(tmp_path / "m", source), tokenizer)
    ours = prompt_ids(tokenizer, template, "What is this?")
    assert ours == tokenizer.encode(rendered(source, "What is this?", None), add_special_tokens=False).ids
    assert_same_answers(tokenizer, template, ours, rendered(source, "What is this?", None, ANSWER))


# -- what is asked once, and what is refused
# ---------------------------------------------------------------------------------------------------------


def test_a_date_in_the_prompt_is_the_same_every_day(tmp_path: Path) -> None:
    source = "{{ strftime_now('%Y-%m-%d') }}" + CHATML
    template = prompt_template(write(tmp_path / "m", source), with_tokens(tiny_tokenizer(), *QWEN_TOKENS))
    assert template.prefix.startswith("2024-07-26")


def test_thinking_is_turned_off_and_text_that_begins_every_answer_belongs_to_the_prompt(
    tmp_path: Path,
) -> None:
    tokenizer = with_tokens(tiny_tokenizer(), *QWEN_TOKENS, "<think>", "</think>")
    channel = CHATML.replace("<|im_start|>{{ m.role }}\n", "<|im_start|>{{ m.role }}\n<think></think>")
    template = prompt_template(write(tmp_path / "channel", channel), tokenizer)
    assert template.question.endswith("<|im_start|>assistant\n<think></think>")
    switch = CHATML.replace(
        "<|im_start|>assistant\n{% endif %}",
        "<|im_start|>assistant\n<think>{% if not enable_thinking %}</think>{% endif %}{% endif %}",
    )
    template = prompt_template(write(tmp_path / "switch", switch), tokenizer)
    assert template.question.endswith("<|im_start|>assistant\n<think></think>")
    assert template.answer == "{answer}"


TWICE = "{% for m in messages %}{{ m.content }}{{ m.content }}<|im_end|>{% endfor %}"
THINKS = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
GLUED = "{% for m in messages %}{% if loop.first %}Q{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
NUMBERED = CHATML.replace("<|vision_start|>", "Picture {{ loop.index }}: <|vision_start|>")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "has no chat template"),
        ("{% if %}", "cannot be rendered"),
        ("{{ raise_exception('only tools') }}", "only tools"),
        ("{{ messages[0].content.__class__.__mro__ }}", "cannot be rendered|writes the question 0 times"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "cannot be rendered"),
        (TWICE, "writes the question 2 times"),
        (THINKS, "begins every answer with thinking"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "ends an answer with no token"),
        (GLUED, "cannot be cut"),
    ],
)
def test_a_template_that_makes_no_prompt_is_refused_with_the_way_out(
    template: str | None, reason: str, tmp_path: Path
) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"Q": 0, "W": 1, "QW": 2}, merges=[("Q", "W")]))
    tokenizer = with_tokens(tokenizer if template == GLUED else tiny_tokenizer(), *QWEN_TOKENS)
    with pytest.raises(UsageError, match=reason) as refusal:
        prompt_template(write(tmp_path / "m", template), tokenizer)
    assert "copy chat_template.jinja" in str(refusal.value)


@pytest.mark.parametrize(
    ("template", "image", "reason"),
    [
        (NUMBERED, "<|image_pad|>", "writes other texts around each of several pictures"),
        (CHATML, "<|vision_start|>", "writes other texts"),
        (CHATML, "<|endoftext|>", "writes <|endoftext|> 0 times for one picture"),
        (CHATML, None, "image_token_id 100000"),
    ],
)
def test_pictures_that_cannot_be_found_in_the_template_are_refused(
    template: str, image: str | None, reason: str, tmp_path: Path
) -> None:
    tokenizer = with_tokens(tiny_tokenizer(), *QWEN_TOKENS)
    number = 100_000 if image is None else tokenizer.token_to_id(image)
    config = {"model_type": "qwen2_5_vl", "vision_config": {}, "image_token_id": number}
    if image == "<|vision_start|>":
        template = template.replace("<|vision_end|>", "<|vision_end|>{{ loop.index }}")
    with pytest.raises(UsageError, match=re.escape(reason)):
        prompt_template(write(tmp_path / "m", template, config=config), tokenizer)


def test_a_checkpoints_config_keeps_all_stop_tokens() -> None:
    config = ModelConfig({}, prompt=PromptTemplate(stops=("</s>", "<|im_end|>")))
    again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.prompt == config.prompt
    older = config.to_dict()
    del older["prompt"]["stops"]
    assert ModelConfig.from_dict(older).prompt == PromptTemplate()
