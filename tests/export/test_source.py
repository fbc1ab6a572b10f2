"""The checkpoint that is exported: what its GGUF records beside the weights."""

from pathlib import Path

import gguf
import jinja2

from export.gguf.write import write_decoder_gguf
from export.source import open_source


def test_the_gguf_carries_a_chat_template_that_asks_as_the_model_was_trained(
    small_checkpoint: Path, tmp_path: Path
) -> None:
    source = open_source(small_checkpoint)
    path, tokenizer = tmp_path / "m.gguf", source.gguf_tokenizer
    write_decoder_gguf(
        path,
        source.language_model_tensors(),
        source.decoder_shape,
        tokenizer,
        file_type="F16",
        name=source.name,
        license=source.license,
    )
    stored = gguf.GGUFReader(path).get_field("tokenizer.chat_template")
    assert stored is not None
    template = jinja2.Environment(autoescape=False).from_string(stored.contents())
    question, answer = 'What "is" this, {{ 1 }}?\n', "a dog's bark"
    asked = [{"role": "user", "content": question}]
    model = source.model
    prompt = [*model.token_ids(model.template.prefix), *model.question_ids(question)]
    assert model.token_ids(template.render(messages=asked)) == prompt
    told = template.render(messages=[*asked, {"role": "assistant", "content": answer}])
    assert model.token_ids(told) == [*prompt, *model.option_ids(answer)]
    assert told.endswith(model.template.stop)


def test_a_bases_own_chat_template_is_kept(small_checkpoint: Path, tmp_path: Path) -> None:
    source = open_source(small_checkpoint)
    base = tmp_path / "base"
    base.mkdir()
    source.model.base_folder = base
    written = source.gguf_tokenizer.chat_template
    (base / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert source.gguf_tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert written is not None
    assert "message['role']" in written
