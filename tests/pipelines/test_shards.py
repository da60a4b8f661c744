"""WebDataset shards: ours and foreign, ranges and URLs, the kept index, and the order of groups of shards."""

import http.server
import os
import pickle
import threading
from functools import partial

import numpy as np
import pytest
import torch

from saccade.base.errors import UserError
from saccade.pipelines.build import create_order
from saccade.pipelines.data import open_data
from saccade.pipelines.order import Order, ShardedOrder
from saccade.pipelines.sources import ArraySource, decode, remote, shard_index, shards
from saccade.pipelines.sources.shard_index import Shard, index_of
from saccade.pipelines.sources.shards import ShardSource
from tests.pipelines.files import picture, stored, tar_with, write_idx
from tests.present import present


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SACCADE_ALLOW_PIPE", raising=False)
    return tmp_path / "cache"


def image(k: int, kind: str = "JPEG") -> bytes:
    return stored(picture(k), kind)


def three_shards(folder) -> str:
    for shard in range(3):
        tar_with(
            folder / f"x-{shard:03}.tar",
            {
                f"{shard}{k}.{e}": d
                for k in range(4)
                for e, d in (("jpg", image(4 * shard + k)), ("cls", str(k % 3).encode()))
            },
        )
    return str(folder / "x-{000..002}.tar")


def test_range_of_shards_is_one_source_in_their_order(tmp_path):
    source, val = open_data(three_shards(tmp_path))
    assert len(source) == 12 and val is None and source.container.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert source.labels.tolist() == [0, 1, 2, 0] * 3 and source.classes is None
    assert source.name_of(5) == "x-001.tar/11.jpg" and source.encoded(5) == image(5)
    assert np.array_equal(source.read(5), decode(tmp_path_file(tmp_path, image(5)))) and source.size(5) == (48, 48)


def tmp_path_file(folder, data: bytes):
    (folder / "one.jpg").write_bytes(data)
    return folder / "one.jpg"


@pytest.mark.parametrize(
    ("files", "labels", "classes"),
    [
        (
            {
                "a.png": image(0, "PNG"),
                "a.json": b'{"label": 3}',
                "b.webp": image(1, "WEBP"),
                "b.json": b'{"label": 1}',
            },
            [3, 1],
            None,
        ),
        ({"a.jpg": image(0), "a.cls": b"dog\n", "b.jpeg": image(1), "b.cls": b"cat"}, [1, 0], ("cat", "dog")),
        ({"a.jpg": image(0), "a.cls": b"2", "b.jpg": image(1)}, [2, -1], None),
        ({"a.jpg": image(0), "a.json": b"not json", "b.jpg": image(1), "b.txt": b"a caption"}, None, None),
        ({"./train/dog/1.jpg": image(0), "./train/cat/1.jpg": image(1)}, [1, 0], ("cat", "dog")),
        ({"a.b.seg.png": image(0, "PNG"), "a.cls": b"1", "c.input.jpg": image(1), "c.cls": b"0"}, [1, 0], None),
    ],
    ids=["json", "names", "one without", "none", "folders", "double extensions"],
)
def test_labels_of_foreign_shards(tmp_path, files, labels, classes):
    tar_with(tmp_path / "x.tar", files)
    source, _ = open_data(str(tmp_path / "x.tar"))
    assert len(source) == 2 and source.classes == classes
    assert (None if source.labels is None else source.labels.tolist()) == labels
    assert all(source.read(i).shape == (48, 48, 3) for i in range(2))


def test_shards_written_by_webdataset(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "w-%02d.tar"), maxcount=5, verbose=0) as writer:
        for k in range(9):
            writer.write({"__key__": f"s{k}", "jpg": image(k), "cls": k})
    source, _ = open_data(str(tmp_path / "w-{00..01}.tar"))
    assert source.labels.tolist() == list(range(9)) and source.encoded(7) == image(7)


def test_shards_written_by_convert_keep_classes(tmp_path):
    from saccade.tools.convert import main as convert

    for k in range(6):
        file = tmp_path / "photos" / ("zebra", "ant")[k % 2] / f"{k}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image(k))
    convert([str(tmp_path / "photos"), str(tmp_path / "wds"), "--to", "wds"])
    source, _ = open_data(str(tmp_path / "wds"))
    assert source.classes == ("ant", "zebra") and sorted(source.labels.tolist()) == [0, 0, 0, 1, 1, 1]


def test_splits_are_told_by_the_shards_names(tmp_path):
    for name in ("train-0.tar", "train-1.tar", "val-0.tar"):
        tar_with(tmp_path / name, {f"{k}.jpg": image(k) for k in range(3)})
    train, val = open_data(str(tmp_path))
    assert (len(train), len(present(val))) == (6, 3)
    assert len(present(open_data(str(tmp_path / "train-{0..1}.tar"), str(tmp_path / "val-{0..0}.tar"))[1])) == 3


