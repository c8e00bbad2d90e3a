"""Faults of embeddings and scores: what is read of a prompt, and the calls that ask for it."""

from faults.fault import Fault

_ENGINE = "tests/engine/model/test_embeddings.py::test_"
_CALLS = "tests/service/rpc/test_pooled_calls.py::test_"
_HTTP = "tests/service/openai/test_vectors.py::test_"

FAULTS = (
    Fault(
        "embeddings: what stands before each text is counted once",
        "service/rpc/pooled_requests.py",
        "        return size * len(request.inputs)\n",
        "        return size\n",
        (_CALLS + "what_cannot_be_asked_is_refused_by_its_field",),
    ),
    Fault(
        "embeddings: states are read before the final norm",
        "engine/model/decoder.py",
        "        return wide * (mean + self.config.rms_norm_eps).rsqrt() * self.norm.float()\n",
        "        return wide\n",
        (_ENGINE + "as_transformers",),
    ),
    Fault(
        "embeddings: of a padded step the state of another token is read",
        "engine/runner/inputs.py",
        "- 1 if exact else np.array(ends, np.int64)\n",
        "- 1\n",
        (_ENGINE + "equal_to_itself_alone",),
    ),
    Fault(
        "embeddings: numbers that are none are handed out",
        "engine/runner/pooling.py",
        'packed.append(numbers.astype(_FLOAT).tobytes() if finite else b"")',
        "packed.append(numbers.astype(_FLOAT).tobytes())",
        (_ENGINE + "numbers_that_are_none_end_their_request_alone",),
    ),
    Fault(
        "embeddings: a head that is missing is never missed",
        "engine/model/hf_embeddings.py",
        "    bare = _EMBEDDING in names or (bool(names) and (path / MODULES).is_file())\n",
        "    bare = bool(names)\n",
        (_ENGINE + "a_head_that_is_missing_is_told",),
    ),
    Fault(
        "embeddings: cut to fewer dimensions they are not of length 1",
        "service/rpc/vectors.py",
        "    lengths = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))\n",
        "    lengths = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))\n",
        (_CALLS + "embeddings_in_their_order_with_their_usage",),
    ),
    Fault(
        "embeddings: a text that is cut loses its end token",
        "service/rpc/pooled_requests.py",
        "return [*ids[:before], *kept, *ids[before + len(bare) :]][: self._longest]",
        "return ids[: self._longest]",
        (_CALLS + "texts_that_are_too_long_are_refused_or_cut",),
    ),
    Fault(
        "embeddings: all texts of a call enter the queue at once",
        "service/rpc/pooled_calls.py",
        "        width = min(len(call.call.requests), self._access.admission.policy.slots)\n",
        "        width = len(call.call.requests)\n",
        (_CALLS + "a_call_of_many_texts_stands_in_nobodys_way",),
    ),
    Fault(
        "embeddings: a document may forge a turn",
        "service/rpc/pooled_requests.py",
        "                self._refuse_special(where, document)\n",
        "                pass\n",
        (_CALLS + "what_cannot_be_asked_is_refused_by_its_field",),
    ),
    Fault(
        "embeddings: all ids of a call are looked at on the event loop",
        "service/rpc/pooled_requests.py",
        "        if not count:\n",
        "        faults.ids(where, [count], 1 << 62)\n        if not count:\n",
        (_CALLS + "ids_are_looked_at_off_the_event_loop",),
    ),
)
