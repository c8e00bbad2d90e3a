"""Faults of checkpoints that are loaded and of text that is made."""

from faults.fault import Fault, regression

FAULTS = (
    Fault(
        "mini-sglang-88: noise comes from a generator with a state",
        "kernels/reference/sampling.py",
        "_subtract_log_noise(noisy, seeds[slots[rows]], positions[rows])",
        "_subtract_log_noise(noisy, torch.randint(9**9, (len(rows),)), positions[rows])",
        regression("mini_sglang_88_unseeded_sampling_differs_between_ranks"),
    ),
    Fault(
        "mini-sglang-93: tensors are loaded whole",
        "engine/weights/loader.py",
        "placement.chunks(CHUNK_BYTES // stored[placement.name].dtype.itemsize)",
        "placement.chunks(1 << 40)",
        regression("mini_sglang_93_out_of_memory_while_loading"),
    ),
    Fault(
        "nano-vllm-69: a weight that the model does not have is passed over",
        "engine/weights/loader.py",
        "    unknown = stored.keys() - placements.keys()\n",
        "    unknown: set[str] = set()\n",
        regression("nano_vllm_69_wrong_weights_gave_garbage"),
    ),
    Fault(
        "vllm-6758: a tied head stored twice is not looked at",
        "engine/weights/loader.py",
        "        if one[:count] != other[:count]:\n",
        "        if count < 0:\n",
        regression("nano_vllm_69_wrong_weights_gave_garbage"),
    ),
    Fault(
        "exo-1691: each token is decoded by itself",
        "service/text/detokenizer.py",
        "text = self._decoder.decode(piece)",
        'text = piece.decode("utf-8", "replace")',
        regression("exo_1691_character_split_across_tokens"),
    ),
    Fault(
        "mlx-vlm-309: only the first file's EOS ids count",
        "engine/model/hf_config.py",
        'eos = config.integers("eos_token_id", least=0, below=vocab) + eos',
        'eos = config.integers("eos_token_id", least=0, below=vocab) or eos',
        regression("mlx_vlm_309_only_one_eos_id_honoured"),
    ),
    Fault(
        "vllm-28172: usage counts characters of the text",
        "service/rpc/responses.py",
        "        state.delivered += len(piece.ids)  #",
        "        state.delivered += len(piece.text)  #",
        regression("vllm_28172_usage_counted_by_encoding_the_text_again"),
    ),
    Fault(
        "smg-2426: a stale abort is an error",
        "engine/scheduling/scheduler.py",
        "        for request in tuple(self.state.by_key.get(key, ())):\n"
        "            self.counters.aborted_in_flight",
        "        for request in tuple(self.state.by_key[key]):\n"
        "            self.counters.aborted_in_flight",
        regression("smg_2426_stale_or_repeated_abort"),
    ),
    Fault(
        "sglang-omni-2077: the event loop changes the tables itself",
        "engine/client/in_thread.py",
        "            loop.announce()\n",
        "            loop.announce()\n"
        "            put, self.send = self.send, lambda c: (  # type: ignore\n"
        "                loop.handle if type(c).__name__ == 'Finish' else put\n"
        "            )(c)\n",
        regression("sglang_omni_2077_two_threads_touched_the_tables"),
    ),
)