# --- index ------------------------------------------------------------------------------------------------------------


def held(shard: Shard) -> dict:
    columns = {name: getattr(shard, name).tolist() for name in ("offset", "length", "label")}
    return {"names": [shard.names[k] for k in range(len(shard))], **columns, "texts": shard.texts, "cut": shard.cut}


def test_index_is_made_once_and_again_when_the_shard_changes(tmp_path, monkeypatch):
    three_shards(tmp_path)
    shard = tmp_path / "x-000.tar"
    first = held(index_of(shard))
    monkeypatch.setattr(shard_index, "_scan", lambda *_: pytest.fail("scanned again"))
    assert held(index_of(shard)) == first
    monkeypatch.undo()
    monkeypatch.setenv("SACCADE_CACHE", str(tmp_path / "cache"))
    tar_with(shard, {"new.jpg": image(9)})
    assert held(index_of(shard))["names"] == ["new.jpg"]


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-1], lambda b: b"{" * 99, lambda b: b[:-1] + b"?"])
def test_damaged_index_is_made_anew(tmp_path, damage):
    three_shards(tmp_path)
    kept = tmp_path / "x-000.tar.index"
    first = held(index_of(tmp_path / "x-000.tar"))
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    assert held(index_of(tmp_path / "x-000.tar")) == first and kept.read_bytes() == whole


def test_index_goes_to_the_cache_where_the_folder_is_read_only(tmp_path, cache):
    folder = tmp_path / "fixed"
    folder.mkdir()
    three_shards(folder)
    folder.chmod(0o555)
    try:
        assert len(index_of(folder / "x-000.tar")) == 4
        assert len(list((cache / "index").iterdir())) == 1 and not list(folder.glob("*.index"))
    finally:
        folder.chmod(0o755)


def test_idx_file_is_used_instead_of_scanning(tmp_path, monkeypatch):
    three_shards(tmp_path)
    shard = tmp_path / "x-000.tar"
    scanned = held(shard_index._scan(shard))
    write_idx(shard)
    monkeypatch.setattr(shard_index, "members_of", lambda *_: pytest.fail("the tar was scanned"))
    assert held(shard_index._scan(shard)) == scanned


def test_source_travels_to_worker_processes(tmp_path):
    source, _ = open_data(three_shards(tmp_path))
    source.read(0)
    assert np.array_equal(pickle.loads(pickle.dumps(source)).read(7), source.read(7))


def test_many_threads_read_the_right_images(tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(shards, "_OPEN_FILES", 1)
    source, _ = open_data(three_shards(tmp_path))
    wanted = np.random.default_rng(0).integers(0, 12, 300).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert all(data == image(i) for i, data in zip(wanted, pool.map(source.encoded, wanted), strict=True))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{tmp}/x-{{000..005}}.tar", "3 of 6 shards are not there, such as .*x-003.tar"),
        ("{tmp}/x-{{5..2}}.tar", "range is empty"),
        ("{tmp}/x-{{0..99999999}}.tar", "more than 1,000,000 shards"),
        ("{tmp}/none.tar", "no such file"),
        ("{tmp}/text.tar", "cannot be read as a plain tar"),
        ("{tmp}/labels.tar", "no sample with an image"),
        ("{tmp}/huge.tar", "largest label is 99999999999999999999"),
    ],
)
def test_wrong_shards_are_named(tmp_path, data, message):
    three_shards(tmp_path)
    (tmp_path / "text.tar").write_text("no tar at all " * 100)
    tar_with(tmp_path / "labels.tar", {"a.cls": b"1"})
    tar_with(tmp_path / "huge.tar", {"a.jpg": image(0), "a.cls": b"9" * 20})
    with pytest.raises(UserError, match=message):
        open_data(data.format(tmp=tmp_path))


# --- URLs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """(URL of a folder with three shards, the requests it answered)."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/short.tar":
                self.send_response(200)
                self.send_header("Content-Length", "10000")
                self.end_headers()
                self.wfile.write(b"x" * 100)
            else:
                super().do_GET()

        def log_message(self, *_):
            pass

    (tmp_path / "www").mkdir()
    three_shards(tmp_path / "www")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "www")) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()


def test_shards_are_fetched_from_a_server_once(server, cache):
    url, asked = server
    for _ in range(2):
        source, _ = open_data(url + "/x-{000..002}.tar")
        assert len(source) == 12 and source.encoded(9) == image(9)
    assert sorted(asked) == ["/x-000.tar", "/x-001.tar", "/x-002.tar"]
    assert not list(cache.rglob(".x-*"))  # no half of one is left


