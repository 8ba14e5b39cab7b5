"""The leak gate: most tests run pytest on a test that leaves something behind."""

import base64
from textwrap import dedent

import pytest
from nacl.pwhash import argon2id

from trionode.vault import sqlite
from trionode_pytest import resources
from trionode_pytest.resources import open_resources
from trionode_pytest.secrets_in_text import Secret, Secrets, encodings

pytest_plugins = ["pytester"]
# The output of the inner run, with all its secrets, is shown here.
pytestmark = pytest.mark.leak_gate(False)


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "GRACE", 0.1)  # what is left here stays
    monkeypatch.setattr(sqlite, "PASSPHRASE_OPERATIONS", argon2id.OPSLIMIT_MIN)
    monkeypatch.setattr(sqlite, "PASSPHRASE_MEMORY", argon2id.MEMLIMIT_MIN)


GATED = "-p", "no:randomly", "-p", "no:cacheprovider", "-o", "trionode_leak_gate=true"


def run(pytester: pytest.Pytester, source: str, *args: str, header: str = "") -> pytest.RunResult:
    pytester.makeini("[pytest]\ntrio_mode = true\n")
    pytester.makepyfile(
        f"import pytest, socket, subprocess, sys, threading, trio\n{header}\nkept = []\n{dedent(source)}"
    )
    return pytester.runpytest_inprocess(*(args or GATED))


CLEAN = """
    async def test_clean(tmp_path):
        (tmp_path / "file").write_text("x")
        with socket.socket():
            await trio.to_thread.run_sync(print, "hello")
        subprocess.run([sys.executable, "-S", "-c", ""])
"""


def test_clean_test_passes(pytester: pytest.Pytester) -> None:
    run(pytester, CLEAN).assert_outcomes(passed=1)


LEAKS = [
    (
        "a socket",
        """
        def test_it():
            kept.append(socket.create_server(("127.0.0.1", 0)))
        """,
        ["*open file *: a socket, AF_INET SOCK_STREAM, bound to ('127.0.0.1', *"],
    ),
    (
        "a file",
        """
        def test_it(tmp_path):
            kept.append(open(tmp_path / "notes", "w"))
        """,
        ["*open file *notes*"],
    ),
    (
        "a pipe",
        """
        def test_it():
            import os
            kept.extend(open(end, "rb" if not n else "wb", buffering=0) for n, end in enumerate(os.pipe()))
        """,
        ["*open file *: a pipe*"],
    ),
    (
        "a thread",
        """
        over = threading.Event()
        def wait_long():
            over.wait(60)
        def test_it():
            kept.append(over)
            threading.Thread(target=wait_long, name="the forgotten one", daemon=True).start()
        """,
        ["*thread 'the forgotten one', which runs wait_long (*.py:*), and is at *fails_the_test.py:*"],
    ),
    (
        "a thread of Trio's",
        """
        over = threading.Event()
        async def test_it():
            kept.append(over)
            with trio.move_on_after(0.01):
                await trio.to_thread.run_sync(over.wait, abandon_on_cancel=True)
        """,
        ["*thread *wait from <test 'test_it'>*"],
    ),
    (
        "a process",
        """
        def test_it():
            kept.append(subprocess.Popen(["sleep", "60"]))
        """,
        ["*process *: sleep 60"],
    ),
    (
        "a process that has ended",
        """
        def test_it():
            kept.append(subprocess.Popen(["true"], stdout=subprocess.PIPE))
            kept[0].stdout.read()
            kept[0].stdout.close()
        """,
        ["*process *"],
    ),
    (
        "a system task",
        """
        async def run_on():
            await trio.sleep_forever()
        async def test_it():
            trio.lowlevel.spawn_system_task(run_on)
        """,
        ["*system task *run_on*, which runs run_on (*.py:*"],
    ),
    (
        "a socket of an async fixture",
        """
        @pytest.fixture
        async def left():
            kept.append(socket.socket())
        async def test_it(left):
            pass
        """,
        ["*open file *: a socket*"],
    ),
]


@pytest.mark.parametrize(("source", "lines"), [each[1:] for each in LEAKS], ids=[each[0] for each in LEAKS])
def test_leak_fails_the_test(source: str, lines: list[str], pytester: pytest.Pytester) -> None:
    last = """
    def test_next():
        pass

    @pytest.fixture(scope="session", autouse=True)
    def _clean_up():
        yield
        for each in kept:
            if isinstance(each, threading.Event):
                each.set()
            elif isinstance(each, subprocess.Popen):
                each.kill()
                each.wait()
            else:
                each.close()
    """
    result = run(pytester, dedent(source) + dedent(last))
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["this test leaves behind:", *lines])


def test_fixture_or_marker_watches_one_test(pytester: pytest.Pytester) -> None:
    source = """
    @pytest.fixture(scope="session", autouse=True)
    def _clean_up():
        yield
        for each in kept:
            each.close()

    def leave():
        kept.append(socket.socket())

    def test_by_fixture(leak_gate):
        leave()

    @pytest.mark.leak_gate
    def test_by_marker():
        leave()

    def test_unwatched():
        leave()
    """
    result = run(pytester, source, "-p", "no:randomly", "--strict-markers")
    result.assert_outcomes(passed=3, errors=2)


def test_marker_with_false_excludes_a_test(pytester: pytest.Pytester) -> None:
    source = """
    @pytest.fixture(scope="session", autouse=True)
    def _clean_up():
        yield
        kept[0].close()

    @pytest.mark.leak_gate(False)
    def test_it():
        kept.append(socket.socket())
    """
    run(pytester, source).assert_outcomes(passed=1)


