"""Pretrained parts from folders as they are published: every weight from the folder, or a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.published_folders import AST, VLMS, published, write_ast, write_vlm
from tests.tiny import CONFIG_FILE, tiny_config
from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import FrontEnd
from vaemotion.model.audio_encoders import build_audio_encoder
from vaemotion.model.families import family_of
from vaemotion.model.pretrained import load_base, pretrained_audio_encoder, pretrained_base
from vaemotion.model.weights_folder import read_folder_config
from vaemotion.training.config import read_training_config

WEIGHTS = "model.safetensors"
LAYER = "model.text_model.layers.1.self_attn.q_proj.weight"


def front_end(*overrides: str) -> FrontEnd:
    config = tiny_config("image.side_px=48", "windows.audio_window_s=2.0", *overrides)
    return FrontEnd(config.log_mel, config.image, config.windows)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vlm(tmp_path_factory.mktemp("published") / "SmolVLM2-256M")


@pytest.fixture(scope="module")
def ast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ast(tmp_path_factory.mktemp("published") / "ast")


def variant(source: Path, folder: Path, change: Callable[[dict[str, Tensor]], object], **config: Any) -> Path:
    """Copy a folder with other tensors and other entries of its config."""
    folder.mkdir(exist_ok=True)
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    values = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | config))
    return folder


def unchanged(tensors: dict[str, Tensor]) -> None:
    """Leave the tensors as they are."""


def refused(folder: Path) -> str:
    """Return the sentence with which a base is refused."""
    with pytest.raises(UsageError) as caught:
        pretrained_base(folder, front_end())
    return str(caught.value)


# -- what is loaded -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VLMS)
def test_every_weight_of_a_published_folder_is_loaded_in_float32(name: str, tmp_path: Path) -> None:
    folder = write_vlm(tmp_path, name)
    side_px = json.loads((folder / "config.json").read_text())["vision_config"]["image_size"]
    model = pretrained_base(folder, front_end(f"image.side_px={side_px}"))
    stored = load_file(folder / WEIGHTS)
    loaded = model.base.state_dict()
    assert set(loaded) == set(stored)
    for name, tensor in loaded.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[name].half().float()), name  # as it is shipped
    with torch.no_grad():
        logits = model.base(inputs_embeds=torch.randn(1, 3, model.width)).logits
        tokens = model.vision(torch.zeros(1, 3, side_px, side_px))
    assert logits.dtype == tokens.dtype == torch.float32
    assert tokens.shape == (1, 4, model.width)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("where", ["top", "text_config", "vision_config"])
def test_no_dtype_of_a_config_changes_what_is_loaded(vlm: Path, name: str, where: str) -> None:
    config = read_folder_config(vlm, "a base")
    plain = load_base(vlm, config).state_dict()
    (config if where == "top" else config[where])[name] = "bfloat16"
    for key, tensor in load_base(vlm, config).state_dict().items():  # as a checkpoint's config may say it
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, plain[key])


def test_a_base_is_the_same_at_each_load_and_its_file_stays_as_it_was(vlm: Path) -> None:
    before = (vlm / WEIGHTS).read_bytes()
    loads = []
    for seed in range(2):
        torch.manual_seed(seed)
        loads.append(pretrained_base(vlm, front_end()).base.state_dict())
    assert all(torch.equal(loads[0][key], loads[1][key]) for key in loads[0])
    assert (vlm / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("smolvlm2-256m", 256_484_928),
        ("smolvlm2-500m", 507_482_304),
        ("smolvlm2-2.2b", 2_246_784_880),
        ("smolvlm-256m", 256_484_928),
    ],
)
def test_the_published_configs_have_the_sizes_of_the_published_models(name: str, parameters: int) -> None:
    config = published(name)["config.json"]
    family = family_of(config)
    with torch.device("meta"):
        network = family.network_class(family.config_class(**config))
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_an_ast_is_loaded_under_its_old_names_without_its_classifier(ast: Path) -> None:
    stored = load_file(ast / WEIGHTS)
    assert any("attention.attention.query" in name for name in stored)  # as the hub's file has them
    assert any(name.startswith("classifier.") for name in stored)
    config, weights = pretrained_audio_encoder(ast, front_end())
    encoder, steps, width = build_audio_encoder(config)
    encoder.load_state_dict(weights)
    assert encoder(torch.zeros(1, 100, 32)).shape == (1, steps, width)
    assert sorted(float(t.double().sum()) for t in weights.values()) == sorted(
        float(t.double().sum()) for name, t in stored.items() if not name.startswith("classifier.")
    )


def test_loading_says_nothing_of_its_own(
    vlm: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the progress bars of ``transformers`` nor its report of what is missing."""
    pretrained_base(vlm, front_end())
    refused(variant(vlm, tmp_path / "damaged", lambda tensors: tensors.pop(LAYER)))
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_weights_are_held_once(tmp_path: Path) -> None:
    """Measured as the growth of resident memory while 160 MB are loaded."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    folder = write_vlm(tmp_path)
    config = read_folder_config(folder, "a base")
    config["text_config"] |= {"hidden_size": 576, "intermediate_size": 4096, "num_hidden_layers": 5}
    family = family_of(config)
    with torch.device("meta"):
        shapes = family.network_class(family.config_class(**config)).state_dict()
    save_file({name: torch.ones(value.shape).bfloat16() for name, value in shapes.items()}, folder / WEIGHTS)

    def resident_bytes(key: str) -> int:
        found = re.search(rf"{key}:\s+(\d+) kB", status.read_text())
        assert found is not None
        return 1024 * int(found[1])

    load_base(write_vlm(tmp_path / "first"), read_folder_config(tmp_path / "first", "a base"))
    reset.write_text("5")  # the peak is the present again
    before = resident_bytes("VmRSS")
    network = load_base(folder, config)
    held = sum(4 * parameter.numel() for parameter in network.parameters())
    ratio = (resident_bytes("VmHWM") - before) / held
    print(f"\n{held / 1e6:.0f} MB of weights, peak {ratio:.2f} times that")
    assert held > 100e6
    assert ratio < 1.3


# -- what is refused ------------------------------------------------------------------------------------

DAMAGES = ("drop", "rename", "prefix", "reshape", "transpose", "add", "swap")


def damage(tensors: dict[str, Tensor], how: str, name: str, other: str) -> None:
    """Change one tensor of a folder."""
    if how == "swap":
        tensors[name], tensors[other] = tensors[other], tensors[name]
        return
    tensor = tensors[name]
    if how == "add":
        tensors[name + "_scale"] = torch.ones(1)
        return
    tensors.pop(name)
    if how == "rename":
        tensors[name + "s"] = tensor
    if how == "prefix":
        tensors["net." + name] = tensor
    if how == "reshape":
        tensors[name] = torch.cat([tensor, tensor])
    if how == "transpose":
        tensors[name] = tensor.movedim(0, -1).contiguous()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_damage_of_a_tensor_is_loaded_in_silence(
    data: st.DataObject, vlm: Path, ast: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = data.draw(st.sampled_from([vlm, ast]))
    stored = load_file(source / WEIGHTS)
    names = sorted(name for name in stored if not name.startswith("classifier."))
    changes = data.draw(
        st.lists(
            st.tuples(st.sampled_from(DAMAGES), st.sampled_from(names), st.sampled_from(names)),
            min_size=1,
            max_size=3,
            unique_by=(lambda change: change[1], lambda change: change[2]),
        )
    )
    changes = [change for change in changes if change[1] not in {other for _, _, other in changes}]
    damaged = dict(stored)
    for change in changes:
        damage(damaged, *change)
    shapes = {name: tensor.shape for name, tensor in damaged.items()}
    if shapes == {name: tensor.shape for name, tensor in stored.items()}:
        return  # square or swapped among equals: another model, whole
    folder = variant(source, tmp_path_factory.mktemp("damaged"), lambda tensors: None)
    save_file(damaged, folder / WEIGHTS)
    load = pretrained_base if source == vlm else pretrained_audio_encoder
    with pytest.raises(UsageError, match=r"does not hold the model of its config\.json") as caught:
        load(folder, front_end())
    assert "\n" not in str(caught.value)


def test_a_missing_tensor_is_named(vlm: Path, tmp_path: Path) -> None:
    sentence = refused(variant(vlm, tmp_path, lambda tensors: tensors.pop(LAYER)))
    assert f"1 tensor is missing ({LAYER})" in sentence
    assert sentence.endswith("Copy config.json and weights of one model, whole")


def test_the_names_of_another_program_are_told_apart_from_missing_tensors(vlm: Path, tmp_path: Path) -> None:
    def other_names(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace("model.text_model", "language_model.model")] = tensors.pop(name)

    sentence = refused(variant(vlm, tmp_path, other_names))
    assert (
        "model.text_model.embed_tokens.weight is called language_model.model.embed_tokens.weight" in sentence
    )
    assert "save_pretrained()" in sentence


@pytest.mark.parametrize(("layers", "sentence"), [(3, "says more layers"), (1, "says fewer layers")])
def test_another_depth_is_told(vlm: Path, tmp_path: Path, layers: int, sentence: str) -> None:
    text = json.loads((vlm / "config.json").read_text())["text_config"]
    folder = variant(vlm, tmp_path, unchanged, text_config=text | {"num_hidden_layers": layers})
    assert sentence in refused(folder)


def test_a_quantized_tensor_is_told_by_its_neighbors(vlm: Path, tmp_path: Path) -> None:
    def quantize(tensors: dict[str, Tensor]) -> None:
        module = LAYER.removesuffix("weight")
        tensors[module + "qzeros"] = tensors.pop(LAYER).to(torch.int32)

    assert f"{LAYER.removesuffix('weight')}qzeros looks quantized" in refused(
        variant(vlm, tmp_path, quantize)
    )


def test_an_unmerged_lora_is_refused_with_the_recipe(vlm: Path, tmp_path: Path) -> None:
    def wrap(tensors: dict[str, Tensor]) -> None:
        tensors[LAYER.replace(".weight", ".base_layer.weight")] = tensors.pop(LAYER)

    assert "merge_and_unload()" in refused(variant(vlm, tmp_path, wrap))


def test_a_head_is_tied_where_the_config_says_so_and_nowhere_else(vlm: Path, tmp_path: Path) -> None:
    head, table = "lm_head.weight", "model.text_model.embed_tokens.weight"

    def same(tensors: dict[str, Tensor]) -> None:
        tensors[head] = tensors[table].clone()

    for number, change in enumerate((lambda tensors: tensors.pop(head), same)):
        tied = variant(vlm, tmp_path / str(number), change, tie_word_embeddings=True)
        model = pretrained_base(tied, front_end())
        assert model.backbone.tied
        assert torch.equal(model.base.lm_head.weight, load_file(vlm / WEIGHTS)[table].half().float())
    assert f"missing ({head})" in refused(variant(vlm, tmp_path / "no", lambda tensors: tensors.pop(head)))
    sentence = refused(variant(vlm, tmp_path / "two", unchanged, tie_word_embeddings=True))
    assert "set tie_word_embeddings to false" in sentence
    both = variant(vlm, tmp_path / "none", lambda t: (t.pop(head), t.pop(table)), tie_word_embeddings=True)
    assert f"2 tensors are missing ({head}, {table})" in refused(both)


def test_weights_beyond_float16_are_refused(vlm: Path, tmp_path: Path) -> None:
    large = variant(vlm, tmp_path, lambda tensors: tensors.update({LAYER: tensors[LAYER] + 1e5}))
    assert f"{LAYER} is not finite in float16" in refused(large)


@pytest.mark.parametrize(
    ("part", "changes", "sentence"),
    [
        ("vision_config", {"image_size": None}, r"the side of the model's images \(image_size is missing\)"),
        ("vision_config", {"image_size": "large"}, r"does not say the side of the model's images"),
        ("vision_config", {"num_attention_heads": 7}, r"describes a network that cannot be built"),
        ("vision_config", {"patch_size": None}, r"of another shape"),
        ("text_config", {"hidden_size": None}, r"config\.json does not describe a SmolVLM2"),
        ("text_config", {"vocab_size": None}, r"of another shape"),
        ("text_config", {"num_hidden_layers": "two"}, r"config\.json does not describe a SmolVLM"),
        ("text_config", {"model_type": "no_such"}, r"config\.json does not describe a SmolVLM"),
        ("text_config", {"hidden_act": "no_such"}, r"describes a network that cannot be built \('no_such'\)"),
    ],
)
def test_a_config_that_lacks_a_key_or_has_a_wrong_one_is_refused(
    vlm: Path, tmp_path: Path, part: str, changes: dict[str, Any], sentence: str
) -> None:
    values = json.loads((vlm / "config.json").read_text())[part] | changes
    kept = {key: value for key, value in values.items() if value is not None}
    assert re.search(sentence, refused(variant(vlm, tmp_path, unchanged, **{part: kept})))


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
def test_a_config_without_a_part_is_refused(vlm: Path, tmp_path: Path, part: str) -> None:
    refused(variant(vlm, tmp_path, unchanged, **{part: None}))


def test_another_image_side_names_the_setting_that_helps(vlm: Path) -> None:
    with pytest.raises(UsageError, match=r"add --set image\.side_px=48"):
        pretrained_base(vlm, front_end("image.side_px=24"))


def test_folders_of_other_models_are_refused_by_their_type(vlm: Path, ast: Path) -> None:
    assert "'audio-spectrogram-transformer', expected 'smolvlm' (SmolVLM2)" in refused(ast)
    with pytest.raises(UsageError, match=r"'smolvlm', expected 'audio-spectrogram-transformer' \(AST\)"):
        pretrained_audio_encoder(vlm, front_end())


def test_a_tokenizer_that_is_missing_or_not_fetched_is_refused(vlm: Path, tmp_path: Path) -> None:
    folder = variant(vlm, tmp_path, unchanged)
    for content, sentence in (
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"{}", "cannot be read as a tokenizer"),
    ):
        (folder / "tokenizer.json").write_bytes(content)
        assert sentence in refused(folder)
    (folder / "tokenizer.json").unlink()
    assert "lacks tokenizer.json" in refused(folder)


def test_an_audio_encoder_that_does_not_fit_the_front_end_is_refused_with_both_sizes(ast: Path) -> None:
    with pytest.raises(UsageError, match="takes 100 frames of 32 mels, the configuration gives 50 of 32"):
        pretrained_audio_encoder(ast, front_end("windows.audio_window_s=1.0"))


def test_the_shipped_configuration_fits_the_published_models() -> None:
    """SmolVLM2-500M takes 512 px, AST 1024 frames of 128 mels, normalized as by its feature extractor."""
    config = read_training_config(CONFIG_FILE.with_name("smolvlm2-500m-ast.toml"))
    vision = published("smolvlm2-500m")["config.json"]["vision_config"]
    encoder, features = (published(AST)[file] for file in ("config.json", "preprocessor_config.json"))
    frames = FrontEnd(config.log_mel, config.image, config.windows).audio_window_frames
    assert config.image.side_px == vision["image_size"]
    assert (frames, config.log_mel.n_mels) == (encoder["max_length"], encoder["num_mel_bins"])
    assert (config.log_mel.mean, config.log_mel.std) == (features["mean"], features["std"])
