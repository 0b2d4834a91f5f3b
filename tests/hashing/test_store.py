"""A store keeps k/8 bytes an item, takes more items, and never another code for one it has."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hashing import store as store_module
from hashing.store import CodeStore, Packed, pack


def signs(items: int, bits: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randint(2, (items, bits), generator=torch.Generator().manual_seed(seed))
    return (2 * drawn - 1).to(torch.int8)


def unpack(packed: Packed) -> torch.Tensor:
    bits = np.unpackbits(packed, axis=1, bitorder="little")
    return torch.from_numpy(bits.astype(np.int8) * 2 - 1)


def names(items: int, start: int = 0) -> list[str]:
    return [f"pictures/ünï {i}.png" for i in range(start, start + items)]


@settings(deadline=None)
@given(items=st.integers(1, 40), width=st.integers(1, 20), seed=st.integers(0, 99))
def test_unpacking_gives_back_what_was_packed(items: int, width: int, seed: int) -> None:
    codes = signs(items, 8 * width, seed)
    assert pack(codes).shape == (items, width)
    assert torch.equal(unpack(pack(codes)), codes)
    assert torch.equal(unpack(pack(codes.float().numpy())), codes)


def test_packing_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = signs(50, 16)
    whole = pack(codes)
    monkeypatch.setattr(store_module, "CHUNK_ITEMS", 7)
    assert np.array_equal(pack(codes), whole)


@pytest.mark.parametrize("bits", [1, 4, 12, 20, 63])
def test_a_code_that_does_not_fill_bytes_is_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"bits={bits}: must be a multiple of 8"):
        CodeStore(signs(3, bits))


@pytest.mark.parametrize("wrong", [0, 2, -3, 0.5, float("nan")])
def test_a_value_that_is_no_sign_is_refused_by_row(wrong: float) -> None:
    codes = signs(4, 8).float()
    codes[2, 5] = wrong
    with pytest.raises(ValueError, match=r"row 2 is .* at bit 5: must be -1 or 1"):
        pack(codes)


@pytest.mark.parametrize("kind", [np.uint8, bool, np.uint16, np.int64, np.float32])
def test_codes_of_zeros_and_ones_are_not_taken_as_packed(kind: Any) -> None:
    codes = ((signs(4, 16).numpy() + 1) // 2).astype(kind)
    for made in (
        CodeStore,
        CodeStore(signs(2, 16)).append,
        CodeStore(signs(9, 16)).check_unchanged,
    ):
        with pytest.raises(ValueError, match=r"must be -1 or 1|hold no -1"):
            made(codes)
    if kind in (np.uint8, bool):
        with pytest.raises(ValueError, match="hold no -1"):
            CodeStore(np.ones((4, 16), dtype=kind))


def test_items_without_codes_and_names_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        CodeStore(signs(0, 16))
    with pytest.raises(ValueError, match="2 names for 3 codes"):
        CodeStore(signs(3, 16), names(2))
    with pytest.raises(ValueError, match="row 1, 'a': another row has it too"):
        CodeStore(signs(2, 16), ["a", "a"])
    with pytest.raises(ValueError, match=r"row 0, .*: must be of one line"):
        CodeStore(signs(1, 16), ["a\nb"])


@pytest.mark.parametrize("named", [True, False])
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, named: bool) -> None:
    codes = signs(100, 64)
    store = CodeStore(codes, names(100) if named else None)
    store.save(tmp_path / "store")
    assert (tmp_path / "store/codes.bin").stat().st_size == 100 * 64 // 8
    loaded = CodeStore.load(tmp_path / "store")
    assert isinstance(loaded.packed.base, np.memmap)
    assert torch.equal(unpack(loaded.packed), codes)
    assert (len(loaded), loaded.bits, loaded.parts) == (100, 64, store.parts)
    assert list(loaded.names) == (names(100) if named else [f"row {i}" for i in range(100)])
    assert loaded.names[-1] == store.names[99]
    assert list(loaded.names[3:5]) == list(store.names[3:5])
    with pytest.raises(ValueError, match="read-only"):
        loaded.packed[0] = 0


def test_a_file_name_that_is_no_text_is_kept(tmp_path: Path) -> None:
    """Python has lone surrogates for bytes of a file's name that are no UTF-8."""
    odd = ["caf\udce9.png", "", "\u2028\x85"]
    CodeStore(signs(3, 16), odd).save(tmp_path)
    assert list(CodeStore.load(tmp_path).names) == odd


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "image"):
        with pytest.raises(ValueError, match="a file stands there; choose another folder"):
            CodeStore(signs(1, 16)).save(folder)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.int64])
