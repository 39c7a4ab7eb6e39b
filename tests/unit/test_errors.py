"""The tree of errors: one base, categories, attributes, and a trip through pickle."""

from __future__ import annotations

import copy
import inspect
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import chronicle
import pytest
from chronicle import errors

from tests.queue_support import fill, publisher, subscriber

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, chronicle.ChronicleError)
]
CATEGORIES = {
    "Gap": "warn",
    "ChannelFull": "warn",
    "CorruptRecord": "fatal",
    "FormatError": "fatal",
    "QueueRemoved": "fatal",
    "SegmentMissing": "fatal",
}
BUILT_IN = {
    "BadArgument": ValueError,
    "DecodeError": ValueError,
    "SequenceNotWritten": ValueError,
    "TooLarge": ValueError,
    "DiskFull": OSError,
}
EXAMPLES = {int: 1 << 40, str: "text"}


def example(cls: Any) -> chronicle.ChronicleError:
    attributes = {
        name: EXAMPLES[{"int": int, "str": str}[hint]]
        for name, hint in inspect.get_annotations(cls).items()
        if hint in ("int", "str")
    }
    made: chronicle.ChronicleError = cls("what failed, name=value; what to do", **attributes)
    return made


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_has_one_base_and_a_category(cls: Any):
    assert issubclass(cls, chronicle.ChronicleError)
    assert cls.category == CATEGORIES.get(cls.__name__, "error")
    assert cls.__doc__


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_exported(cls: Any):
    assert getattr(chronicle, cls.__name__) is cls
    assert cls.__name__ in errors.__all__


@pytest.mark.parametrize("name", BUILT_IN)
def test_some_errors_are_also_what_python_would_raise(name: str):
    assert issubclass(getattr(errors, name), BUILT_IN[name])


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_comes_through_pickle_as_it_was(cls: Any, protocol: int):
    error = example(cls)
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is cls
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert again.category == error.category


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_an_error_can_be_copied(cls: Any, copied: Any):
    error = example(cls)
    assert vars(copied(error)) == vars(error)
    assert str(copied(error)) == str(error)


def test_notes_and_sources_come_through_pickle():
    error = example(chronicle.Gap)
    error.source = 3
    error.add_note("seen by the risk process")
    again = pickle.loads(pickle.dumps(error))
    assert again.source == 3
    assert again.__notes__ == ["seen by the risk process"]


def raise_in_worker(path: Path) -> None:
    chronicle.Queue.open_subscriber(path, "me", start=99)


def test_an_error_of_the_core_comes_out_of_a_process_pool_whole(path: Path):
    with publisher(path) as writer:
        fill(writer, 3)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            with pytest.raises(chronicle.SequenceNotWritten) as caught:
                pool.submit(raise_in_worker, path).result()
    assert (caught.value.sequence, caught.value.next) == (99, 4)


@pytest.mark.parametrize("start", [5, 1 << 62])
def test_a_message_says_what_failed_with_values_and_what_to_do(path: Path, start: int):
    with publisher(path):
        with pytest.raises(chronicle.SequenceNotWritten) as caught:
            subscriber(path, start=start)
    text = str(caught.value)
    assert str(path) in text
    assert f"sequence={start} next=1" in text
    assert "; seek" in text


def test_what_has_no_meaning_for_queues_stays_an_os_error(path: Path):
    path.write_bytes(b"")
    with pytest.raises(NotADirectoryError) as caught:
        publisher(path)
    assert caught.value.errno
    assert not isinstance(caught.value, chronicle.ChronicleError)
