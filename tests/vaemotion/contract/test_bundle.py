"""The bundle's manifest: what is written is read back, and damaged or malicious ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vaemotion.contract.audio import log_mel
from vaemotion.contract.bundle import (
    ENGINE_ROLES,
    MANIFEST_FILE,
    ROLES,
    BundleError,
    Component,
    Manifest,
    TensorSpec,
    check_front_end,
    component_path,
    read_golden,
    read_manifest,
    sha256_of,
    verify_files,
    write_manifest,
)
from vaemotion.contract.emotions import EMOTIONS
from vaemotion.contract.front_end import FrontEnd
from vaemotion.contract.image import prepare_frame
from vaemotion.contract.prompts import PromptTemplate
from vaemotion.contract.speech import UNSET, Speech

FRONT_END = FrontEnd()


def golden() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    samples = (0.1 * rng.standard_normal(8000)).astype(np.float32)
    frame = rng.integers(0, 256, (120, 90, 3), dtype=np.uint8)
    return {
        "log_mel/samples": samples,
        "log_mel/output": log_mel(samples, FRONT_END.log_mel),
        "pixels/picture": frame,
        "pixels/output": prepare_frame(frame, FRONT_END.image),
    }


def component_of(folder: Path, role: str, name: str) -> Component:
    file = folder / "components" / name
    tensors = (TensorSpec("x", ("batch", 3), "float32"),) if role in ENGINE_ROLES else ()
    precision = "fp32" if role in ENGINE_ROLES else "none"
    return Component(
        role,
        precision,
        f"components/{name}",
        sha256_of(file),
        file.stat().st_size,
        "Apache-2.0",
        tensors,
        tensors,
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Make a complete bundle of dummy files."""
    folder = tmp_path / "bundle"
    (folder / "components").mkdir(parents=True)
    names = {role: f"{role}.bin" for role in ROLES if role != "golden"}
    for role, name in names.items():
        content = (role.encode() * 50)[:127]
        # An engine's graph is read: this one has the name of a program and nothing else.
        (folder / "components" / name).write_bytes(b"\x12\x7f" + content if role in ENGINE_ROLES else content)
    np.savez(folder / "components" / "golden.npz", **golden())
    names["golden"] = "golden.npz"
    manifest = Manifest(
        name="dummy",
        token_width=256,
        tokens_per_frame=16,
        audio_tokens=15,
        stop_token_ids=(4, 0),
        front_end=FRONT_END,
        prompt=PromptTemplate(),
        components=tuple(component_of(folder, role, name) for role, name in names.items()),
        tolerances={"vision_encoder/fp32": 1e-4},
        lineage={"checkpoint": "abc"},
        verification={"edges": [{"max": 1e-6}]},
    )
    write_manifest(folder, manifest)
    return folder


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest's JSON."""
    file = bundle / MANIFEST_FILE
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def test_what_is_written_is_read_back(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.front_end == FRONT_END
    assert manifest.prompt == PromptTemplate()
    assert manifest.stop_token_ids == (4, 0)
    assert manifest.component("vision_encoder").inputs == (TensorSpec("x", ("batch", 3), "float32"),)
    first = (bundle / MANIFEST_FILE).read_bytes()
    write_manifest(bundle, manifest)
    assert (bundle / MANIFEST_FILE).read_bytes() == first
    assert sorted(p.name for p in bundle.iterdir()) == ["components", MANIFEST_FILE]
    verify_files(bundle, manifest)


def test_a_manifest_without_names_of_emotions_has_the_nine(bundle: Path) -> None:
    edit(bundle, lambda m: m.pop("emotions"))
    assert read_manifest(bundle).emotions == EMOTIONS
    edit(bundle, lambda m: m.update(emotions=["awe", "saudade"]))
    assert read_manifest(bundle).emotions == ("awe", "saudade")


def test_a_manifest_says_as_much_of_the_speech_as_it_likes(bundle: Path) -> None:
    assert read_manifest(bundle).speech == UNSET
    edit(bundle, lambda m: m.pop("speech"))
    assert read_manifest(bundle).speech == UNSET
    edit(bundle, lambda m: m.update(speech={"question": "How does it feel?", "sentences": 1}))
    assert read_manifest(bundle).speech == Speech("How does it feel?", sentences=1)


@pytest.mark.parametrize("names", ["awe", ["awe"], ["awe", "Awe"], ["awe", ""], ["awe", 3], {"awe": 1}])
def test_names_of_emotions_that_cannot_be_told_apart_are_refused(bundle: Path, names: object) -> None:
    edit(bundle, lambda m: m.update(emotions=names))
    with pytest.raises(BundleError, match="emotions must be"):
        read_manifest(bundle)


def test_as_many_emotions_are_named_as_the_adapter_gives(bundle: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        [adapter] = [c for c in manifest["components"] if c["role"] == "emo_adapter"]
        adapter["outputs"] = [{"name": "emotions", "shape": ["batch", 9], "dtype": "float32"}]

    edit(bundle, change)
    assert len(read_manifest(bundle).emotions) == 9
    edit(bundle, lambda m: m.update(emotions=["awe", "saudade"]))
    with pytest.raises(BundleError, match=r"emo_adapter \(fp32\) gives 9 emotions, but 2 are named"):
        read_manifest(bundle)


def test_a_component_is_found_by_role_and_precision(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    half = replace(manifest.component("emo_adapter"), precision="fp16")
    manifest = replace(manifest, components=(*manifest.components, half))
    assert manifest.component("emo_adapter").precision == "fp32"
    assert manifest.component("emo_adapter", "fp16") is half
    with pytest.raises(BundleError, match=r"no emo_adapter in int8; it has .*emo_adapter \(fp16\)"):
        manifest.component("emo_adapter", "int8")


@pytest.mark.parametrize("role", ROLES)
def test_a_bundle_without_a_role_is_refused_by_its_name(bundle: Path, role: str) -> None:
    edit(bundle, lambda m: m.update(components=[c for c in m["components"] if c["role"] != role]))
    with pytest.raises(BundleError, match=f"no {role}"):
        read_manifest(bundle)


@pytest.mark.parametrize("role", ROLES)
def test_one_flipped_byte_is_found_and_named(bundle: Path, role: str) -> None:
    manifest = read_manifest(bundle)
    file = component_path(bundle, manifest.component(role))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=rf"{role}.*{file.name} is damaged") as refusal:
        verify_files(bundle, manifest)
    assert "again" in str(refusal.value)


@pytest.mark.parametrize("role", ROLES)
def test_a_truncated_file_is_named_with_its_sizes(bundle: Path, role: str) -> None:
    manifest = read_manifest(bundle)
    component = manifest.component(role)
    file = component_path(bundle, component)
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(BundleError, match=rf"{role}.*{component.bytes - 7} bytes, not {component.bytes}"):
        verify_files(bundle, manifest)


def test_a_missing_file_is_named(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    component_path(bundle, manifest.component("tokenizer")).unlink()
    with pytest.raises(BundleError, match=r"tokenizer: components/tokenizer.bin is missing"):
        verify_files(bundle, manifest)


SEGMENTS = st.sampled_from(["..", ".", "components", "a", "/", "~", "\x00", "é", "..."])
EVIL_PATHS = st.one_of(
    st.builds(lambda tail: "/" + tail, st.text(max_size=20)),
    st.builds(
        lambda depth, tail: "components/" + "../" * depth + tail,
        st.integers(2, 6),
        st.sampled_from(["x", "etc/passwd"]),
    ),
    st.lists(SEGMENTS, max_size=8).map("/".join),
    st.text(max_size=30),
    st.just("components/" + "b" * 300),
)


@given(path=EVIL_PATHS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_path_ever_leads_out_of_the_bundle_or_to_a_traceback(bundle: Path, path: str) -> None:
    """Every path in a manifest is a file inside the folder, or is refused as a BundleError."""
    original = (bundle / MANIFEST_FILE).read_text()
    try:
        edit(bundle, lambda m: m["components"][0].update(path=path))
        try:
            manifest = read_manifest(bundle)
            resolved = component_path(bundle, manifest.components[0])
            verify_files(bundle, manifest)
        except BundleError:
            return
        # another name of the same file
        assert resolved == (bundle / "components" / "vision_encoder.bin").resolve()
    finally:
        (bundle / MANIFEST_FILE).write_text(original)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../secret", "components/../../secret", "components/../../bundle2/x"]
)
def test_a_path_that_leaves_the_folder_is_refused_before_it_is_read(bundle: Path, path: str) -> None:
    (bundle.parent / "secret").write_text("secret")
    edit(bundle, lambda m: m["components"][3].update(path=path))
    with pytest.raises(BundleError, match=r"language_model.*leaves the bundle's folder"):
        read_manifest(bundle)


def test_an_absolute_path_is_refused_even_where_it_points_inside(bundle: Path) -> None:
    edit(bundle, lambda m: m["components"][0].update(path=str(bundle / "components" / "vision_encoder.bin")))
    with pytest.raises(BundleError, match="leaves the bundle's folder"):
        read_manifest(bundle)


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_symbolic_link_out_of_the_folder_is_refused(bundle: Path, linked: str) -> None:
    outside = bundle.parent / "outside"
    (bundle / "components").rename(outside) if linked == "folder" else outside.mkdir()
    if linked == "folder":
        (bundle / "components").symlink_to(outside)
    else:
        file = bundle / "components" / "tokenizer.bin"
        file.rename(outside / "tokenizer.bin")
        file.symlink_to(outside / "tokenizer.bin")
    with pytest.raises(BundleError, match="leaves the bundle's folder"):
        read_manifest(bundle)


@pytest.mark.parametrize("path", [None, 7, ["components"], {"a": 1}])
def test_a_path_that_is_no_text_is_refused(bundle: Path, path: object) -> None:
    edit(bundle, lambda m: m["components"][0].update(path=path))
    with pytest.raises(BundleError):
        read_manifest(bundle)


def test_an_unknown_role_is_refused(bundle: Path) -> None:
    edit(bundle, lambda m: m["components"].append({**m["components"][0], "role": "nose"}))
    with pytest.raises(BundleError, match="'nose'"):
        read_manifest(bundle)


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_schema_version_is_refused_with_the_way_out(bundle: Path, version: object) -> None:
    edit(bundle, lambda m: m.update(schema_version=version))
    with pytest.raises(
        BundleError, match=rf"schema version {version}.*implements 1; export the checkpoint again"
    ):
        read_manifest(bundle)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m.update(smell=1), "smell"),
        (lambda m: m.pop("tokens_per_frame"), "tokens_per_frame"),
        (lambda m: m.pop("components"), "components"),
        (lambda m: m["components"][1].update(color="red"), "color"),
        (lambda m: m["components"][1].pop("sha256"), "sha256"),
        (lambda m: m["components"][0]["inputs"][0].update(unit="s"), "unit"),
        (lambda m: m["front_end"]["log_mel"].update(dither=1.0), "dither"),
        (lambda m: m["front_end"]["image"].pop("mean"), "mean"),
        (lambda m: m["front_end"]["windows"].update(frames=0), "frames"),
        (lambda m: m["prompt"].update(system="x"), "system"),
        (lambda m: m.update(speech={"tone": "warm"}), "tone"),
        (lambda m: m.update(speech={"sentences": 2.5}), r"speech\.sentences"),
        (lambda m: m.update(speech={"question": "\x1b[31m"}), "question must be a text"),
        (lambda m: m.update(speech="warm"), "manifest"),
        (lambda m: m.update(components=5), "manifest"),
        (lambda m: m.update(front_end=[]), "manifest"),
    ],
)
def test_an_unknown_missing_or_impossible_key_is_refused_by_name(
    bundle: Path, change: Callable[[dict[str, Any]], None], named: str
) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=named):
        read_manifest(bundle)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"manifest"', "\xff"])