def test_codes_of_any_number_type_are_packed(kind: torch.dtype) -> None:
    codes = signs(5, 16)
    assert torch.equal(unpack(pack(codes.to(kind))), codes)


def test_appending_writes_only_what_is_new(tmp_path: Path) -> None:
    old, new, newer = signs(60, 32), signs(20, 32, 1), signs(5, 32, 2)
    CodeStore(old, names(60)).save(tmp_path)
    before = (tmp_path / "codes.bin").read_bytes()
    reader = CodeStore.load(tmp_path)
    longer = CodeStore.load(tmp_path).append(new, names(20, 60)).append(newer, names(5, 80))
    longer.save(tmp_path)
    longer.save(tmp_path)  # nothing is left to write
    assert (tmp_path / "codes.bin").read_bytes()[: len(before)] == before
    loaded = CodeStore.load(tmp_path)
    assert [part.items for part in loaded.parts] == [60, 20, 5]
    assert torch.equal(unpack(loaded.packed), torch.cat([old, new, newer]))
    assert list(loaded.names) == names(85)
    assert torch.equal(unpack(reader.packed), old)  # one that was open sees what it opened
    loaded.check_unchanged(old)


def test_original_codes_cannot_be_changed(tmp_path: Path) -> None:
    codes = signs(60, 32)
    CodeStore(codes, names(60)).save(tmp_path)
    changed = codes.clone()
    changed[17, 3] *= -1
    stored = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"other codes than the first .* not changed"):
        CodeStore(changed, names(60)).save(tmp_path)
    with pytest.raises(ValueError, match="other codes than the first"):
        CodeStore(codes, names(60, 1)).save(tmp_path)
    loaded = CodeStore.load(tmp_path)
    with pytest.raises(ValueError, match=r"ünï 17.png' is not the one that is stored"):
        loaded.check_unchanged(changed)
    with pytest.raises(ValueError, match=r"ünï 59.png' is stored already"):
        loaded.append(signs(2, 32), ["new", names(60)[59]])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == stored


def test_what_does_not_fit_a_store_is_refused() -> None:
    store = CodeStore(signs(4, 32), names(4))
    with pytest.raises(ValueError, match="16 bits do not fit a store of 32"):
        store.append(signs(2, 16), names(2, 4))
    with pytest.raises(ValueError, match="the new items have none"):
        store.append(signs(2, 32))
    with pytest.raises(ValueError, match="the store has none"):
        CodeStore(signs(4, 32)).append(signs(2, 32), names(2))
    with pytest.raises(ValueError, match="are not the first"):
        store.check_unchanged(signs(5, 32))