def test_session_fixture_is_no_leak(pytester: pytest.Pytester) -> None:
    source = """
    class Broker:
        def start(self):
            self.process = subprocess.Popen(["sleep", "60"], stdout=subprocess.PIPE)
        def stop(self):
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()

    @pytest.fixture(scope="session")
    def broker():
        broker = Broker()
        broker.start()
        yield broker
        broker.stop()

    def test_one(broker):
        pass

    def test_restarts(broker):
        broker.stop()
        broker.start()

    def test_after(broker):
        pass
    """
    run(pytester, source).assert_outcomes(passed=3)


def test_failed_test_reports_no_leak(pytester: pytest.Pytester) -> None:
    source = """
    @pytest.fixture(scope="session", autouse=True)
    def _clean_up():
        yield
        kept[0].close()

    def test_it():
        kept.append(socket.socket())
        assert False
    """
    result = run(pytester, source)
    result.assert_outcomes(failed=1)


SHOWS = "from trionode import *\nfrom trionode.vault import MemoryVault\nfrom trionode.protocol.identity.keys import KeyKind\nimport base64, logging\n"


KEY = bytes(range(200, 232))


@pytest.mark.parametrize(
    ("shown", "form"),
    [
        (KEY.hex(), "hex"),
        (KEY.hex().upper(), "hex"),
        (repr(KEY), "as Python shows bytes"),
        (str(list(KEY)), "bytes in decimal"),
        (base64.b64encode(KEY).decode(), "base64, 0 bytes in"),
        (base64.urlsafe_b64encode(b"x" + KEY + b"y").decode(), "base64, 1 bytes in"),
        (base64.b64encode(b"xx" + KEY).decode(), "base64, 2 bytes in"),
        (base64.b64encode(KEY[:16]).decode(), None),
    ],
)
def test_secret_is_found_in_every_encoding(shown: str, form: str | None) -> None:
    secrets = Secrets()
    secrets.note("a key", KEY)
    assert [found for _, found in secrets.found_in(f"the key is {shown}.")] == ([] if form is None else [form])


@pytest.mark.parametrize(("where", "section"), [("print", "stdout"), ("logging.warning", "log")])
def test_captured_key_fails_the_test(where: str, section: str, pytester: pytest.Pytester) -> None:
    source = f"""
    def test_it():
        vault = MemoryVault()
        {where}(vault._keys[vault.generate(KeyKind.X25519).name].secret.hex())
    """
    result = run(pytester, source, header=SHOWS)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        ["this test shows:", f"*the secret of a lasting key of kind X25519 in the captured {section} of its call, hex"]
    )


def test_every_kind_of_secret_fails_the_test(pytester: pytest.Pytester) -> None:
    source = """
    @pytest.fixture(scope="session")
    def lasting():
        vault = MemoryVault()
        return vault._keys[vault.generate(KeyKind.ED25519).name].secret

    def test_shared(lasting):
        vault = MemoryVault()
        print(vault.x25519(vault.generate(KeyKind.X25519), bytes((9,)) + bytes(31)).hex())

    async def test_passphrase(tmp_path):
        from trionode.vault.sqlite import open_sqlite_vault
        async with open_sqlite_vault(tmp_path / "vault", passphrase="correct horse"):
            print("the passphrase is correct horse")

    def test_channel():
        from trionode.protocol.session.session import Session
        key = bytes(range(100, 132))
        Session(key, bytes(32))
        print(key)

    def test_own(leak_gate):
        leak_gate.add_secret("my own token", "the token")
        print("my own token")

    def test_of_a_session_fixture(lasting):
        print(lasting[:32].hex())

    def test_innocent(lasting):
        print("a passphrase, correct, horse, token", lasting[32:].hex())
    """
    result = run(pytester, source, header=SHOWS)
    result.assert_outcomes(passed=6, errors=5)
    result.stdout.fnmatch_lines(
        [
            "*the shared secret of an X25519 exchange in the captured*hex",
            "*the passphrase of *vault in the captured*as it is",
            "*the key of a secure channel in the captured*",
            "*the token in the captured*as it is",
            "*the secret of a lasting key of kind ED25519 in the captured*hex",
        ]
    )


def test_patches_are_removed(pytester: pytest.Pytester) -> None:
    from trionode.protocol.session import session
    from trionode.vault.memory import MemoryVault

    before = MemoryVault._keep, vars(session)["AESGCM"]
    run(pytester, CLEAN)
    assert (MemoryVault._keep, vars(session)["AESGCM"]) == before


def test_add_secret_refuses_short_values(pytester: pytest.Pytester) -> None:
    source = """
    def test_it(leak_gate):
        leak_gate.add_secret("short")
    """
    result = run(pytester, source)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*ConfigError: a secret has at least 8 bytes, this one has 5*"])


def test_repr_of_a_secret_hides_it() -> None:
    secret = Secret("a key", b"very secret bytes")
    assert "very" not in repr(secret)
    assert "76657279" in encodings(secret.value)["hex"]


def test_resources_are_the_same_when_listed_twice() -> None:
    changed = open_resources().keys() ^ open_resources().keys()
    # A Trio thread with work of an earlier test may have finished it between the two.
    assert [each for each in changed if not getattr(each, "name", "").startswith("Trio thread ")] == []
