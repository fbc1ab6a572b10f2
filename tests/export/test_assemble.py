"""``vaemotion assemble``: the example of docs/assemble.md becomes a bundle, and wrong parts are refused."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import gguf
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from export.assemble import make
from export.assemble.language import token_embeddings
from export.assemble.make import check_recipe
from export.step_store import StepStore
from export.workshop import STEPS_VARIABLE
from runtime.perception.predictor import open_predictor
from tests.llama_fixture import TinyLlama, make_tiny_llama
from tests.media import write_work
from tests.own_media import film_items
from tests.paths import ROOT
from vaemotion.cli.main import main
from vaemotion.contract.bundle import ENGINE_ROLES, Manifest, component_path, read_golden, read_manifest
from vaemotion.contract.errors import UsageError, UserError
from vaemotion.data.manifest.manifest import write_manifest

DOCUMENT = (ROOT / "docs" / "assemble.md").read_text()
RECIPE = "recipe.toml"
WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "onnxscript", "webdataset", "accelerate"):
            raise ImportError(f"{name} is refused")

sys.meta_path.insert(0, Refuse())
from vaemotion.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
Edit = Callable[[Path], None]


@pytest.fixture(scope="module")
def llama() -> TinyLlama:
    return make_tiny_llama(hidden_size=64, intermediate_size=96, layers=1)


@pytest.fixture(scope="module")
def example(llama: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the parts and the recipe of the document, beside a tiny language model."""
    folder = tmp_path_factory.mktemp("example")
    llama.write(folder / "language_model.gguf", "F16")
    llama.tokenizer.save(str(folder / "tokenizer.json"))
    [script] = re.findall(r"```python\n(.*?)```", DOCUMENT, re.S)
    [recipe] = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.S)
    (folder / RECIPE).write_text(recipe)
    with contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns about itself
        exec(script, {})
    return folder


