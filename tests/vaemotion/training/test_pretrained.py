"""SmolVLM2 and AST from local folders: the real classes at a small size, through stage 1."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    ASTConfig,
    ASTModel,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from tests.tiny import CONFIG_FILE, SMALL, tiny_config, tiny_tokenizer
from vaemotion.cli.main import main
from vaemotion.contract.bundle import sha256_of
from vaemotion.contract.errors import UsageError
from vaemotion.contract.front_end import FrontEnd
from vaemotion.model.audio_encoders import AstEncoder
from vaemotion.model.checkpoint import CheckpointError, load_checkpoint, read_config, save_checkpoint
from vaemotion.model.pretrained import pretrained_audio_encoder, pretrained_base
from vaemotion.training.base_vlm import vlm_config
from vaemotion.training.config import read_training_config

AST = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_length": 100,
    "num_mel_bins": 32,
}


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random SmolVLM as its authors save theirs."""
    folder = tmp_path_factory.mktemp("vlm")
    tokenizer = Tokenizer.from_str(tiny_tokenizer().to_str())
    tokenizer.add_special_tokens(["<fake_token_around_image>", "<global-img>"])
    size = replace(tiny_config().vlm, vocabulary=tokenizer.get_vocab_size())
    torch.manual_seed(3)
    SmolVLMForConditionalGeneration(SmolVLMConfig(**vlm_config(size, 24))).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def ast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a random AST as its authors save theirs."""
    folder = tmp_path_factory.mktemp("ast")
    torch.manual_seed(4)
    ASTModel(ASTConfig(**AST)).save_pretrained(folder)
    return folder


def align(vlm: Path, ast: Path, settings: list[str]) -> int:
    """Run ``vaemotion train align`` from both folders and return the exit code."""
    words = [word for setting in settings for word in ("--set", setting)]
    folders = ["--vlm", str(vlm), "--audio-encoder", str(ast)]
    return main(["train", "align", "--config", str(CONFIG_FILE), *words, *folders])


def short_run(runs: Path) -> list[str]:
    """Return the settings of a training of one step."""
    return [
        *SMALL,
        "windows.audio_window_s=2.0",
        f"runs={runs}",
        "align.clips=['art:4']",
        *("align.empty_bits=-1.0", "align.incoherent_bits=1.0"),  # a random teacher has no opinions
        "align.optimisation.steps=1",
        "align.optimisation.batch=2",
        "align.optimisation.workers=0",
    ]


def test_stage_1_starts_from_both_and_leaves_the_base_as_it_was(vlm: Path, ast: Path, tmp_path: Path) -> None:
    assert align(vlm, ast, [*short_run(tmp_path), "align.optimisation.learning_rate=1e-6"]) == 0
    model = load_checkpoint(tmp_path / "align")
    source = SmolVLMForConditionalGeneration.from_pretrained(vlm).state_dict()
    # The base is stored in float16 and otherwise unchanged.
    for name, tensor in model.base.state_dict().items():
        assert torch.equal(tensor, source[name].half().float()), name
    assert isinstance(model.audio_pathway.encoder, AstEncoder)
    original = ASTModel.from_pretrained(ast).state_dict()
    for name, tensor in model.audio_pathway.encoder.ast.state_dict().items():
        assert torch.allclose(tensor, original[name], atol=2e-3), name  # one tiny step, and float16
    assert model.audio_pathway(torch.zeros(1, 100, 32)).shape[2] == 64


def test_a_checkpoint_names_its_base_and_holds_only_trained_parts(
    vlm: Path, ast: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The named base is verified whenever it is loaded."""
    moved = tmp_path / "SmolVLM2"
    shutil.copytree(vlm, moved)
    assert align(moved, ast, short_run(tmp_path / "runs")) == 0
    checkpoint = tmp_path / "runs" / "align"
    assert sorted(f.name for f in checkpoint.iterdir()) == [
        "audio.safetensors",
        "config.json",
        "tokenizer.json",
    ]
    entry = read_config(checkpoint)["components"]["base"]
    assert entry["files"] == {f: sha256_of(vlm / f) for f in ("config.json", "model.safetensors")}
    before = load_checkpoint(checkpoint)
    save_checkpoint(before, tmp_path / "again", {}, "Apache-2.0")  # as the next stage does
    assert read_config(tmp_path / "again")["components"]["base"]["sha256"] == entry["sha256"]
    assert not (tmp_path / "again" / "base.safetensors").exists()

    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(
        CheckpointError, match=r"trained on the base SmolVLM2, and .* is missing; set VAEMOTION_BASE"
    ):
        load_checkpoint(checkpoint)
    monkeypatch.setenv("VAEMOTION_BASE", str(tmp_path / "elsewhere"))
    found = load_checkpoint(checkpoint)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), before.parameters(), strict=True))
    weights = tmp_path / "elsewhere" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"is not the base that .* was trained on"):
        load_checkpoint(checkpoint)