def test_a_file_that_is_no_manifest_is_refused(bundle: Path, content: str) -> None:
    (bundle / MANIFEST_FILE).write_bytes(content.encode("latin-1"))
    with pytest.raises(BundleError, match=MANIFEST_FILE):
        read_manifest(bundle)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no bundle at '.*' \(manifest\.json not found\)"):
        read_manifest(tmp_path)


def test_the_golden_front_end_is_this_machines(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    measured = check_front_end(manifest, read_golden(bundle, manifest))
    assert measured == {"log_mel": 0.0, "pixels": 0.0}


TWO_STEPS = 2 / 255 / 0.5  # of 8 bits, in pixels normalized by a standard deviation of 0.5


@pytest.mark.parametrize(
    ("name", "error", "refused"),
    [
        ("log_mel", 5e-4, False),
        ("log_mel", 2e-3, True),
        ("log_mel", np.nan, True),
        ("pixels", 0.9 * TWO_STEPS, False),
        ("pixels", 1.1 * TWO_STEPS, True),
    ],
)
def test_one_golden_value_beyond_the_tolerance_refuses_the_machine(
    bundle: Path, name: str, error: float, refused: bool
) -> None:
    manifest, vectors = read_manifest(bundle), golden()
    vectors[f"{name}/output"][(3, 3) if name == "log_mel" else (0, 3, 3)] += error
    if refused:
        with pytest.raises(BundleError, match=f"{name}: this machine's front end differs"):
            check_front_end(manifest, vectors)
    else:
        assert check_front_end(manifest, vectors)[name] == pytest.approx(error, rel=0.1)


def test_pixels_with_a_smaller_deviation_may_differ_by_as_many_steps_of_8_bits(bundle: Path) -> None:
    edit(bundle, lambda m: m["front_end"]["image"].update(std=0.25))
    manifest, vectors = read_manifest(bundle), golden()
    vectors["pixels/output"] = prepare_frame(vectors["pixels/picture"], manifest.front_end.image)
    vectors["pixels/output"][0, 3, 3] += 1.8 * TWO_STEPS
    check_front_end(manifest, vectors)
    vectors["pixels/output"][0, 3, 3] += 0.4 * TWO_STEPS
    with pytest.raises(BundleError, match="pixels: this machine's front end differs"):
        check_front_end(manifest, vectors)


def test_other_constants_than_the_golden_ones_are_noticed(bundle: Path) -> None:
    edit(bundle, lambda m: m["front_end"]["log_mel"].update(preemphasis=0.95))
    manifest = read_manifest(bundle)
    with pytest.raises(BundleError, match="log_mel"):
        check_front_end(manifest, read_golden(bundle, manifest))
    edit(bundle, lambda m: m["front_end"]["log_mel"].update(preemphasis=0.97, hop_samples=160))
    with pytest.raises(BundleError, match="log_mel"):
        check_front_end(read_manifest(bundle), golden())


def test_pickled_golden_vectors_are_never_loaded(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    np.savez(component_path(bundle, manifest.component("golden")), evil=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="pickle"):
        read_golden(bundle, manifest)