@pytest.fixture(scope="module")
def bundle(example: Path) -> Path:
    """Assemble the example where torch cannot be imported. Tests do not change it."""
    words = ["assemble", str(example / RECIPE), "--out", str(example / "bundle"), "--clips", "4", "--debug"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return example / "bundle"


@pytest.fixture
def copied(example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the parts and the recipe, for a test that changes them. They are run on short clips."""
    monkeypatch.setattr("export.clips.CLIP_S", 1.2)
    left_out = shutil.ignore_patterns("bundle*")
    return Path(shutil.copytree(example, tmp_path / "parts", ignore=left_out))


def replaced(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, old
    file.write_text(text.replace(old, new))


def assemble(folder: Path, *words: str) -> Manifest:
    """Assemble a folder's recipe and return the bundle's manifest."""
    assert (
        main(["assemble", str(folder / RECIPE), "--out", str(folder / "bundle"), "--clips", "2", *words]) == 0
    )
    return read_manifest(folder / "bundle")


def refusal(folder: Path) -> str:
    """Check a recipe that has a problem. Returns the message."""
    with pytest.raises(UserError) as caught:
        check_recipe(folder / RECIPE, make.Options(clips=2))
    return str(caught.value)


# --- the example -------------------------------------------------------------------------------------------


def test_the_bundle_says_what_it_was_made_of_and_needed_no_torch(bundle: Path, example: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.verified
    assert manifest.emotions == ("calm", "joy", "dread")
    assert {c.role: c.licence for c in manifest.components}["emo_adapter"] == "CC-BY-4.0"
    assert {c.licence for c in manifest.components if c.role != "emo_adapter"} == {"Apache-2.0"}
    sizes = manifest.token_width, manifest.tokens_per_frame, manifest.audio_tokens
    assert sizes == (64, 4, 5)
    assert "docs/assemble.md" in manifest.lineage["assembled"]["text"]
    assert str(example) not in (bundle / "manifest.json").read_text()
    assert any("evaluate" in sentence for sentence in manifest.verification["not_judged"])


def test_the_bundle_computes_what_its_parts_compute(bundle: Path, example: Path, llama: TinyLlama) -> None:
    manifest = read_manifest(bundle)
    golden = read_golden(bundle, manifest)
    files = dict(zip(ENGINE_ROLES, ("vision.onnx", "audio.onnx", "adapter.onnx"), strict=True))
    for role, file in files.items():
        session = onnxruntime.InferenceSession(example / file, providers=["CPUExecutionProvider"])
        inputs = {i.name: golden[f"{role}/in/{i.name}"] for i in session.get_inputs()}
        for output, values in zip(session.get_outputs(), session.run(None, inputs), strict=True):
            np.testing.assert_allclose(golden[f"{role}/out/{output.name}"], values, atol=1e-5)
    prompt = golden["language_model/in/embeddings"]
    expected = llama.logits(prompt)[-1:]  # of the weights before they were rounded to float16
    np.testing.assert_allclose(golden["language_model/out/logits"], expected, atol=0.02)
    table = np.load(component_path(bundle, manifest.component("token_embeddings")))
    np.testing.assert_allclose(table, llama.token_embeddings, atol=1e-3)


def test_every_command_takes_the_bundle(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, timeline = write_work(tmp_path / "clip.mkv", 1.5), tmp_path / "timeline.jsonl"
    assert main(["verify", str(bundle)]) == 0
    assert main(["bundle", "inspect", str(bundle)]) == 0
    said = capsys.readouterr().out
    assert "dread" in said
    assert "trained elsewhere: Networks of docs/assemble.md" in said
    assert main(["doctor", str(bundle), "--json"]) in (0, 1)  # 1: this machine lacks something
    found = {check["name"]: check["ok"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert all(ok is not False for name, ok in found.items() if "bundle" in name), found
    assert main(["ask", str(bundle), str(clip), "What is this?", "--options", "a dog,rain", "--json"]) == 0
    assert sum(json.loads(capsys.readouterr().out)["probabilities"].values()) == pytest.approx(1)
    assert main(["ask", str(bundle), str(clip), "Describe it."]) == 0
    assert main(["run", str(bundle), str(clip), "--pace", "max", "--out", f"jsonl:{timeline}"]) == 0
    records = [json.loads(line) for line in timeline.read_text().splitlines()]
    readings = [record for record in records if record["type"] == "reading"]
    assert len(readings) > 10


def test_a_check_writes_nothing(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in copied.iterdir())
    assert main(["assemble", str(copied / RECIPE), "--check", "--clips", "2"]) == 0
    said = capsys.readouterr().err
    assert "vision_encoder: pixels (batch, 3, 32, 32) → tokens (batch, 4, 64)" in said
    assert "all parts fit" in said
    assert sorted(path.name for path in copied.iterdir()) == before


def test_a_bundle_is_made_again_only_when_something_of_it_changed(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STEPS_VARIABLE, str(tmp_path / "steps"))
    first = assemble(copied)
    capsys.readouterr()
    assert assemble(copied) == first
    assert "up to date" in " ".join(capsys.readouterr().err.split())
    steps = sorted(StepStore(tmp_path / "steps").folder.glob("*.json"))
    replaced(copied / RECIPE, '"dread"', '"fear"')
    assert assemble(copied).emotions == ("calm", "joy", "fear")
    made = sorted((tmp_path / "steps").glob("*.json"))
    assert len(made) == len(steps) + 1  # the golden vectors, which depend on all constants


def test_fp16_and_smaller_language_models_are_compared_with_the_largest(
    copied: Path, llama: TinyLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "CALIBRATION_WINDOWS", 16)
    llama.write(copied / "small.gguf", "Q8_0")
    replaced(copied / RECIPE, '["language_model.gguf"]', '["small.gguf", "language_model.gguf"]')
    unnamed = onnx.load(copied / "vision.onnx")
    for node in unnamed.graph.node:
        node.name = ""
    onnx.save(unnamed, copied / "vision.onnx")
    manifest = assemble(copied, "--fp16")
    types = [c.precision for c in manifest.components if c.role == "language_model"]
    assert types == ["Q8_0", "F16"]  # a device runs the first
    halves = [c for c in manifest.components if c.precision == "fp16"]
    assert {c.role for c in halves} == set(ENGINE_ROLES)
    for component in halves:
        graph = onnx.load(component_path(copied / "bundle", component)).graph
        assert any(tensor.data_type == TensorProto.FLOAT16 for tensor in graph.initializer), component.role
    compared = {edge["component"] for edge in manifest.verification["edges"] if edge["kind"] != "golden"}
    assert compared == {*(f"{role}/fp16" for role in ENGINE_ROLES), "language_model/Q8_0", "chain/preferred"}
    assert any("FP16" in sentence for sentence in manifest.verification["not_judged"])


def test_weights_beside_an_onnx_file_are_taken_in(copied: Path) -> None:
    model = onnx.load(copied / "vision.onnx")
    onnx.save(
        model, copied / "vision.onnx", save_as_external_data=True, location="vision.bin", size_threshold=1024
    )
    first = assemble(copied)
    values = np.fromfile(copied / "vision.bin", np.float32)
    (values * 2).tofile(copied / "vision.bin")
    second = assemble(copied)  # other weights, in the same graph
    assert second.component("vision_encoder").sha256 != first.component("vision_encoder").sha256
    (copied / "vision.bin").unlink()
    with open_predictor(copied / "bundle", precision="fp32"):
        assert second.verified
    with pytest.raises(UsageError, match=r"keeps weights in vision\.bin, which is not beside it"):
        check_recipe(copied / RECIPE, make.Options(clips=2))


def test_a_folder_of_transformers_is_converted_and_its_chat_template_asks(
    copied: Path, llama: TinyLlama
) -> None:
    folder = copied / "llama"
    llama.model.save_pretrained(folder)
    shutil.copyfile(copied / "tokenizer.json", folder / "tokenizer.json")
    template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    recipe = (copied / RECIPE).read_text()
    recipe = recipe.replace('files = ["language_model.gguf"]', 'folder = "llama"')
    recipe = recipe.replace('file = "tokenizer.json"', "")
    recipe = re.sub(r"\[prompt\].*?(?=\[front_end\])", "", recipe, flags=re.S)
    (copied / RECIPE).write_text(recipe)
    manifest = assemble(copied)
    assert [c.precision for c in manifest.components if c.role == "language_model"] == ["Q8_0", "F16"]
    assert manifest.prompt.prefix == "<|im_start|>user\n"
    assert manifest.stop_token_ids[0] == llama.tokenizer.token_to_id("<|im_end|>")


@pytest.mark.parametrize("given", ["file", "tokens"])
def test_delimiters_are_rows_or_tokens(copied: Path, llama: TinyLlama, given: str) -> None:
    if given == "file":
        expected = np.arange(128, dtype=np.float32).reshape(2, 64)
        np.save(copied / "delimiters.npy", expected)
        section = 'file = "delimiters.npy"'
    else:
        ids = [llama.tokenizer.token_to_id(token) for token in ("<image>", "<|endoftext|>")]
        expected = llama.token_embeddings[ids]
        section = 'tokens = ["<image>", "<|endoftext|>"]'
    replaced(copied / RECIPE, "[prompt]", f"[delimiters]\n{section}\n\n[prompt]")
    manifest = assemble(copied)
    written = np.load(component_path(copied / "bundle", manifest.component("delimiters")))
    np.testing.assert_allclose(written, expected, atol=1e-3)


def test_the_parts_are_run_on_the_users_media(copied: Path, tmp_path: Path) -> None:
    media = tmp_path / "media"
    media.mkdir()
    items = [item for index in range(2) for item in film_items(media, index, "validation")]
    write_manifest(media / "films.jsonl", items)
    manifest = assemble(copied, "--manifest", str(media / "films.jsonl"), "--media-root", str(media))
    assert "films" in manifest.lineage["golden"]["source"]


# --- wrong parts -------------------------------------------------------------------------------------------


def onnx_edit(file: str, change: Callable[[onnx.GraphProto], object]) -> Edit:
    """Return an edit of one ONNX file's graph."""

    def edit(folder: Path) -> None:
        model = onnx.load(folder / file)
        change(model.graph)
        onnx.save(model, folder / file)

    return edit


def instead(file: str, output: str, *nodes: Sequence[str]) -> Edit:
    """Return an edit that puts nodes (operator, inputs…, output) before an output; "raw" is what it was."""

    def change(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == output:
                        names[index] = "raw"
        graph.initializer.append(helper.make_tensor("three", TensorProto.FLOAT, [], [3.0]))
        graph.initializer.append(helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]))
        for name, axis in (("first_axis", 0), ("last_axis", 1)):
            graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [axis]))
        graph.node.extend(helper.make_node(op, inputs, [given]) for op, *inputs, given in nodes)

    return onnx_edit(file, change)


