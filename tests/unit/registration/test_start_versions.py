"""Registered versions as a training's start: pinned, checked, and refused in words."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tasks.artifacts import Version
from tasks.errors import StageFailed, UserError
from tasks.retention.collecting import registered_versions
from tasks.start import named_start


def test_a_version_or_an_alias_is_pinned_to_its_number_and_sha256(
    trained: Any, registered: Version
) -> None:
    tracker = trained.tracker()
    for uri in ("models:/tiny/1", "models:/tiny@challenger"):
        start = named_start(tracker, uri, base_sha256=trained.base.weights_sha256)
        assert start.uri == registered.uri == "models:/tiny/1"
        assert start.adapter_sha256 == trained.adapter.sha256
    files = start.files()
    assert (files.folder / "adapter_model.safetensors").is_file()
    assert (files.fixture / "fixture.safetensors").is_file()
    assert files.metrics["loss"] == pytest.approx(1.6)
    assert files.earlier_rows is None


@pytest.mark.parametrize("uri", ["models:/tiny/99", "models:/tiny@nobody", "models:/nobody/1"])
def test_a_version_that_is_not_there_is_a_user_s_mistake(
    uri: str, trained: Any, registered: Version
) -> None:
    with pytest.raises(UserError, match=f"{uri} is not in the registry"):
        named_start(trained.tracker(), uri, base_sha256=trained.base.weights_sha256)


def test_a_version_of_another_base_is_refused_with_both_hashes(
    trained: Any, registered: Version
) -> None:
    with pytest.raises(UserError, match="belongs on a base with sha256") as refused:
        named_start(trained.tracker(), registered.uri, base_sha256="0" * 64)
    assert "0" * 12 in str(refused.value)


def test_a_recorded_start_whose_version_holds_another_adapter_by_now_is_refused(
    trained: Any, registered: Version
) -> None:
    start = named_start(trained.tracker(), registered.uri, base_sha256=trained.base.weights_sha256)
    with pytest.raises(UserError, match="recorded with the adapter 000000000000"):
        replace(start, adapter_sha256="0" * 64).files()


def test_a_flipped_byte_in_the_version_is_noticed_before_anything_is_trained(
    own_trained: Any, unverified: None
) -> None:
    tracker = own_trained.tracker()
    version = own_trained.register(tracker)
    start = named_start(tracker, version.uri, base_sha256=own_trained.base.weights_sha256)
    path = start.files().folder / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(data))
    with pytest.raises(StageFailed, match=r"adapter_model\.safetensors was changed"):
        start.files()


def test_a_version_tells_what_it_started_from_and_keeps_the_rows_that_its_start_had_seen(
    own_trained: Any, unverified: None
) -> None:
    seen = np.array([3, 2**63], dtype=np.uint64)
    np.save(own_trained.adapter.path / "earlier_rows.npy", seen)
    tracker = own_trained.tracker()
    version = own_trained.register(tracker, started_from="models:/tiny/7")
    found = tracker.client.get_model_version("tiny", version.version)
    assert found.tags["loraline.started_from"] == "models:/tiny/7"
    known = registered_versions(tracker)[version.name, version.version]
    assert known.started_from == "models:/tiny/7"
    assert "went on with the adapter of models:/tiny/7" in found.description
    start = named_start(tracker, version.uri, base_sha256=own_trained.base.weights_sha256)
    kept = start.files().earlier_rows
    assert kept is not None
    assert np.array_equal(np.load(kept), seen)
