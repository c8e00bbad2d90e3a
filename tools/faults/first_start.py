"""Faults of kernels compiled ahead and kept."""

from faults.fault import Fault

CACHE = "tests/engine/runner/test_compiled_cache.py::test_"
SEALED = "tests/kernels/test_sealed.py::test_"
AHEAD = "tests/engine/runner/test_compile_ahead.py::test_"
HEAD = "tests/engine/runner/test_early_start.py::test_"
LOADED = "tests/engine/startup/test_loaded_beside.py::test_"
SPARE = "tests/engine/runner/test_spare_time.py::test_"
BESIDE = "tests/engine/startup/test_sized_beside.py::test_"
LISTED = "tests/engine/runner/test_listed.py::test_"
FOR_CARD = "tests/engine/startup/test_compile_for_card.py::test_"

FAULTS = (
    Fault(
        "first start: a list in the cache leads out of it, and that is thrown away",
        "kernels/sealed.py",
        'text not in ("", ".", "..") and',
        'text != "." and',
        (CACHE + "a_broken_list_is_none", SEALED + "only_entries_are_thrown_away"),
    ),
    Fault(
        "first start: a seal counts another process's, which is gone a moment later",
        "kernels/sealed.py",
        "if not file.name.startswith(SEAL))",
        "if file.name != SEAL)",
        (SEALED + "two_that_seal_an_entry_at_once_leave_it_whole",),
    ),
    Fault(
        "first start: compiled code that is damaged is trusted",
        "kernels/sealed.py",
        "_digests(entry).items() >= sealed.items()",
        "_digests(entry).keys() >= sealed.keys()",
        (SEALED + "an_entry_is_whole_only_as_it_was_sealed",),
    ),
    Fault(
        "first start: compiled code is kept under its name before it is whole",
        "kernels/sealed.py",
        "            entry = made.folder / name\n",
        "            entry = self.folder / name\n",
        (SEALED + "what_is_made_replaces_what_was_there_and_leaves_nothing_else",),
    ),
    Fault(
        "first start: a damaged kernel stays",
        "engine/runner/compiled_cache.py",
        "            self._kernels.discard(name)\n",
        "            pass\n",
        (CACHE + "a_damaged_kernel_is_thrown_away_and_the_others_stay",),
    ),
    Fault(
        "first start: a folder that cannot be written is taken",
        "kernels/sealed.py",
        "        return SealedFolder(folder)\n    except OSError as",
        "        return SealedFolder(folder)\n    except ValueError as",
        (SEALED + "a_folder_that_cannot_be_written_is_replaced_and_said",),
    ),
    Fault(
        "compiled for a card: a moved folder is whole, and Triton finds nothing in it",
        "kernels/movable_cache.py",
        "for name in names if (path := self.get_file(name)) is not None}",
        "for name, path in names.items() if Path(path).exists()}",
        (FOR_CARD + "a_kernel_is_found_in_whatever_folder_it_stands",),
    ),
    Fault(
        "compiled for a card: a model is known by its path, whatever is in it",
        "engine/runner/compile_orders.py",
        'self.options | {"model": repr(self.shape)}',
        "dict(self.options)",
        (FOR_CARD + "a_model_is_known_by_its_configuration_wherever_it_is",),
    ),
    Fault(
        "compiled for a card: options that decide no kernel are in the key",
        "engine/runner/compile_orders.py",
        "return {name: getattr(config, name) for name in DECIDING}",
        "return dataclasses.asdict(config)",
        (FOR_CARD + "a_server_finds_all_that_was_compiled_elsewhere",),
    ),
    Fault(
        "compiled for a card: an option that decides kernels is not in the key",
        "engine/runner/compile_orders.py",
        "dataclasses.replace(self, options=options,",
        'dataclasses.replace(self, options=options | {"block_size": 0},',
        (FOR_CARD + "whatever_the_process_that_compiles_is_told_is_in_the_key",),
    ),
    Fault(
        "compiled for a card: another name of the same card finds nothing",
        "engine/runner/compile_ahead.py",
        "card=measured_card(support.card_name(device))",
        "card=support.card_name(device)",
        (FOR_CARD + "a_server_of_any_card_looks_for_what_was_compiled_for_it[h100]",),
    ),
    Fault(
        "compiled for a card: launchers of another Python are counted on",
        "engine/runner/compile_orders.py",
        "f\"{sysconfig.get_config_var('SOABI')}\"",
        '""',
        (FOR_CARD + "a_server_of_another_version_compiles_for_itself",),
    ),
    Fault(
        "compiled for a card: a folder that cannot be written is of no use",
        "engine/runner/compiled_cache.py",
        "        cache.take_from(CompiledCache(folder))\n",
        "        pass\n",
        (FOR_CARD + "kernels_are_taken_from_a_folder_that_cannot_be_written",),
    ),
    Fault(
        "compiled for a card: what is built without the driver does not ask for it where it is",
        "kernels/offline.py",
        "for name in sorted(functions))",
        "for name in ())",
        (FOR_CARD + "what_triton_links_with_the_driver_is_built_without_it",),
    ),
    Fault(
        "compiled for a card: a model's weights are fetched for its configuration",
        "service/models/resolve.py",
        "    if not weights:\n        return settings\n",
        "",
        ("tests/service/models/test_hub.py::test_a_configuration_is_fetched_without_weights",),
    ),
    Fault(
        "a start: weights that are loaded beside everything else are not waited for",
        "engine/startup/build_rank.py",
        '        if basis.loaded_beside:\n            load(partial(progress, "weights"))\n',
        "        if basis.loaded_beside:\n",
        (LOADED + "the_rest_is_prepared_on_zeros_while_the_weights_come",),
    ),
    Fault(
        "a start: weights that nobody has written yet are computed with",
        "engine/startup/build_rank.py",
        "            placement.clear()\n",
        "            pass\n",
        (LOADED + "the_rest_is_prepared_on_zeros_while_the_weights_come",),
    ),
    Fault(
        "a start: a graph of one-token rows is run in spare time, on the slots of requests",
        "engine/runner/runner.py",
        "            if of_prompts(key) and fits:",
        "            if fits:",
        (SPARE + "rows_of_one_token_are_captured_in_spare_time_and_never_run",),
    ),
    Fault(
        "a start: few rows stay two graphs where they could be one",
        "engine/runner/uncaptured.py",
        "self._expected.get(whole, _PATIENCE)",
        "self._expected.get(whole, 0)",
        (
            "tests/engine/runner/test_runner_graphs.py",
            SPARE + "few_rows_are_two_graphs_until_they_are_captured_as_one",
        ),
    ),
    Fault(
        "a start: the vocabulary of constraints is read when the engine is ready",
        "service/app/server.py",
        "            compiler.begin()\n",
        "",
        ("tests/service/app/test_vocabulary_beside.py",),
    ),
    Fault(
        "first start: kernels half compiled count as all",
        "engine/runner/compile_ahead.py",
        "        if done and done == self._kernels:\n",
        "        if done:\n",
        (AHEAD + "what_a_process_that_dies_has_not_done_is_said_and_not_waited_for",),
    ),
    Fault(
        "first start: kernels are compiled once the ranks have met",
        "engine/startup/build_rank.py",
        "    shape = model_config(config)\n    device = sizing.resolve_device(config, rank)\n",
        "    shape, world = model_config(config), meet()\n"
        "    device, meet = sizing.resolve_device(config, rank), lambda: world\n",
        (AHEAD + "kernels_are_compiled_while_the_ranks_meet",),
    ),
    Fault(
        "first start: a kernel's name depends on which was asked for first",
        "kernels/steady_keys.py",
        '        _ = getattr(function, "cache_key", None)\n',
        "",
        ("tests/kernels/test_steady_keys.py",),
    ),
    Fault(
        "first start: a launch does not wait for its kernel, which is compiled twice",
        "engine/runner/compile_ahead.py",
        "            self._take(name_of(key, fn), progress)\n",
        "",
        (AHEAD + "a_launch_waits_for_its_own_kernel_and_one_that_is_not_known_for_all",),
    ),
    Fault(
        "first start: the largest step launches kernels that are not compiled",
        "engine/startup/build_rank.py",
        "    return offline.nothing_launched()\n",
        "    return nullcontext()\n",
        (BESIDE + "the_largest_step_launches_nothing_while_kernels_are_compiled",),
    ),
    Fault(
        "first start: experts are looked up by what no kernel has written",
        "engine/startup/build_rank.py",
        " or self.shape.experts is not None:",
        ":",
        (BESIDE + "it_launches_what_something_else_waits_for",),
    ),
    Fault(
        "a start: whatever a process says is taken for Triton's digest",
        "kernels/offline.py",
        "if known.startswith(__version__):",
        "if known:",
        (HEAD + "a_digest_is_taken_from_the_process_that_has_found_it",),
    ),
    Fault(
        "first start: every process compiles everything",
        "engine/runner/compile_forks.py",
        "[_fork(work) for",
        "[_fork(partial(compile_some, in_order, numbers(len(in_order)), tell)) for",
        (AHEAD + "forks_compile_each_kernel_once_and_find_it_the_next_time",),
    ),
    Fault(
        "first start: the longest kernel is begun when all are known",
        "engine/runner/compile_worker.py",
        "        if name.split()[0] in LONGEST and",
        "        if name in LONGEST and",
        (AHEAD + "forks_compile_each_kernel_once_and_find_it_the_next_time",),
    ),
    Fault(
        "first start: a kernel that is begun before the others is compiled once more",
        "engine/runner/compile_worker.py",
        "kernels.keys() - longest.keys() - known}",
        "kernels.keys() - known}",
        (AHEAD + "forks_compile_each_kernel_once_and_find_it_the_next_time",),
    ),
    Fault(
        "first start: what there is to compile is found with torch's compiler",
        "engine/runner/compile_worker.py",
        "with offline.noted() as kernels, MetaShapes():",
        "with offline.noted() as kernels:",
        (AHEAD + "forks_leave_signals_to_the_one_that_gave_the_orders_and_end_with_it",),
    ),
    Fault(
        "first start: the slowest kernels are compiled last",
        "engine/runner/compile_forks.py",
        "places.get(name.split()[0], len(places))",
        "-places.get(name.split()[0], len(places))",
        (AHEAD + "a_number_is_read_by_one_process_and_the_slowest_kernels_have_the_first",),
    ),
    Fault(
        "first start: a shape is found that torch does not find",
        "kernels/meta_shapes.py",
        "and all(size in (1, most) for size, most in sizes)",
        "",
        ("tests/kernels/test_meta_shapes.py::test_what_is_not_as_simple_is_left_to_torch",),
    ),
    Fault(
        "first start: forks outlive the engine",
        "engine/runner/compile_forks.py",
        "        lifeline.end_with_parent(sys.stdin)\n        work",
        "        work",
        (AHEAD + "forks_leave_signals_to_the_one_that_gave_the_orders_and_end_with_it",),
    ),
    Fault(
        "first start: what is compiled from a list is compiled once more",
        "engine/runner/compile_worker.py",
        "kernels.keys() - longest.keys() - known}",
        "kernels.keys() - longest.keys()}",
        (LISTED + "what_is_listed_is_compiled_by_the_fork_and_the_rest_by_its_parent",),
    ),
    Fault(
        "first start: kernels of a list count for nothing",
        "engine/runner/compile_worker.py",
        "tell(Counted(len(kernels.keys() | known)))",
        "tell(Counted(len(kernels.keys() - known)))",
        (LISTED + "what_is_listed_is_compiled_by_the_fork_and_the_rest_by_its_parent",),
    ),
    Fault(
        "first start: a launch is written down as another",
        "kernels/launch_list.py",
        'unaligned = "?" if value.data_ptr() % _ALIGNED else ""',
        'unaligned = ""',
        (LISTED + "the_lists_hold_what_engines_launch_under_the_same_names",),
    ),
    Fault(
        "first start: a second model waits for what only the first one had compiled",
        "engine/runner/compile_listed.py",
        '        lists = lists.replace("*", f"{family(config, versions())}-*")\n',
        "        family(config, versions())\n",
        (LISTED + "what_an_engine_has_left_is_for_others_of_its_options_and_versions",),
    ),
    Fault(
        "first start: a list is taken for an engine of other options",
        "engine/runner/listed.py",
        "    if not usual or _options(config) != _options(EngineConfig()):\n",
        "    if not usual:\n",
        (LISTED + "no_list_is_taken_for_what_launches_other_kernels",),
    ),
    Fault(
        "first start: what attention launches for short prompts beside a long one is not warm",
        "engine/runner/warmup.py",
        "yield (1,) * FEW_ROWS + ",
        "yield (1,) * (FEW_ROWS - 1) + ",
        (
            "tests/engine/runner/test_warmup.py::test_rows_are_warm_where_one_may_be_as_long_as_a_step",
        ),
    ),
    Fault(
        "a start: the engine's process begins when numpy is loaded here",
        "service/app/placement.py",
        "from quire.engine.client.child import Child\n",
        "from quire.engine.client.child import Child\nfrom quire.engine.client.link import Link\n",
        (
            "tests/service/app/test_two_processes.py::test_the_engine_s_process_waits_for_nothing_slow"
            "_and_the_server_s_side_needs_no_torch",
        ),
    ),
    Fault(
        "first start: an early process that nobody needs stays",
        "engine/runner/compile_ahead.py",
        "            compile_process.end(early)\n\n",
        "            pass\n\n",
        (AHEAD + "a_process_that_was_started_in_vain_is_ended",),
    ),
    Fault(
        "first start: two stages in turn write a line for each step of either",
        "service/app/progress.py",
        "        if reached <= self._shown.get(stage, -1):\n",
        "        if stage == self._stage and reached <= self._shown.get(stage, -1):\n",
        (
            "tests/service/app/test_progress.py"
            "::test_stages_in_turn_write_no_more_than_one_after_another",
        ),
    ),
    Fault(
        "first start: what a killed process has copied stays",
        "kernels/sealed.py",
        "        _remove_left()\n",
        "",
        (SEALED + "what_a_killed_process_has_left_is_removed_and_nothing_in_use_is",),
    ),
    Fault(
        "first start: what another process has copied is taken from it",
        "kernels/sealed.py",
        "    fcntl.flock(held, fcntl.LOCK_EX)\n",
        "",
        (SEALED + "what_a_killed_process_has_left_is_removed_and_nothing_in_use_is",),
    ),
    Fault(
        "first start: a list of kernels that are gone keeps the others from being copied",
        "engine/runner/compiled_cache.py",
        "        for name in names:\n            with contextlib.suppress(OSError):",
        "        with contextlib.suppress(OSError):\n            for name in names:",
        (CACHE + "a_stale_list_stops_no_copy",),
    ),
    Fault(
        "first start: whoever compiles knows no kernel of a folder that has moved",
        "engine/runner/compile_worker.py",
        "    movable_cache.use()  # as the engine does\n",
        "",
        ("tests/engine/runner/test_moved_cache.py",),
    ),
    Fault(
        "a start: a refused engine is told when the vocabulary is read",
        "service/app/server.py",
        "            compiler.begin()\n",
        "            asyncio.create_task(asyncio.to_thread(compiler.vocabulary))\n",
        (
            "tests/service/app/test_vocabulary_beside.py::test_a_refused_engine_is_told_while_"
            "the_vocabulary_is_still_read",
        ),
    ),
)
