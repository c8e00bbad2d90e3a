"""Faults of the reader of configurations and weights."""

from faults.fault import Fault

REFUSALS = "tests/engine/model/test_hf_refusals.py::test_"
FILES = "tests/engine/weights/test_checkpoint_files.py::test_"
ROPE = "engine/model/hf_rope.py"
HF = "engine/model/hf_config.py"
SAFETENSORS = "engine/weights/safetensors_file.py"
BY_PATH = (REFUSALS + "what_is_not_computed_is_refused_by_its_path",)
COVER = (FILES + "every_byte_belongs_to_one_tensor",)

FAULTS = (
    Fault(
        "checkpoints: a section nested by layer type is passed over",
        ROPE,
        "    _refuse_unknown(section, kind)\n    theta",
        "    theta",
        BY_PATH,
    ),
    Fault(
        "checkpoints: two bases of the rotary frequencies",
        ROPE,
        "if outer is not None and inner is not None and outer != inner:",
        "if False:",
        BY_PATH,
    ),
    Fault(
        "checkpoints: positions without a limit",
        ROPE,
        'config.integer("max_position_embeddings", most=MAX_POSITIONS)',
        'config.integer("max_position_embeddings")',
        BY_PATH,
    ),
    Fault(
        "checkpoints: a vocabulary without a limit",
        HF,
        'config.integer("vocab_size", most=MAX_VOCAB)',
        'config.integer("vocab_size")',
        BY_PATH,
    ),
    Fault(
        "checkpoints: another architecture's keys are passed over",
        "engine/model/hf_unsupported.py",
        "if _COMPUTES.search(key) and not says_nothing:",
        "if False:",
        BY_PATH,
    ),
    Fault(
        "checkpoints: the sampling file's faults are told as config.json's",
        HF,
        "    sampling = _generation(defaults)\n",
        "    sampling = _generation(JsonFile(defaults.data, config.name))\n",
        (REFUSALS + "a_fault_of_the_generation_file_is_told_as_its_own",),
    ),
    Fault(
        "checkpoints: a pointer is taken for weights",
        SAFETENSORS,
        "instead = stand_in(file.read(HEAD_BYTES))",
        "instead = stand_in(b'-')",
        (FILES + "what_stands_instead_of_weights_is_named",),
    ),
    Fault(
        "checkpoints: two sources of weights",
        "engine/weights/checkpoint.py",
        "    if others:\n",
        "    if False:\n",
        (FILES + "two_sources_of_weights_are_refused",),
    ),
    Fault(
        "checkpoints: a weight that stands twice",
        "engine/weights/checkpoint.py",
        "    if other is not None:\n",
        "    if False:\n",
        (
            "tests/engine/weights/test_weights.py::test_a_weight_that_two_files_have_and_the_index_"
            "leaves_out_is_refused",
            "tests/engine/weights/test_weights.py::test_a_weight_under_both_its_names_is_refused",
        ),
    ),
    Fault(
        "checkpoints: tensors overlap",
        SAFETENSORS,
        "if tensor.offset < end:",
        "if False:",
        COVER,
    ),
    Fault(
        "checkpoints: bytes that belong to no tensor",
        SAFETENSORS,
        "if tensor.offset > end:",
        "if False:",
        COVER,
    ),
    Fault(
        "checkpoints: numbers that are not finite are served",
        "engine/weights/loader.py",
        "        if math.isfinite(total):\n",
        "        if True:\n",
        (FILES + "a_number_that_is_not_finite_is_refused_by_name",),
    ),
    Fault(
        "checkpoints: memory is taken before the files are looked at",
        "engine/startup/build_rank.py",
        "        check_checkpoint(outline, Path(config.model))\n",
        "",
        ("tests/engine/startup/test_checkpoint_first.py",),
    ),
)