def test_server_that_lacks_a_shard_or_breaks_off_is_named(server, cache):
    url, asked = server
    with pytest.raises(UserError, match=r"x-003.tar: the server answered 404"):
        open_data(url + "/x-{000..003}.tar")
    with pytest.raises(UserError, match=r"short.tar: cannot be fetched.*ended 9900 bytes early"):
        open_data(url + "/short.tar")
    assert asked.count("/short.tar") == 3 and not list(cache.rglob("short*"))


def test_pipe_runs_only_when_allowed(tmp_path, monkeypatch):
    three_shards(tmp_path)
    mark = tmp_path / "ran"
    url = f"pipe:touch {mark}; cat {tmp_path}/x-001.tar"
    for allow in (None, False):
        with pytest.raises(UserError, match=r"runs a shell command.*--allow-pipe"):
            open_data(url, allow_pipe=allow)
    assert not mark.exists()
    assert open_data(url, allow_pipe=True)[0].encoded(0) == image(4) and mark.exists()
    monkeypatch.setenv("SACCADE_ALLOW_PIPE", "1")
    assert len(open_data(url)[0]) == 4


def test_unknown_scheme_is_named():
    with pytest.raises(UserError, match="no opener for gopher"):
        open_data("gopher://host/x.tar")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a{08..11}b", ["a08b", "a09b", "a10b", "a11b"]),
        ("{x,y}{0..1}", ["x0", "x1", "y0", "y1"]),
        ("plain", ["plain"]),
        ("{3..3}", ["3"]),
    ],
)
def test_ranges_are_written_out(pattern, names):
    assert remote.expand(pattern) == names


# --- order ------------------------------------------------------------------------------------------------------------

SHARD = np.repeat(np.arange(20), [7, 1, 12, 5] * 5)


def test_sharded_order_goes_through_groups_of_shards():
    order = ShardedOrder(SHARD, 4, 8, seed=3)
    drawn = order.permutation(0)
    assert sorted(drawn.tolist()) == list(range(len(SHARD)))
    visited = list(dict.fromkeys(SHARD[drawn].tolist()))
    groups = [set(visited[k : k + 4]) for k in range(0, 20, 4)]
    sequence = [next(g for g, group in enumerate(groups) if s in group) for s in SHARD[drawn].tolist()]
    assert sequence == sorted(sequence)  # a group is over before the next begins
    assert len(set(SHARD[drawn[:16]].tolist())) > 1 and drawn.tolist() != sorted(drawn.tolist())
    assert torch.equal(drawn, ShardedOrder(SHARD, 4, 8, seed=3).permutation(0))
    assert not torch.equal(drawn, order.permutation(1)) and not torch.equal(
        drawn, ShardedOrder(SHARD, 4, 8, seed=4).permutation(0)
    )


def test_one_group_of_all_shards_mixes_all_of_them():
    drawn = ShardedOrder(SHARD, 20, 8, seed=3).permutation(2)
    assert sorted(drawn.tolist()) == list(range(len(SHARD))) and len(set(SHARD[drawn[:20]].tolist())) > 8


@pytest.mark.parametrize("ranks", [2, 4])
def test_sharded_order_on_many_processes_and_resumed_is_that_of_one(ranks):
    whole = torch.cat(ShardedOrder(SHARD, 3, 8, 1).batches(1)[:])
    first = torch.cat(ShardedOrder(SHARD, 3, 8, 1).batches(1)[:5])
    rest = [ShardedOrder(SHARD, 3, 8, 1, rank, ranks).batches(1, seen=40) for rank in range(ranks)]
    together = torch.cat([torch.stack(parts, dim=1).flatten() for parts in zip(*rest, strict=True)])
    assert torch.equal(torch.cat([first, together]), whole)


def test_group_of_shards_needs_shards(tmp_path):
    source, _ = open_data(three_shards(tmp_path))
    assert isinstance(create_order(source, 2, 4), ShardedOrder) and type(create_order(source, 0, 4)) is Order
    with pytest.raises(UserError, match="--shard-group 2 is for tar shards"):
        create_order(ArraySource("x", np.zeros((9, 4, 4, 3), np.uint8)), 2, 4)
    with pytest.raises(UserError, match="--shard-group -1 is not positive"):
        create_order(source, -1, 4)


def test_shard_on_a_path_with_odd_characters(tmp_path):
    odd = tmp_path / "a b;$(touch x)'\""
    odd.mkdir()
    tar_with(odd / "ünï.tar", {"k.jpg": image(0)})
    assert ShardSource([odd / "ünï.tar"]).encoded(0) == image(0) and not os.path.exists("x")