def test_a_killed_append_leaves_the_store_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = signs(60, 32), signs(20, 32, 1)
    CodeStore(old, names(60)).save(tmp_path)
    longer = CodeStore.load(tmp_path).append(new, names(20, 60))

    def die(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    for owner, name in ((json, "dump"), (os, "replace")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, die)
            with pytest.raises(KeyboardInterrupt):
                longer.save(tmp_path)
        assert torch.equal(unpack(CodeStore.load(tmp_path).packed), old)
        assert list(CodeStore.load(tmp_path).names) == names(60)
    longer.save(tmp_path)  # over what the killed one left behind
    assert torch.equal(unpack(CodeStore.load(tmp_path).packed), torch.cat([old, new]))
    assert list(CodeStore.load(tmp_path).names) == names(80)


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no store of codes"):
        CodeStore.load(tmp_path / "absent")
    CodeStore(signs(60, 32), names(60)).save(tmp_path)
    whole = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def damage(name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            CodeStore.load(tmp_path)
        (tmp_path / name).write_bytes(whole[tmp_path / name])

    codes, text = whole[tmp_path / "codes.bin"], whole[tmp_path / "names.txt"]
    damage("codes.bin", codes[:-1], r"codes.bin is shorter")
    damage("codes.bin", bytes([codes[0] ^ 1]) + codes[1:], r"codes 0 to 59 were changed")
    damage("names.txt", text.replace(b"7.png", b"7.jpg"), r"lines 1 to 60 were changed")
    damage("names.txt", b"one\n", r"has 1 lines, not 60")
    damage("names.txt", b"", r"names.txt: has 0 lines, not 60: .*damaged")
    damage("names.txt", text.replace("ü".encode(), b"\xff\xff"), r"names.txt: .*damaged")
    damage("store.json", b"{", r"store.json is not the record")
    damage("store.json", b"\xff{}", r"store.json is not the record")
    damage("store.json", b"[1, 2]", r"store.json is not the record")
    damage("store.json", json.dumps({"bits": 32}).encode(), r"store.json is not the record")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("bits", "16", "bits '16': must be a number"),
        ("bits", None, "bits None: must be a number"),
        ("bits", True, "bits True: must be a number"),
        ("bits", 16.0, "bits 16.0: must be a number"),
        ("bits", 12, "bits=12: must be a multiple of 8"),
        ("bits", -16, "bits=-16: must be a multiple of 8"),
        ("format", 2, "format 2: this version reads 1 alone"),
        ("format", None, "format None: this version reads 1 alone"),
        ("parts", [], "it has no parts"),
        ("parts", None, "not iterable"),
        ("parts", [3], "must be a mapping"),
        ("items", -5, "items -5: must be a number of at least 1"),
        ("items", 0, "items 0: must be a number of at least 1"),
        ("items", "60", "items '60': must be a number of at least 1"),
        ("items", None, "items None: must be a number of at least 1"),
        ("codes", None, "codes None: must be a fingerprint"),
        ("codes", "zz", "codes 'zz': must be a fingerprint"),
        ("names", 7, "names 7: must be a fingerprint"),
        ("more", 7, "unexpected keyword"),
    ],
)
def test_a_record_of_wrong_values_is_refused(
    tmp_path: Path, key: str, value: Any, words: str
) -> None:
    store = CodeStore(signs(60, 16), names(60))
    store.save(tmp_path)
    record = json.loads((tmp_path / "store.json").read_text())
    place = record if key in record else record["parts"][0]
    place[key] = value
    (tmp_path / "store.json").write_text(json.dumps(record))
    for use in (lambda: CodeStore.load(tmp_path), lambda: store.save(tmp_path)):
        with pytest.raises(ValueError, match=rf"store\.json is not the record.*{words}"):
            use()


def test_a_record_whose_parts_do_not_agree_on_names_is_refused(tmp_path: Path) -> None:
    CodeStore(signs(6, 16)).append(signs(4, 16)).save(tmp_path)
    record = json.loads((tmp_path / "store.json").read_text())
    record["parts"][1]["names"] = record["parts"][1]["codes"]
    (tmp_path / "store.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="the first part has none"):
        CodeStore.load(tmp_path)


def test_nothing_is_saved_onto_cut_codes(tmp_path: Path) -> None:
    old = CodeStore(signs(60, 32), names(60))
    old.save(tmp_path)
    codes = tmp_path / "codes.bin"
    codes.write_bytes(codes.read_bytes()[:-1])
    stored = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for store in (old, old.append(signs(20, 32, 1), names(20, 60))):
        with pytest.raises(ValueError, match=r"codes\.bin is shorter than store\.json says"):
            store.save(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == stored
