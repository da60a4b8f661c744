"""The walk over a tar's headers finds what the standard library's `tarfile` finds, whatever wrote the tar."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from saccade.pipelines.sources import tar
from saccade.pipelines.sources.account import Account
from saccade.pipelines.sources.texts import distinct, gathered

LONG = "folder/" * 30 + "k.jpg"
NAMES = [
    "a.jpg",
    "b/c.cls",
    "ü/ñ.jpg",
    "x" * 100,
    "y" * 155 + "/" + "z" * 99,
    LONG,
    "./d.jpg",
    "sp ace.jpg",
    "n\nl.jpg",
]


def written(path: Path, kind: int, mtime: float = 0, **fields) -> Path:
    with tarfile.open(path, "w", format=kind) as out:
        for k, name in enumerate(NAMES):
            if kind == tarfile.USTAR_FORMAT and name == LONG:
                continue
            member = tarfile.TarInfo(name)
            member.size, member.mtime = 211 * k, mtime
            for field, value in fields.items():
                setattr(member, field, value)
            out.addfile(member, io.BytesIO(bytes([65 + k]) * member.size))
            for other, type_ in (("dir", tarfile.DIRTYPE), ("hard", tarfile.LNKTYPE), (LONG[:-2], tarfile.SYMTYPE)):
                if k == 3 and len(other) < 100 + 156 * (kind != tarfile.USTAR_FORMAT):
                    member = tarfile.TarInfo(other)
                    member.type, member.linkname = type_, LONG if kind != tarfile.USTAR_FORMAT else "a.jpg"
                    out.addfile(member)
    return path


def found(data: Path) -> tuple:
    """What tarfile says."""
    members = tar._by_tarfile(data)
    return shown(members)


def shown(members) -> tuple:
    names, offset, length, kind, cut = members
    return [names[k] for k in range(len(names))], offset.tolist(), length.tolist(), kind.tolist(), cut


KINDS = [
    (tarfile.USTAR_FORMAT, {}),
    (tarfile.GNU_FORMAT, {}),
    (tarfile.PAX_FORMAT, {}),
    (tarfile.PAX_FORMAT, {"mtime": 1.5}),  # as webdataset writes: a pax header for each
    (tarfile.GNU_FORMAT, {"uid": 1 << 40}),  # a number in base 256
    (tarfile.PAX_FORMAT, {"uid": 1 << 40, "pax_headers": {"comment": "path=no.jpg\n"}}),
]


@pytest.mark.parametrize(("kind", "fields"), KINDS)
def test_the_walk_finds_what_tarfile_finds(tmp_path, kind, fields):
    path = written(tmp_path / "x.tar", kind, **fields)
    walked = tar._walked(np.fromfile(path, np.uint8))
    assert walked is not None and shown(walked) == found(path)


@pytest.mark.parametrize("options", [(), ("--format=v7",), ("--format=oldgnu",), ("--format=posix",), ("--sparse",)])
def test_tars_of_gnu_tar_are_read_as_tarfile_reads_them(tmp_path, options):
    place = tmp_path / "data"
    for k, name in enumerate(["a.jpg", "b/c.jpg", "b/d.cls"] + ([] if "--format=v7" in options else [LONG])):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"x" * 700 * k)
    os.truncate(place / "a.jpg", 1 << 20)
    os.link(place / "a.jpg", place / "linked.jpg")
    if os.system(f"tar {' '.join(options)} -C {place} -cf {tmp_path}/x.tar . 2>{tmp_path}/said"):
        pytest.skip((tmp_path / "said").read_text())
    account = Account()
    members = tar.members_of(tmp_path / "x.tar", account)
    names, offset, length, kind, cut = tar._by_tarfile(tmp_path / "x.tar")
    files = np.flatnonzero(kind == 0)
    assert [members.names[k] for k in range(len(files))] == [names[k] for k in files.tolist()]
    assert members.offset.tolist() == offset[files].tolist() and members.length.tolist() == length[files].tolist()
    assert members.cut == cut and account.seen == len(kind) - len(files)


def test_every_cut_and_every_flipped_bit_is_what_tarfile_makes_of_it(tmp_path):
    whole = written(tmp_path / "x.tar", tarfile.PAX_FORMAT, mtime=1.5).read_bytes()
    path, rng = tmp_path / "damaged.tar", np.random.default_rng(0)
    damaged = [whole[:n] for n in rng.integers(1, len(whole), 60).tolist()]
    for at in rng.integers(0, len(whole), 200).tolist():
        damaged.append(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
    walked = 0
    for data in damaged:
        path.write_bytes(data)
        got = tar._walked(np.fromfile(path, np.uint8))
        if got is not None:
            walked += 1
            assert shown(got) == found(path)
    assert walked > 60


def test_a_tar_is_walked_in_pieces(tmp_path, monkeypatch):
    path = written(tmp_path / "x.tar", tarfile.PAX_FORMAT)
    monkeypatch.setattr(tar, "_MEMBERS", 2)
    assert shown(tar._walked(np.fromfile(path, np.uint8))) == found(path)
    monkeypatch.setattr(tar, "_TEXT", 300)
    assert shown(tar._walked(np.fromfile(path, np.uint8))) == found(path)


def test_pieces_are_told_apart_and_copied():
    rng = np.random.default_rng(0)
    words = [bytes(rng.integers(97, 99, rng.integers(0, 13)).astype(np.uint8)) for _ in range(5000)]
    ends = np.cumsum([len(word) for word in words])
    starts, data = ends - [len(word) for word in words], np.frombuffer(b"".join(words), np.uint8)
    which, met = distinct(data, starts, ends)
    order = list(dict.fromkeys(words))
    assert [order[k] for k in which.tolist()] == words and [words[k] for k in met.tolist()] == order
    rows = rng.permutation(5000)
    text, stops = gathered(data, starts[rows], ends[rows])
    assert text.tobytes() == b"".join(words[k] for k in rows) and stops[-1] == len(data)