def test_frames_stand_between_the_special_tokens_of_smolvlm2(vlm: Path) -> None:
    """The order is that of SmolVLM's own processor: fake, global, one place for each visual token, fake."""
    config = tiny_config()
    model = pretrained_base(vlm, FrontEnd(config.log_mel, config.image, config.windows)).eval()
    visual = torch.randn(1, 8, 64)  # two frames of four tokens
    image = "<image>" * 4
    text = "<|im_start|>User:" + 2 * f"<fake_token_around_image><global-img>{image}<fake_token_around_image>"
    expected = model.embed(torch.tensor([model.token_ids(text)]))
    places = torch.tensor([model.token_ids(text)]) == model.token_ids("<image>")[0]
    assert places.sum() == 8
    expected = expected.masked_scatter(places[..., None], visual)
    assert torch.equal(model.media_embeddings(visual, None, 1), expected)


def test_our_vision_encoder_gives_the_tokens_of_the_vlms_own(vlm: Path) -> None:
    config = tiny_config()
    model = pretrained_base(vlm, FrontEnd(config.log_mel, config.image, config.windows)).eval()
    source = SmolVLMForConditionalGeneration.from_pretrained(vlm).half().float().eval()  # as it is shipped
    pixels = torch.randn(1, 3, 24, 24)
    with torch.no_grad():
        expected = source.model.get_image_features(pixels[None]).pooler_output[0]
        assert torch.allclose(model.vision(pixels)[0], expected.reshape(4, 64), atol=1e-5)


def test_another_image_side_names_the_setting_that_helps(vlm: Path) -> None:
    config = tiny_config("image.side_px=48")
    with pytest.raises(UsageError, match=r"add --set image\.side_px=24"):
        pretrained_base(vlm, FrontEnd(config.log_mel, config.image, config.windows))


def test_folders_of_other_models_are_refused_by_their_type(vlm: Path, ast: Path, tmp_path: Path) -> None:
    config = tiny_config()
    with pytest.raises(UsageError, match="'audio-spectrogram-transformer', expected 'smolvlm'"):
        pretrained_base(ast, FrontEnd(config.log_mel, config.image, config.windows))
    with pytest.raises(UsageError, match="expected 'audio-spectrogram-transformer'"):
        pretrained_audio_encoder(vlm)
    with pytest.raises(UsageError, match=r"holds no readable config\.json"):
        pretrained_audio_encoder(tmp_path)
    (tmp_path / "config.json").write_text((ast / "config.json").read_text())
    with pytest.raises(UsageError, match="its weights cannot be loaded"):
        pretrained_audio_encoder(tmp_path)


def test_an_audio_encoder_that_does_not_fit_the_front_end_is_refused_with_both_sizes(
    vlm: Path, ast: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align(vlm, ast, [*SMALL, f"runs={tmp_path}"]) == 2
    assert "takes 100 frames of 32 mels, the configuration gives 50 of 32" in capsys.readouterr().err


def test_the_shipped_configuration_fits_the_published_models() -> None:
    """SmolVLM2-500M takes 512 px, AST 1024 frames of 128 mels, normalized as by its feature extractor."""
    config = read_training_config(CONFIG_FILE.with_name("smolvlm2-500m-ast.toml"))
    front_end = FrontEnd(config.log_mel, config.image, config.windows)
    published = ASTConfig()  # its defaults
    assert config.image.side_px == 512
    assert (front_end.audio_window_frames, config.log_mel.n_mels) == (
        published.max_length,
        published.num_mel_bins,
    )
    assert (config.log_mel.mean, config.log_mel.std) == (-4.2677393, 4.5689974)
