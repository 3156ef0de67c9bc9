"""The flight recorder: what is kept of the steps, written when the core fails, and replayed by larder debug replay."""

import asyncio
import stat
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from larder.cli.common import Common

from services.master import recorder as recorder_module
from services.master.core import messages as m
from services.master.core.master import Master
from services.master.core.runs import PackedKeys
from services.master.debug import debug
from services.master.driver import Driver
from services.master.recorder import Recorder, RecordingError, read
from tests.unit.master.transcript import CONFIG, KIB, Cluster

TOKEN = b"a token of a pool"
LONG = b"a key of many bytes: " + bytes(900)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


class Recorded(Cluster):
    """Every step is kept, as the driver keeps it."""

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        super().__init__(nodes=0)
        self.infos = [m.SegmentInfo(64 * KIB, ways=TOKEN) for _ in range(3)]

    def step(self, command: m.Command) -> list[m.Effect]:
        self.recorder = self.recorder or Recorder(self.core)
        effects = self.core.step(self.now, command)
        self.recorder.keep(self.now, command, effects)
        self.held += [effect for effect in effects if isinstance(effect, m.Record | m.Forget | m.Fetch)]
        self.answers.update({effect.call: effect.answer for effect in effects if isinstance(effect, m.Reply)})
        self.acknowledge()
        return effects

    def write(self) -> Path:
        assert self.recorder is not None
        return self.recorder.write(AssertionError("what broke it"))


def lived() -> Recorded:
    """Of nearly every command there is one."""
    cluster = Recorded()
    for i in range(3):
        cluster.attach(i)
    cluster.put(b"k", 6 * KIB, copies=2)
    cluster.put(LONG, KIB)
    cluster.match(PackedKeys(b"kx", 1), wait_ms=100)
    found = cluster.lookup(b"k")
    cluster.step(m.Release(cluster.call(), [found.lease]))
    started = cluster.start(b"aborted", KIB)
    assert started is not None
    cluster.step(m.PutAbort(cluster.call(), bytes(16), started.write_ids))
    for command in (
        m.Exists(cluster.call(), [b"k", LONG]),
        m.Report(cluster.call(), [b"k"], [0], [found.places.segments[0].number], [0], [m.Fault.CORRUPT]),
        m.List(cluster.call(), b"", b"", 5),
        m.Stat(cluster.call(), [b"k"], True),
        m.Status(cluster.call()),
        m.Drain(cluster.call(), "n0"),
        m.Remove(cluster.call(), b"r" * 16, [b"k", b"none"]),
        m.Remove(cluster.call(), b"too short", [LONG]),  # refused
        m.Broken(3),
    ):
        cluster.step(command)
    cluster.pass_time(400)
    cluster.attach(2, stream=9, held=(m.HeldCopy(b"held", 5, KIB, 1, 0, 3, 8 * KIB, KIB, 7, 0),))
    cluster.step(m.Leave(9))
    return cluster


def replay(*argv: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(debug, ["replay", *map(str, argv)], obj=Common())
    if isinstance(done.exception, RecordingError):
        return 1, f"{done.stdout}{done.exception}"
    return done.exit_code, done.stdout


# ---- what is written -----------------------------------------------------------------------------


def test_a_core_that_fails_leaves_its_steps_in_a_file_that_fails_alike(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000

    async def live() -> None:
        nonlocal now
        driver = Driver(Master(CONFIG, epoch=7, now=now), clock_ms=lambda: now)
        failing = asyncio.create_task(driver.failure())
        await asyncio.sleep(0)
        driver.step(m.Hello(1, "n0", 1, 0, "h0", [m.SegmentInfo(64 * KIB)]))
        now = 900  # no clock does so, and no core lives with it
        for _ in range(2):
            with pytest.raises(AssertionError):
                driver.step(m.Heartbeat(1))
        with pytest.raises(AssertionError):
            await failing
        driver.close()

    asyncio.run(live())
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert f"its last steps are in {file}" in caplog.text
    status, said = replay(file)
    assert status == 3
    assert "steps 1 to 2" in said
    assert "Hello(stream=1, node_id='n0'" in said
    assert "step 2: Traceback" in said


def test_a_recording_replays_to_the_same_effects() -> None:
    cluster = lived()
    file = cluster.write()
    origin, steps = read(file)
    assert origin.failure == "AssertionError: what broke it\n"
    kinds = {type(step.command) for step in steps}
    missing = set(m.Command.__args__) - kinds - {m.PutStart, m.Tick}  # a tick is what is left of what was refused
    assert not missing
    status, said = replay(file, "--check", "--last", "1000")
    assert (status, "other effects" in said) == (0, False)
    assert said.count("HeldCopy(key=b'held'") == 1


def test_what_was_recorded_of_another_core_is_told_apart() -> None:
    file = lived().write()
    file.write_text(file.read_text().replace('"Found"', '"Known"', 1))
    status, said = replay(file)
    assert (status, "has other effects than were recorded" in said) == (0, True)


def test_nothing_is_written_that_opens_a_pool_nor_more_of_a_key_than_tells_it_apart() -> None:
    cluster = lived()
    _, steps = read(cluster.write())
    text = repr(steps).encode()
    assert b"a key of many by" in text
    assert bytes(900) not in text
    assert TOKEN not in text
    tokens = {info.ways for step in steps if isinstance(step.command, m.Hello) for info in step.command.segments}
    assert len(tokens) == 1


def test_a_refused_call_is_as_if_it_had_not_been() -> None:
    core = Master(CONFIG, epoch=7)
    recorder = Recorder(core)
    command = m.Exists(1, [bytes(1 << 20)])
    recorder.keep(0, command, core.step(0, command))
    _, (step,) = read(recorder.write(AssertionError()))
    assert (step.command, step.effects) == (m.Tick(), [])


# ---- bounds --------------------------------------------------------------------------------------


def test_the_oldest_steps_make_room_and_what_is_left_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "BLOCK_BYTES", 300)
    core = Master(CONFIG, epoch=7)
    recorder = Recorder(core)
    command = m.Exists(1, [b"k"] * 99)
    for _ in range(20):
        recorder.keep(0, command, core.step(0, command))
    file = recorder.write(AssertionError())
    _, steps = read(file)
    assert 5 < len(steps) < 11
    assert [step.number for step in steps] == list(range(21 - len(steps), 21))
    status, said = replay(file, "--last", "2")
    assert (status, said.count("Exists(call=1")) == (1, 2)
    assert f"steps 1 to {steps[0].number - 1} are not in the recording" in said


def test_the_last_step_is_kept_however_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "BLOCK_BYTES", 10)
    recorder = Recorder(Master(CONFIG, epoch=7))
    for _ in range(20):
        recorder.keep(0, m.Tick(), [])
    recorder.keep(0, m.Exists(1, [b"k"] * 99), None)
    _, steps = read(recorder.write(AssertionError()))
    assert len(steps) < 20
    assert (steps[-1].number, steps[-1].command, steps[-1].effects) == (21, m.Exists(1, [b"k"] * 99), None)


@pytest.mark.parametrize(
    "content", ["", "{}", "x", '{"config":{},"epoch":1,"began_at":0,"salt":0}\n{"step":1,"command":{"Result":{}}}']
)
def test_other_files_are_refused(folder: Path, content: str) -> None:
    (folder / "file").write_text(content)
    with pytest.raises(RecordingError, match="no recording"):
        read(folder / "file")
