"""The file of a checkpoint: any damage is refused or harmless, and what was there stays."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import torch

from simmim.config.run import RunConfig
from simmim.errors import UserError
from simmim.storage import checkpoint
from simmim.storage.checksums import checksums
from simmim.storage.run_folder import RunFolder


def small_model() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def small_state() -> dict:
    model, optimizer = small_model()
    return {
        "kind": "pretrain",
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "update": 1,
        "global_batch": 8,
        "loss_sum": 1.0,
        "norm_sum": 2.0,
        "counters": {"first_validation": None, "bad": {"é.png": "empty"}},
        "config": RunConfig().to_json(),
        "data": {"images": 3, "sha256": "00"},
    }


def write_pt(path: Path) -> dict:
    checkpoint.write(path, small_state())
    return checkpoint.load(path)


def write_safetensors(path: Path) -> dict:
    checkpoint.save_model(path, RunConfig().to_json(), small_state()["model"])
    return checkpoint.load(path)


FORMATS = {"small.pt": write_pt, "small.safetensors": write_safetensors}


def started(out: Path) -> RunFolder:
    """The folder of a run with one checkpoint."""
    folder = RunFolder(out, "pretrain")
    folder.lock()
    folder.start_anew(overwrite=False)
    folder.save(1, small_state(), keep=1)
    return folder


def is_refused(path: Path, content: bytes, whole: dict[str, int]) -> bool:
    """Whether damaged content is refused in one line; otherwise it must give the same as before."""
    path.write_bytes(content)
    try:
        state = checkpoint.load(path)
    except UserError as error:
        assert "\n" not in str(error) and path.name in str(error)
        return True
    assert checksums(state) == whole
    return False


@pytest.mark.parametrize(("umask", "mode"), [(0o027, 0o640), (0o022, 0o644)])
@pytest.mark.parametrize("name", FORMATS)
def test_whoever_may_read_new_files_may_read_it(name, umask, mode, tmp_path):
    path, before = tmp_path / name, os.umask(umask)
    try:
        FORMATS[name](path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("name", FORMATS)
def test_a_flipped_bit_is_refused_or_harmless(name, tmp_path):
    path = tmp_path / name
    whole = checksums(FORMATS[name](path))
    content = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    places = range(0, len(content), 64)
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        refused += is_refused(path, bytes(changed), whole)
    assert refused > len(places) / 2


@pytest.mark.parametrize("name", FORMATS)
def test_a_flipped_bit_of_a_tensor_is_refused(name, tmp_path):
    path = tmp_path / name
    whole = checksums(FORMATS[name](path))
    content = path.read_bytes()
    weight = small_state()["model"]["weight"].numpy().tobytes()
    start = content.index(weight)
    for place in range(start, start + len(weight)):
        changed = bytearray(content)
        changed[place] ^= 1
        assert is_refused(path, bytes(changed), whole), place


@pytest.mark.slow
def test_a_damaged_directory_means_nothing_else_to_pytorch(tmp_path):
    path = tmp_path / "small.pt"
    whole = checksums(write_pt(path))
    content = path.read_bytes()
    rng = random.Random(0)
    for place in range(content.index(b"PK\1\2"), len(content)):
        changed = bytearray(content)
        changed[place] = rng.choice([0, 255, rng.randrange(256)])
        is_refused(path, bytes(changed), whole)


def test_checksums_cannot_be_lost_to_damage(tmp_path):
    path = tmp_path / "x.safetensors"
    whole = checksums(write_safetensors(path))
    content = path.read_bytes().replace(b'"checksums"', b'"checksumz"')
    assert is_refused(path, content.replace(b"resume", b"result"), whole)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_short_is_refused(name, tmp_path):
    path = tmp_path / name
    whole = checksums(FORMATS[name](path))
    content = path.read_bytes()
    lengths = {0, 1, 2, 3, 30, len(content) - 1, len(content) - 22, *range(0, len(content), 97)}
    for length in sorted(lengths):
        assert is_refused(path, content[:length], whole), length


def test_checksums_cover_type_shape_values_and_everything_else():
    base = checksums(small_state())
    for change in (
        lambda s: s["model"].update(weight=s["model"]["weight"].double()),
        lambda s: s["model"].update(weight=s["model"]["weight"].reshape(3, 2)),
        lambda s: s["model"].update(weight=s["model"]["weight"] + 1e-7),
        lambda s: s["model"].pop("bias"),
        lambda s: s.update(update=2),
        lambda s: s.update(update=1.0),
        lambda s: s["counters"].update(first_validation=False),
        lambda s: s["counters"]["bad"].clear(),
        lambda s: s["optimizer"]["param_groups"][0].update(betas=(0.9, 0.99)),
        lambda s: s["optimizer"]["state"][0]["step"].add_(1),
    ):
        state = small_state()
        change(state)
        assert checksums(state) != base
    odd = [torch.empty(0), torch.tensor(True), torch.ones(2, 3, dtype=torch.bfloat16).T, "\udcff"]
    assert checksums(odd) == checksums(odd)


def test_files_without_checksums_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"version": 1, **small_state()}, path)
    with pytest.raises(checkpoint.DamagedError, match="in the checksums"):
        checkpoint.load(path)
    safetensors = pytest.importorskip("safetensors.torch")
    metadata = {"format": "pt", "version": "1", "config": RunConfig().to_json(), "kind": "pretrain"}
    safetensors.save_file(small_state()["model"], tmp_path / "x.safetensors", metadata)
    with pytest.raises(checkpoint.DamagedError, match="checksums"):
        checkpoint.load(tmp_path / "x.safetensors")


def test_what_was_changed_after_it_was_written_is_named(tmp_path):
    path = tmp_path / "x.pt"
    write_pt(path)
    state = torch.load(path, weights_only=True)
    state["model"]["bias"] += 1
    torch.save(state, path)
    with pytest.raises(checkpoint.DamagedError, match=r"\['model'\]\['bias'\]"):
        checkpoint.load(path)


def test_nothing_that_a_file_holds_is_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    path = tmp_path / "x.pt"
    torch.save({"version": 1, **small_state(), "more": Harm()}, path)
    with pytest.raises(UserError, match="without running code"):
        checkpoint.load(path)
    assert not (tmp_path / "harm").exists()


def test_a_damaged_checkpoint_names_a_good_one_beside_it(tmp_path):
    with started(tmp_path) as folder:
        folder.save(2, small_state() | {"update": 2}, keep=5)
    newest = checkpoint.numbered(folder.checkpoints)[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    for path in (folder.checkpoints / "last.pt", newest):
        with pytest.raises(UserError, match=r"step-00000001\.pt is not damaged"):
            checkpoint.load(path)