def input_of(graph: onnx.GraphProto, name: str) -> onnx.TypeProto.Tensor:
    return next(value for value in graph.input if value.name == name).type.tensor_type


def recipe_edit(old: str, new: str) -> Edit:
    return lambda folder: replaced(folder / RECIPE, old, new)


def fix_batch(graph: onnx.GraphProto) -> None:
    input_of(graph, "pixels").shape.dim[0].dim_value = 1


def free_height(graph: onnx.GraphProto) -> None:
    input_of(graph, "pixels").shape.dim[2].dim_param = "height"


def float_mask(graph: onnx.GraphProto) -> None:
    input_of(graph, "audio_mask").elem_type = TensorProto.FLOAT


def rename_output(graph: onnx.GraphProto) -> None:
    graph.node.append(helper.make_node("Identity", ["tokens"], ["features"]))
    graph.output[0].name = "features"


def newest_opset(folder: Path) -> None:
    model = onnx.load(folder / "vision.onnx")
    model.opset_import[0].version = 23
    onnx.save(model, folder / "vision.onnx")


def cut(file: str) -> Edit:
    def edit(folder: Path) -> None:
        (folder / file).write_bytes((folder / file).read_bytes()[:2000])

    return edit


def pointer(folder: Path) -> None:
    (folder / "vision.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def other_width(folder: Path) -> None:
    make_tiny_llama(hidden_size=32, intermediate_size=48, layers=1).write(
        folder / "language_model.gguf", "F16"
    )


def other_tokenizer(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"<image>"', '"<photo>"'))


def narrow_delimiters(folder: Path) -> None:
    np.save(folder / "delimiters.npy", np.zeros((2, 3), np.float32))
    replaced(folder / RECIPE, "[prompt]", '[delimiters]\nfile = "delimiters.npy"\n\n[prompt]')


WRONG = {
    "fixed batch": (onnx_edit("vision.onnx", fix_batch), "the batch of input 'pixels' is fixed to 1"),
    "free height": (onnx_edit("vision.onnx", free_height), "--dim_param height --dim_value 32"),
    "mask": (onnx_edit("adapter.onnx", float_mask), "'audio_mask' must be bool, the file has float32"),
    "output's name": (onnx_edit("audio.onnx", rename_output), "lacks the output 'tokens'; it has features"),
    "opset": (newest_opset, "opset 23, and at most 20"),
    "side": (recipe_edit("side_px = 32", "side_px = 48"), "(batch, 3, 48, 48), which follows from"),
    "window": (
        recipe_edit("audio_window_s = 1.0", "audio_window_s = 2.0"),
        "'log_mel' must have the shape (batch, 100",
    ),
    "frames": (
        recipe_edit("frames = 4  # K", "frames = 5"),
        "'visual_tokens' must have the shape (batch, 20, 64)",
    ),
    "width": (other_width, "output 'tokens' must be (batch, tokens, 32)"),
    "emotions": (recipe_edit(', "dread"]', "]"), "the recipe names 2 emotions"),
    "NaN": (instead("vision.onnx", "tokens", ["Sqrt", "raw", "tokens"]), "not finite on a window of frames"),
    "NaN without sound": (
        instead(
            "adapter.onnx",
            "valence_arousal",
            ["Flatten", "audio_tokens", "flat"],
            ["ReduceL1", "flat", "last_axis", "sum"],
            ["Div", "raw", "sum", "valence_arousal"],
        ),
        "'valence_arousal' is not finite on a window of frames alone",
    ),
    "dropout": (
        instead(
            "audio.onnx", "tokens", ["RandomUniformLike", "raw", "noise"], ["Add", "raw", "noise", "tokens"]
        ),
        "between two runs on the same input",
    ),
    "batch norm": (
        instead(
            "audio.onnx",
            "tokens",
            ["ReduceMean", "raw", "first_axis", "mean"],
            ["Sub", "raw", "mean", "tokens"],
        ),
        "when others are in its batch",
    ),
    "constant": (
        instead("vision.onnx", "tokens", ["Mul", "raw", "zero", "tokens"]),
        "does not read its input",
    ),
    "logits": (
        instead("adapter.onnx", "emotions", ["Log", "raw", "emotions"]),
        "'emotions' is no distribution",
    ),
    "range": (
        instead("adapter.onnx", "valence_arousal", ["Add", "raw", "three", "valence_arousal"]),
        "valence and arousal are in [-1, 1]",
    ),
    "spread": (
        instead("adapter.onnx", "spread", ["Neg", "raw", "spread"]),
        "it is a standard deviation, above 0",
    ),
    "cut ONNX": (cut("vision.onnx"), "vision.onnx is not an ONNX file, or damaged"),
    "LFS": (pointer, "vision.onnx is a Git LFS pointer"),
    "cut GGUF": (cut("language_model.gguf"), "language_model.gguf is no GGUF file, or damaged"),
    "tokenizer": (
        other_tokenizer,
        "token 3 is '<photo>' in tokenizer.json and '<image>' in language_model.gguf",
    ),
    "stop": (recipe_edit('stop = "<|im_end|>"', 'stop = "</s>"'), "prompt.stop: '</s>' is no token"),
    "delimiters": (narrow_delimiters, "must be (2, 64)"),
    "absent file": (recipe_edit("audio.onnx", "sound.onnx"), "audio_encoder.file names no file"),
    "typo": (recipe_edit("[emo_adapter]", "[emo_adaptor]"), "did you mean emo_adapter?"),
    "constant left out": (recipe_edit("std = 4.57", ""), "front_end.log_mel.std is missing"),
    "two models": (recipe_edit("# folder =", "folder ="), "language_model takes files (GGUF) or folder"),
    "question": (
        recipe_edit('question = "{question}', 'question = "'),
        "prompt.question must hold {question} once",
    ),
}


@pytest.mark.parametrize(("edit", "sentence"), WRONG.values(), ids=WRONG)
def test_a_wrong_part_is_refused_with_a_sentence(copied: Path, edit: Edit, sentence: str) -> None:
    edit(copied)
    assert sentence in refusal(copied)


def test_all_problems_of_a_recipe_come_at_once(copied: Path) -> None:
    replaced(copied / RECIPE, 'name = "gallery"', "")
    replaced(copied / RECIPE, 'emotions = ["calm", "joy", "dread"]', 'emotions = ["calm"]')
    replaced(copied / RECIPE, '"vision.onnx"', '"sight.onnx"')
    said = refusal(copied)
    assert said.startswith("3 problems:")
    assert all(word in said for word in ("name is missing", "emotions must be two or more", "sight.onnx"))


def test_an_inverted_mask_shows_in_the_readings(copied: Path) -> None:
    """A mask that is true where a token is absent, as in torch's key_padding_mask."""

    def invert(graph: onnx.GraphProto) -> None:
        for mask in ("audio_mask", "visual_mask"):
            for node in graph.node:
                node.input[:] = [f"not_{mask}" if name == mask else name for name in node.input]
            graph.node.insert(0, helper.make_node("Not", [mask], [f"not_{mask}"]))

    onnx_edit("adapter.onnx", invert)(copied)
    assert "gives one 'valence_arousal' for all windows of sound alone" in refusal(copied)


def test_an_architecture_that_changes_its_embeddings_is_refused(llama: TinyLlama, tmp_path: Path) -> None:
    """llama.cpp scales the rows of Gemma 3's tokens, and no embeddings that it is given."""
    llama.write(tmp_path / "llama.gguf", "F16")
    token_embeddings(tmp_path / "llama.gguf", [1, 20, 30], has_grid=False)
    reader = gguf.GGUFReader(tmp_path / "llama.gguf")
    writer = gguf.GGUFWriter(tmp_path / "gemma.gguf", "gemma3")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = field.types[1] if len(field.types) > 1 else None
            renamed = key.replace("llama.", "gemma3.")
            writer.add_key_value(renamed, field.contents(), field.types[0], sub_type=kind)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for norm, size in {
        "attn_q_norm": 16,
        "attn_k_norm": 16,
        "post_attention_norm": 64,
        "post_ffw_norm": 64,
    }.items():
        writer.add_tensor(f"blk.0.{norm}.weight", np.ones(size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UsageError, match="changes embeddings before the first layer"):
        token_embeddings(tmp_path / "gemma.gguf", [1, 20, 30], has_grid=False)


def test_a_failed_comparison_leaves_the_old_bundle(
    copied: Path, llama: TinyLlama, capsys: pytest.CaptureFixture[str]
) -> None:
    first = assemble(copied)
    other = make_tiny_llama(hidden_size=64, intermediate_size=96, layers=1, seed=1)
    other.write(copied / "other.gguf", "Q8_0")  # the same vocabulary, other weights
    replaced(copied / RECIPE, '["language_model.gguf"]', '["language_model.gguf", "other.gguf"]')
    words = ["assemble", str(copied / RECIPE), "--out", str(copied / "bundle"), "--clips", "2"]
    assert main(words) == 1
    assert "the bundle differs from its parts: language_model/Q8_0" in capsys.readouterr().err
    assert read_manifest(copied / "bundle") == first
    assert not read_manifest(copied / "bundle.unverified").verified


@pytest.mark.parametrize(
    "words", [[], ["--check", "--out", "bundle"], ["--check", "--calibration", "a.jsonl"]]
)
def test_options_that_do_not_go_together_are_refused(example: Path, words: list[str]) -> None:
    assert main(["assemble", str(example / RECIPE), *words]) == 2
