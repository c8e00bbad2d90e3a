"""Faults of the page of `quire watch`, and of what a server tells it."""

from faults.fault import Fault

SERVER = "tests/clients/watch/test_watch_server.py::test_"
PAGE = "tests/clients/watch/test_watch_page.py::test_"
OPEN = "tests/service/rpc/test_open_requests.py::test_"

FAULTS = (
    Fault(
        "watch: a foreign name leads to the page",
        "clients/watch/server.py",
        "        if host not in self._server.hosts:\n",
        "        if not host:\n",
        (SERVER + "no_other_name_leads_to_it",),
    ),
    Fault(
        "watch: the page is there without its token",
        "clients/watch/server.py",
        "        if not (known and slash):\n",
        "        if not slash:\n",
        (SERVER + "without_the_token_nothing_is_there",),
    ),
    Fault(
        "watch: another page may send prompts",
        "clients/watch/server.py",
        '        elif origin.removeprefix("http://") not in self._server.hosts:\n',
        '        elif origin.startswith("https://"):\n',
        (SERVER + "a_prompt_from_another_page_is_not_sent",),
    ),
    Fault(
        "watch: a viewer who leaves keeps the call running",
        "clients/watch/hangup.py",
        "            on_hangup()\n",
        "            pass\n",
        (SERVER + "a_viewer_who_leaves_ends_the_call",),
    ),
    Fault(
        "watch: each open page asks the server",
        "clients/watch/source.py",
        "            if self._last is None or now - self._last[0] >= self._fresh:\n",
        "            if self._last is None or now >= self._last[0]:\n",
        (SERVER + "many_pages_ask_the_server_once",),
    ),
    Fault(
        "watch: a map grows with the cache",
        "clients/watch/snapshot.py",
        "    per_cell = max(1, -(-len(states) // MAX_CELLS))\n",
        "    per_cell = 1\n",
        (SERVER + "a_map_has_a_bounded_number_of_cells",),
    ),
    Fault(
        "watch: a name from the server is markup",
        "clients/watch/page/drawing.js",
        "  if (text !== undefined) made.textContent = text;\n",
        '  if (text !== undefined) made.insertAdjacentHTML("beforeend", text);\n',
        (PAGE + "text_is_text_whatever_it_says",),
    ),
    Fault(
        "watch: anybody is told of everybody's requests",
        "service/rpc/answers.py",
        "            serving.stats.allow_requests(operator=caller.operator)\n",
        "            pass\n",
        (OPEN + "an_operator_sees_open_requests_and_nothing_of_their_texts",),
    ),
    Fault(
        "watch: all requests are listed, however many there are",
        "service/rpc/open_requests.py",
        "islice(self._calls.values(), MAX_LISTED)",
        "islice(self._calls.values(), None)",
        (OPEN + "no_more_rows_are_told_than_promised",),
    ),
)
